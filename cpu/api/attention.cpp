// The attention calls: read the struct, check everything, hand over to who computes it.
#include "cpu/api/device.hpp"
#include "cpu/api/sized.hpp"
#include "cpu/call.hpp"
#include "cpu/context.hpp"
#include "cpu/validate.hpp"

#include <limits>
#include <string_view>

namespace tilewise::cpu {
namespace {

/// A header's struct must at least have what a forward call cannot do without.
constexpr std::size_t smallest_attention = offsetof(tilewise_attention, dout);

tilewise_attention defaults_of(const Conventions& conventions) {
  tilewise_attention attention{};
  attention.struct_size = sizeof attention;
  attention.softmax_scale = std::numeric_limits<double>::quiet_NaN();
  attention.window_left = attention.window_right = -1;
  attention.alignment = static_cast<std::int32_t>(conventions.alignment);
  attention.empty_row_output = static_cast<std::int32_t>(conventions.empty_row_output);
  attention.empty_row_lse = static_cast<std::int32_t>(conventions.empty_row_lse);
  attention.lse_base = static_cast<std::int32_t>(conventions.lse_base);
  attention.window_left_counts = static_cast<std::int32_t>(conventions.window_left);
  attention.default_scale = static_cast<std::int32_t>(conventions.default_scale);
  attention.score_order = static_cast<std::int32_t>(conventions.score_order);
  attention.alibi = static_cast<std::int32_t>(conventions.alibi);
  attention.mask_and_causal = static_cast<std::int32_t>(conventions.mask_and_causal);
  attention.rotary_interleaved = 1;
  return attention;
}

Status init(tilewise_attention* attention, std::uint32_t struct_size, const char* preset) {
  if (attention == nullptr) return failure(Code::bad_argument, "attention is null");
  if (struct_size < smallest_attention || struct_size > largest_struct)
    return failure(Code::bad_argument, "struct_size is %u; expected sizeof(tilewise_attention)",
                   struct_size);
  const std::string_view name = preset == nullptr ? "fa3" : preset;
  const std::optional<Conventions> conventions = conventions_from_name(name);
  if (!conventions)
    return failure(Code::bad_argument,
                   "no preset is called \"%.40s\"; docs/conventions.md lists them, fa3 and "
                   "torch_sdpa among them",
                   preset);
  tilewise_attention full = defaults_of(*conventions);
  // flash_api.cpp of flash-attn 2: "Softcapping does not support dropout for now".
  if (name == "fa2") full.softcap_and_dropout = TILEWISE_SOFTCAP_AND_DROPOUT_REFUSE;
  write_sized(attention, struct_size, full);
  return {};
}

/// What is asked, all of whose fields are set, and what it comes to.
struct Request {
  tilewise_attention given;
  Call call;
};

/// What every call begins with. `request` is complete if the answer is ok.
Status prepare(const tilewise_context* context, const tilewise_attention* attention,
               std::int32_t pass, bool question, Request& request) {
  if (context == nullptr) return failure(Code::bad_argument, "context is null");
  tilewise_attention& given = request.given;
  given = defaults_of({});
  if (Status status = read_sized("attention", attention, smallest_attention, given); !status.ok())
    return status;
  const bool on_cpu = context->backend == nullptr;
  if (on_cpu)
    if (Status status = left_out(given.q.dtype == TILEWISE_F64, pass == TILEWISE_BACKWARD);
        !status.ok())
      return status;
  const Depth depth = question ? Depth::shapes : on_cpu ? Depth::memory : Depth::addresses;
  Status status = check_attention(given, pass, {depth, context->device}, request.call);
  request.call.kernels = context->kernels;
  return status;
}

std::size_t workspace_of(const Call& call, std::int32_t pass, int max_workers) {
  return pass == TILEWISE_BACKWARD ? backward_workspace(call, max_workers)
                                   : forward_workspace(call, max_workers);
}

Status check_stream(const void* stream) {
  if (stream == nullptr) return {};
  return failure(Code::bad_argument, "stream is not null; the CPU has none");
}

Status compute(tilewise_context* context, const tilewise_attention* attention, std::int32_t pass,
               void* workspace, std::size_t bytes, void* stream) {
  Request request;
  if (Status status = prepare(context, attention, pass, false, request); !status.ok())
    return status;
  const Call& call = request.call;
  if (context->backend != nullptr)
    return compute_on_device(*context, call, device_call(call, request.given, pass), workspace,
                             bytes, stream);
  if (Status status = check_stream(stream); !status.ok()) return status;
  const std::size_t needed = workspace_of(call, pass, context->workers.max_workers);
  if (Status status = check_workspace(call, workspace, bytes, needed); !status.ok()) return status;
  return pass == TILEWISE_BACKWARD ? backward(call, context->workers, workspace, bytes)
                                   : forward(call, context->workers, workspace, bytes);
}

/// The sizes of a workspace: what a call needs, and what it can use more of.
struct Sizes {
  std::size_t min = 0, fast = 0;
};

Status sizes_of(const tilewise_context* context, const tilewise_attention* attention,
                std::int32_t pass, Sizes& sizes) {
  Request request;
  if (Status status = prepare(context, attention, pass, true, request); !status.ok()) return status;
  const Call& call = request.call;
  if (context->backend != nullptr) {
    const DeviceBackend& backend = *context->backend;
    const DeviceCall on_device = device_call(call, request.given, pass);
    if (const Status status = backend.choose(on_device, context->limits).status; !status.ok())
      return status;
    sizes.min = sizes.fast = backend.workspace(on_device, context->limits);
    return {};
  }
  const int max_workers = context->workers.max_workers;
  sizes.min = workspace_of(call, pass, max_workers);
  sizes.fast = pass == TILEWISE_FORWARD ? forward_fast_workspace(call, max_workers) : sizes.min;
  return {};
}

void copy(char* to, std::size_t room, std::string_view text) {
  const std::size_t length = text.size() < room ? text.size() : room - 1;
  std::memcpy(to, text.data(), length);
  to[length] = '\0';
}

Status query(const tilewise_context* context, const tilewise_attention* attention,
             std::int32_t pass, tilewise_answer* answer) {
  if (answer == nullptr) return failure(Code::bad_argument, "answer is null");
  const std::uint32_t size = answer->struct_size;
  if (Status status = check_room("answer", size, sizeof(tilewise_answer), "TILEWISE_ANSWER_INIT");
      !status.ok())
    return status;
  Request request;
  tilewise_answer full{};
  Status status = prepare(context, attention, pass, true, request);
  if (status.ok() && context->backend != nullptr) {
    const DeviceChoice choice =
        context->backend->choose(device_call(request.call, request.given, pass), context->limits);
    status = choice.status;
    copy(full.implementation, sizeof full.implementation, choice.implementation);
    copy(full.reason, sizeof full.reason,
         choice.fast ? "a kernel that was made for such calls" : choice.slow.reason);
    full.fast = choice.fast ? 1 : 0;
  } else if (status.ok()) {
    const Choice choice = choose(request.call, pass == TILEWISE_BACKWARD);
    copy(full.implementation, sizeof full.implementation, choice.name);
    copy(full.reason, sizeof full.reason, choice.reason);
    full.fast = choice.fast ? 1 : 0;
  }
  full.code = static_cast<std::int32_t>(status.code);
  if (!status.ok()) copy(full.reason, sizeof full.reason, status.reason);
  write_sized(answer, size, full);
  return {};
}

}  // namespace
}  // namespace tilewise::cpu

using namespace tilewise::cpu;  // NOLINT(google-build-using-namespace): the C functions are global

tilewise_status tilewise_attention_init_sized(tilewise_attention* attention,
                                              std::uint32_t struct_size, const char* preset,
                                              tilewise_error* error) {
  return report(error, init(attention, struct_size, preset));
}

tilewise_status tilewise_attention_workspace(const tilewise_context* context,
                                             const tilewise_attention* attention, std::int32_t pass,
                                             std::size_t* min_bytes, std::size_t* fast_bytes,
                                             tilewise_error* error) {
  Sizes sizes;
  const tilewise::Status status = sizes_of(context, attention, pass, sizes);
  if (min_bytes != nullptr) *min_bytes = sizes.min;
  if (fast_bytes != nullptr) *fast_bytes = sizes.fast;
  return report(error, status);
}

tilewise_status tilewise_attention_forward(tilewise_context* context,
                                           const tilewise_attention* attention, void* workspace,
                                           std::size_t workspace_bytes, void* stream,
                                           tilewise_error* error) {
  return report(error,
                compute(context, attention, TILEWISE_FORWARD, workspace, workspace_bytes, stream));
}

tilewise_status tilewise_attention_backward(tilewise_context* context,
                                            const tilewise_attention* attention, void* workspace,
                                            std::size_t workspace_bytes, void* stream,
                                            tilewise_error* error) {
  return report(error,
                compute(context, attention, TILEWISE_BACKWARD, workspace, workspace_bytes, stream));
}

tilewise_status tilewise_validate(tilewise_context* context, const void* workspace, void* stream,
                                  tilewise_error* error) {
  using tilewise::Code;
  if (context == nullptr)
    return report(error, tilewise::failure(Code::bad_argument, "context is null"));
  if (context->backend != nullptr)
    return report(error, validate_on_device(*context, workspace, stream));
  return report(error, check_stream(stream));
}

tilewise_status tilewise_query(const tilewise_context* context, const tilewise_attention* attention,
                               std::int32_t pass, tilewise_answer* answer, tilewise_error* error) {
  return report(error, query(context, attention, pass, answer));
}
