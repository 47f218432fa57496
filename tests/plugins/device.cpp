// A plug-in with a device that is none: its memory lies in this process, at addresses that no
// pointer of the process can have. A host pointer among a kernel's arguments, or a device pointer
// that the host follows, does not go unnoticed.
//
// TILEWISE_TEST_DEVICE names what is wrong with the device; `self` of each kernel what is wrong
// with the kernel.
#include "tests/plugins/library.hpp"

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string_view>
#include <vector>

namespace {

// ---- the device's memory ----------------------------------------------------------------------

constexpr std::uintptr_t first_address = 0x5000'0000'0000'0000;
std::uintptr_t next_address = first_address;
struct alignas(256) Chunk {
  std::byte bytes[256];
};
std::map<std::uintptr_t, std::vector<Chunk>> blocks;  // by their addresses

bool device_is(std::string_view trouble) {
  const char* const given = std::getenv("TILEWISE_TEST_DEVICE");
  return given != nullptr && given == trouble;
}

/// Where `bytes` at a device's address are in this process; null if they are not its memory.
std::byte* in_block(const void* address, std::size_t bytes) {
  const auto at = reinterpret_cast<std::uintptr_t>(address);
  auto block = blocks.upper_bound(at);
  if (block == blocks.begin()) return nullptr;
  --block;
  const std::size_t size = block->second.size() * sizeof(Chunk);
  if (at - block->first > size || bytes > size - (at - block->first)) return nullptr;
  return reinterpret_cast<std::byte*>(block->second.data()) + (at - block->first);
}

tilewise_status trouble(char* reason, std::size_t reason_bytes, const char* what) {
  std::snprintf(reason, reason_bytes, "%s", what);
  return TILEWISE_FAILED;
}

tilewise_status allocate(std::int32_t device, std::size_t bytes, void** memory, char* reason,
                         std::size_t reason_bytes) {
  if (device != 3) return trouble(reason, reason_bytes, "there is no such device");
  if (device_is("full")) {
    std::snprintf(reason, reason_bytes, "the device is full");
    return TILEWISE_NO_MEMORY;
  }
  *memory = nullptr;
  if (device_is("nowhere")) return TILEWISE_OK;
  const std::uintptr_t address = next_address + (device_is("misaligned") ? 8 : 0);
  blocks[address].resize(bytes / sizeof(Chunk) + 1);
  next_address += (bytes / 4096 + 2) * 4096;
  *memory = reinterpret_cast<void*>(address);
  return TILEWISE_OK;
}

tilewise_status release(std::int32_t, void* memory, char*, std::size_t) {
  return blocks.erase(reinterpret_cast<std::uintptr_t>(memory)) == 1 ? TILEWISE_OK
                                                                     : TILEWISE_BAD_ARGUMENT;
}

tilewise_status copy_to_device(std::int32_t, void* to, const void* from, std::size_t bytes,
                               char* reason, std::size_t reason_bytes) {
  std::byte* const there = in_block(to, bytes);
  if (there == nullptr || device_is("no way in"))
    return trouble(reason, reason_bytes, "there is no way in");
  std::memcpy(there, from, bytes);
  return TILEWISE_OK;
}

tilewise_status copy_to_host(std::int32_t, void* to, const void* from, std::size_t bytes,
                             char* reason, std::size_t reason_bytes) {
  const std::byte* const there = in_block(from, bytes);
  if (there == nullptr || device_is("no way out"))
    return trouble(reason, reason_bytes, "there is no way out");
  std::memcpy(to, there, bytes);
  return TILEWISE_OK;
}

tilewise_status synchronize(std::int32_t, void* stream, char* reason, std::size_t reason_bytes) {
  if (stream != nullptr || device_is("asleep"))
    return trouble(reason, reason_bytes, "the device does not wake up");
  return TILEWISE_OK;
}

// ---- kernels ----------------------------------------------------------------------------------

constexpr tilewise_tensor tilewise_attention::*tensors[] = {
    &tilewise_attention::q,
    &tilewise_attention::k,
    &tilewise_attention::v,
    &tilewise_attention::o,
    &tilewise_attention::lse,
    &tilewise_attention::dout,
    &tilewise_attention::dq,
    &tilewise_attention::dk,
    &tilewise_attention::dv,
    &tilewise_attention::dbias,
    &tilewise_attention::dsinks,
    &tilewise_attention::bias,
    &tilewise_attention::mask,
    &tilewise_attention::sinks,
    &tilewise_attention::alibi_slopes,
    &tilewise_attention::cu_seqlens_q,
    &tilewise_attention::cu_seqlens_k,
    &tilewise_attention::seqlens_q,
    &tilewise_attention::seqlens_k,
    &tilewise_attention::kv_num_blocks,
    &tilewise_attention::kv_indices,
    &tilewise_attention::full_kv_num_blocks,
    &tilewise_attention::full_kv_indices,
    &tilewise_attention::block_table,
    &tilewise_attention::cache_batch_idx,
    &tilewise_attention::cache_leftpad,
    &tilewise_attention::k_new,
    &tilewise_attention::v_new,
    &tilewise_attention::rotary_cos,
    &tilewise_attention::rotary_sin,
    &tilewise_attention::q_descale,
    &tilewise_attention::k_descale,
    &tilewise_attention::v_descale,
    &tilewise_attention::k_scales,
    &tilewise_attention::v_scales,
};

/// Bytes from a tensor's first element to its last one's end.
std::size_t extent(const tilewise_tensor& tensor) {
  const std::size_t sizes[] = {0, 8, 4, 2, 2, 1, 1, 8, 4, 1, 1, 34};
  std::int64_t last = 0;
  for (int dim = 0; dim < tensor.ndim; ++dim) last += (tensor.shape[dim] - 1) * tensor.strides[dim];
  return static_cast<std::size_t>(last + 1) * sizes[tensor.dtype];
}

/// The call as the library can compute it: addresses of the device turned into ours.
bool in_process(const tilewise_attention& given, tilewise_attention& ours) {
  ours = given;
  for (const auto member : tensors) {
    tilewise_tensor& tensor = ours.*member;
    if (tensor.ndim == 0) continue;
    if (tensor.device_type != TILEWISE_CUDA || tensor.device_id != 3) return false;
    tensor.device_type = TILEWISE_CPU;
    tensor.device_id = 0;
    if (tensor.data == nullptr) continue;
    tensor.data = in_block(tensor.data, extent(tensor));
    if (tensor.data == nullptr) return false;
  }
  return true;
}

enum class Wrong : int {
  nothing,
  writes_past_o,
  writes_before_o,
  writes_past_workspace,
  writes_to_k,
  writes_nothing
};
Wrong wrongs[] = {Wrong::nothing,         Wrong::writes_past_o,
                  Wrong::writes_before_o, Wrong::writes_past_workspace,
                  Wrong::writes_to_k,     Wrong::writes_nothing};

tilewise_status supports(void*, const tilewise_attention* given, std::int32_t pass, char* reason,
                         std::size_t reason_bytes) {
  tilewise_attention ours;
  if (!in_process(*given, ours)) return trouble(reason, reason_bytes, "a tensor is elsewhere");
  return plugins::supports(nullptr, &ours, pass, reason, reason_bytes);
}

std::size_t workspace_bytes(void*, const tilewise_attention* given, std::int32_t pass) {
  tilewise_attention ours;
  return in_process(*given, ours) ? plugins::workspace_bytes(nullptr, &ours, pass) : 0;
}

template <std::int32_t pass>
tilewise_status run(void* self, const tilewise_attention* given, const tilewise_plugin_call* call,
                    char* reason, std::size_t reason_bytes) {
  tilewise_attention ours;
  if (!in_process(*given, ours)) return trouble(reason, reason_bytes, "a tensor is elsewhere");
  std::byte* const workspace = in_block(call->workspace, call->workspace_bytes);
  if (call->workspace_bytes > 0 && workspace == nullptr)
    return trouble(reason, reason_bytes, "the workspace is elsewhere");
  const Wrong wrong = *static_cast<const Wrong*>(self);
  auto* const o = static_cast<std::byte*>(ours.o.data);
  if (wrong == Wrong::writes_past_o) o[extent(ours.o) + 4] = std::byte{1};
  if (wrong == Wrong::writes_before_o) o[-3] = std::byte{1};
  if (wrong == Wrong::writes_past_workspace) workspace[call->workspace_bytes] = std::byte{1};
  if (wrong == Wrong::writes_to_k) static_cast<float*>(ours.k.data)[2] += 1;
  if (wrong == Wrong::writes_nothing) return TILEWISE_OK;
  return plugins::run(&ours, pass, workspace, call->workspace_bytes, reason, reason_bytes);
}

constexpr tilewise_plugin_kernel kernel(const char* name, Wrong* self) {
  return {sizeof(tilewise_plugin_kernel),
          TILEWISE_CUDA,
          3,
          TILEWISE_OUTPUT_ALL,
          TILEWISE_OUTPUT_ALL,
          0,
          name,
          "the library's own attention on a device that is none",
          self,
          supports,
          workspace_bytes,
          run<TILEWISE_FORWARD>,
          run<TILEWISE_BACKWARD>};
}

const tilewise_plugin_kernel kernels[] = {
    kernel("device.right", &wrongs[0]),
    kernel("device.writes_past_o", &wrongs[1]),
    kernel("device.writes_before_o", &wrongs[2]),
    kernel("device.writes_past_workspace", &wrongs[3]),
    kernel("device.writes_to_k", &wrongs[4]),
    kernel("device.writes_nothing", &wrongs[5]),
};
const tilewise_plugin_kernel* const pointers[] = {&kernels[0], &kernels[1], &kernels[2],
                                                  &kernels[3], &kernels[4], &kernels[5]};
const tilewise_plugin plugin{sizeof(tilewise_plugin),
                             TILEWISE_PLUGIN_VERSION,
                             sizeof(tilewise_attention),
                             6,
                             pointers,
                             allocate,
                             release,
                             copy_to_device,
                             copy_to_host,
                             synchronize};

}  // namespace

const tilewise_plugin* tilewise_plugin_get(std::uint32_t version) {
  const char* const without = std::getenv("TILEWISE_TEST_WITHOUT");
  static tilewise_plugin partial;
  partial = plugin;
  const std::string_view missing = without == nullptr ? "" : without;
  if (missing == "allocate") partial.allocate = nullptr;
  if (missing == "release") partial.release = nullptr;
  if (missing == "copy_to_device") partial.copy_to_device = nullptr;
  if (missing == "copy_to_host") partial.copy_to_host = nullptr;
  if (missing == "synchronize") partial.synchronize = nullptr;
  return version == TILEWISE_PLUGIN_VERSION ? &partial : nullptr;
}

/// How many allocations of the device there are, for the test.
extern "C" TILEWISE_PLUGIN_EXPORT int test_device_allocations() {
  return static_cast<int>(blocks.size());
}
