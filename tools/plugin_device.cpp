#include "tools/plugin_device.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <optional>
#include <string_view>
#include <utility>

namespace tilewise::tools {

namespace {
constexpr std::size_t band_bytes = 4096;  // GuardedBuffer's bands are no smaller
constexpr std::uintptr_t alignment = 256;

/// What the elements of a view take up, as bytes from its data: [begin, end).
std::pair<std::int64_t, std::int64_t> extent(const TensorView& view) {
  std::int64_t lowest = 0, highest = 0;
  for (int dim = 0; dim < view.ndim; ++dim) {
    if (view.shape[dim] == 0) return {0, 0};
    const std::int64_t last = (view.shape[dim] - 1) * view.strides[dim];
    (last < 0 ? lowest : highest) += last;
  }
  const auto size = static_cast<std::int64_t>(size_of(view.dtype));
  return {lowest * size, (highest + 1) * size};
}

bool is_output(std::string_view name, const AttentionTensors& tensors) {
  constexpr std::string_view outputs[] = {"o", "lse", "dq", "dk", "dv", "dbias", "dsinks"};
  if (tensors.cache.appends() && (name == "k" || name == "v")) return true;
  return std::find(std::begin(outputs), std::end(outputs), name) != std::end(outputs);
}
}  // namespace

Status plugin_status(const char* what, tilewise_status code, const char* reason) {
  if (code == TILEWISE_OK) return {};
  const bool known = code == TILEWISE_BAD_ARGUMENT || code == TILEWISE_UNSUPPORTED ||
                     code == TILEWISE_NO_MEMORY || code == TILEWISE_FAILED;
  const char* const because = reason[0] == '\0' ? "it gave no reason" : reason;
  if (!known)
    return failure(Code::failed, "%s answered %d, which is no status: %.160s", what, code, because);
  return failure(static_cast<Code>(code), "%s: %.200s", what, because);
}

DeviceCopy::~DeviceCopy() {
  char reason[8];
  for (const Region& region : regions_)
    if (region.device != nullptr)
      (void)plugin_.release(device_.id, region.device, reason, sizeof reason);
}

void DeviceCopy::add(std::string name, Use use, void* host, std::size_t bytes) {
  if (bytes > 0) regions_.push_back({std::move(name), use, static_cast<std::byte*>(host), bytes});
}

// What is written to in any of the tensors that share memory is not expected to stay as it was.
void DeviceCopy::merge_overlapping() {
  std::sort(regions_.begin(), regions_.end(),
            [](const Region& a, const Region& b) { return a.host < b.host; });
  std::vector<Region> merged;
  for (Region& region : regions_) {
    if (merged.empty() || region.host >= merged.back().host + merged.back().bytes) {
      merged.push_back(std::move(region));
      continue;
    }
    Region& last = merged.back();
    last.name += " and " + region.name;
    last.use = std::max(last.use, region.use);
    last.bytes =
        std::max(last.bytes, static_cast<std::size_t>(region.host - last.host) + region.bytes);
  }
  regions_ = std::move(merged);
}

Status DeviceCopy::upload(const harness::Call& call) {
  host_tensors_ = call.tensors;
  host_workspace_ = call.workspace;
  for_each_tensor(call.tensors, [&](std::string_view name, const TensorView& view) {
    if (view.ndim == 0) return;
    const auto [begin, end] = extent(view);
    add(std::string(name), is_output(name, call.tensors) ? Use::output : Use::input,
        static_cast<std::byte*>(view.data) + begin, static_cast<std::size_t>(end - begin));
  });
  add("its workspace", Use::workspace, call.workspace, call.workspace_bytes);
  merge_overlapping();
  for (Region& region : regions_)
    if (Status status = upload(region); !status.ok()) return status;
  return {};
}

Status DeviceCopy::upload(Region& region) const {
  std::optional<harness::GuardedBuffer> staging = harness::GuardedBuffer::allocate(region.bytes);
  if (!staging)
    return failure(Code::no_memory, "copying %s takes %zu bytes, and they are not there",
                   region.name.c_str(), region.bytes);
  region.staging = std::move(*staging);
  std::memcpy(region.staging.data(), region.host, region.bytes);

  const std::size_t bytes = region.bytes + 2 * band_bytes;
  char reason[200] = {};
  tilewise_status code =
      plugin_.allocate(device_.id, bytes, &region.device, reason, sizeof reason - 1);
  if (code != TILEWISE_OK) {
    region.device = nullptr;
    return plugin_status("allocate", code, reason);
  }
  if (region.device == nullptr)
    return failure(Code::failed, "allocate answered ok and a null pointer for %zu bytes", bytes);
  if (reinterpret_cast<std::uintptr_t>(region.device) % alignment != 0)
    return failure(Code::failed, "allocate answered an address that is no multiple of %zu",
                   static_cast<std::size_t>(alignment));
  code = plugin_.copy_to_device(device_.id, region.device, region.staging.data() - band_bytes,
                                bytes, reason, sizeof reason - 1);
  return plugin_status("copy_to_device", code, reason);
}

void* DeviceCopy::on_device(const void* host) const {
  const auto* const address = static_cast<const std::byte*>(host);
  for (const Region& region : regions_)
    if (address >= region.host && address < region.host + region.bytes)
      return static_cast<std::byte*>(region.device) + band_bytes + (address - region.host);
  return nullptr;  // it has no elements
}

AttentionTensors DeviceCopy::tensors() const {
  AttentionTensors tensors = host_tensors_;
  for_each_tensor(tensors, [&](std::string_view, TensorView& view) {
    if (view.ndim == 0) return;
    const auto [begin, end] = extent(view);
    view.data = begin == end ? nullptr : on_device(view.data);
    view.device = device_;
  });
  return tensors;
}

void* DeviceCopy::workspace() const {
  return on_device(host_workspace_);
}

Status DeviceCopy::download() {
  char reason[200] = {};
  const tilewise_status code = plugin_.synchronize(device_.id, nullptr, reason, sizeof reason - 1);
  if (code != TILEWISE_OK) return plugin_status("synchronize", code, reason);
  Status first;
  for (Region& region : regions_)
    if (Status status = download(region); !status.ok() && first.ok()) first = status;
  return first;
}

Status DeviceCopy::download(Region& region) const {
  harness::GuardedBuffer& staging = region.staging;
  char reason[200] = {};
  const tilewise_status code =
      plugin_.copy_to_host(device_.id, staging.data() - band_bytes, region.device,
                           region.bytes + 2 * band_bytes, reason, sizeof reason - 1);
  if (code != TILEWISE_OK) return plugin_status("copy_to_host", code, reason);
  const char* const name = region.name.c_str();
  if (const std::optional<std::ptrdiff_t> where = staging.first_broken()) {
    if (*where < 0)
      return failure(Code::failed, "on the device, it wrote %td bytes before the start of %s",
                     -*where, name);
    return failure(Code::failed,
                   "on the device, it wrote past the end of %s: %td bytes behind its last element",
                   name, *where - static_cast<std::ptrdiff_t>(region.bytes) + 1);
  }
  if (region.use == Use::output) std::memcpy(region.host, staging.data(), region.bytes);
  if (region.use != Use::input) return {};
  const auto changed = std::mismatch(region.host, region.host + region.bytes, staging.data()).first;
  if (changed == region.host + region.bytes) return {};
  return failure(Code::failed, "on the device, it wrote to its input %s, first at byte %td", name,
                 changed - region.host);
}

}  // namespace tilewise::tools
