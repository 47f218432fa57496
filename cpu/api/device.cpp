#include "cpu/api/device.hpp"

#include "cpu/api/sized.hpp"
#include "cpu/validate.hpp"

#include <cstdio>

namespace tilewise::cpu {

static_assert(static_cast<int>(DeviceType::cpu) == TILEWISE_CPU);
static_assert(static_cast<int>(DeviceType::cuda) == TILEWISE_CUDA);

Status place(const tilewise_context_options& options, Placed& placed) {
  placed = {};
  const auto because = [&placed](const char* reason) {
    std::snprintf(placed.choice.reason, sizeof placed.choice.reason, "%s", reason);
    return Status{};
  };
  if (options.device_type == TILEWISE_CPU) {
    if (options.device_id == 0) return because("the options ask for the CPU");
    return failure(Code::bad_argument, "device_id is %d; expected 0, the one CPU",
                   static_cast<int>(options.device_id));
  }
  if (options.device_id < 0)
    return failure(Code::bad_argument, "device_id is %d; expected a device's number, from 0",
                   static_cast<int>(options.device_id));
  const bool best = options.device_type == TILEWISE_BEST_DEVICE;
  const auto* const backend = reinterpret_cast<const DeviceBackend*>(options.backend);
  if (backend == nullptr) {
    if (best) return because("options.backend is null");
    return failure(Code::unsupported,
                   "the device is CUDA and options.backend is null: link tilewise::cuda, and set "
                   "it to tilewise_cuda_backend() of tilewise/cuda.h");
  }
  if (backend->layout != device_backend_layout)
    return failure(Code::unsupported,
                   "options.backend is of another version of Tilewise than this library");
  const Status opened = backend->open(options.device_id, placed.limits);
  if (!opened.ok()) {
    placed.limits = {};
    return best ? because(opened.reason) : opened;
  }
  placed.backend = backend;
  placed.device = {backend->type, options.device_id};
  const int capability = placed.limits.compute_capability;
  std::snprintf(placed.choice.reason, sizeof placed.choice.reason,
                "%s device %d has compute capability %d.%d, and %s", backend->name,
                static_cast<int>(options.device_id), capability / 10, capability % 10,
                best ? "is taken where it can be had" : "the options ask for it");
  return {};
}

DeviceCall device_call(const Call& call, const tilewise_attention& given, std::int32_t pass) {
  const AttentionTensors& tensors = call.tensors;
  std::int64_t longest_k = given.max_seqlen_k;
  if (longest_k == 0 && !tensors.cu_seqlens_k.exists()) {
    longest_k = tensors.k.shape[1];
    if (tensors.cache.paged()) longest_k *= tensors.cache.block_table.shape[1];
  }
  return {.params = call.params,
          .tensors = tensors,
          .backward = pass == TILEWISE_BACKWARD,
          .deterministic = call.deterministic,
          .num_splits = given.num_splits,
          .max_seqlen_q = tensors.cu_seqlens_q.exists() ? given.max_seqlen_q : tensors.q.shape[1],
          .max_seqlen_k = longest_k,
          .philox_seed = given.philox_seed_pointer,
          .philox_offset = given.philox_offset_pointer};
}

Status compute_on_device(const tilewise_context& context, const Call& call,
                         const DeviceCall& device_call, void* workspace, std::size_t bytes,
                         void* stream) {
  const DeviceBackend& backend = *context.backend;
  const std::size_t needed = backend.workspace(device_call, context.limits);
  if (Status status = check_workspace(call, workspace, bytes, needed); !status.ok()) return status;
  return backend.compute(device_call, context.limits, workspace, stream);
}

Status validate_on_device(const tilewise_context& context, const void* workspace, void* stream) {
  if (reinterpret_cast<std::uintptr_t>(workspace) % 64 != 0)
    return failure(Code::bad_argument,
                   "workspace is misaligned: expected an address that is a multiple of 64");
  return context.backend->validate(context.device.id, workspace, stream);
}

}  // namespace tilewise::cpu

namespace {

using tilewise::Code;
using tilewise::failure;
using tilewise::Status;

Status device_of(const tilewise_context* context, tilewise_device_choice* choice) {
  if (context == nullptr) return failure(Code::bad_argument, "context is null");
  if (choice == nullptr) return failure(Code::bad_argument, "choice is null");
  const std::uint32_t size = choice->struct_size;
  if (Status status = tilewise::cpu::check_room("choice", size, sizeof(tilewise_device_choice),
                                                "TILEWISE_DEVICE_CHOICE_INIT");
      !status.ok())
    return status;
  tilewise_device_choice full{};
  full.device_type = static_cast<std::int32_t>(context->device.type);
  full.device_id = context->device.id;
  full.compute_capability = context->limits.compute_capability;
  static_assert(sizeof full.reason >= sizeof context->choice.reason);
  std::memcpy(full.reason, context->choice.reason, sizeof context->choice.reason);
  tilewise::cpu::write_sized(choice, size, full);
  return {};
}

}  // namespace

tilewise_status tilewise_context_device(const tilewise_context* context,
                                        tilewise_device_choice* choice, tilewise_error* error) {
  return tilewise::cpu::report(error, device_of(context, choice));
}
