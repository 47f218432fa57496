// A plug-in's kernel as an implementation: what the judge asks, put to the C functions.
#include "tools/plugin.hpp"

#include "oracle/harness/buffers.hpp"
#include "tools/capi_implementation.hpp"
#include "tools/plugin_device.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace tilewise::tools {

namespace {
using harness::Outputs;
using harness::Support;

constexpr std::size_t reason_bytes = 220;

Outputs outputs_of(std::uint32_t bits) {
  const auto has = [&](std::uint32_t bit) { return (bits & bit) != 0; };
  return {has(TILEWISE_OUTPUT_O),     has(TILEWISE_OUTPUT_LSE), has(TILEWISE_OUTPUT_DQ),
          has(TILEWISE_OUTPUT_DK),    has(TILEWISE_OUTPUT_DV),  has(TILEWISE_OUTPUT_DBIAS),
          has(TILEWISE_OUTPUT_DSINKS)};
}

/// A backward problem is a forward pass and a backward one.
int passes(const Problem& problem) {
  return problem.pass == Pass::backward ? 2 : 1;
}
constexpr const char* pass_names[] = {"forward", "backward"};
static_assert(TILEWISE_FORWARD == 0 && TILEWISE_BACKWARD == 1);
}  // namespace

PluginImplementation::PluginImplementation(std::string path, const tilewise_plugin& plugin,
                                           const tilewise_plugin_kernel& kernel)
    : path_(std::move(path)),
      plugin_(plugin),
      kernel_(kernel),
      attention_(plugin.attention_size / sizeof(std::uint64_t) + 1) {}

Status PluginImplementation::as_theirs(const tilewise_attention& attention,
                                       const tilewise_attention*& theirs) const {
  const std::size_t size = plugin_.attention_size;
  const auto* const bytes = reinterpret_cast<const unsigned char*>(&attention);
  for (std::size_t i = size; i < sizeof attention; ++i)
    if (bytes[i] != 0)
      return failure(Code::unsupported,
                     "the problem sets a field at byte %zu of tilewise_attention, and the plug-in "
                     "was built with a header that ends at %zu",
                     i, size);
  std::fill(attention_.begin(), attention_.end(), 0);
  std::memcpy(attention_.data(), &attention, std::min(size, sizeof attention));
  auto* const full = reinterpret_cast<tilewise_attention*>(attention_.data());
  full->struct_size = plugin_.attention_size;
  theirs = full;
  return {};
}

tilewise_attention PluginImplementation::shapes_of(const Problem& problem) const {
  AttentionTensors shapes = harness::tensor_shapes(problem, writes(problem));
  for_each_tensor(shapes, [&](std::string_view, TensorView& view) { view.device = device(); });
  return c_attention(problem, shapes);
}

Support PluginImplementation::supports(const Problem& problem) const {
  if (passes(problem) == 2 && kernel_.backward == nullptr)
    return Support::no("the plug-in's kernel has no backward pass");
  const tilewise_attention* theirs = nullptr;
  if (const Status status = as_theirs(shapes_of(problem), theirs); !status.ok())
    return Support::no(status.reason);
  for (std::int32_t pass = 0; pass < passes(problem); ++pass) {
    char reason[reason_bytes] = {};
    const tilewise_status code =
        kernel_.supports(kernel_.self, theirs, pass, reason, sizeof reason - 1);
    if (code == TILEWISE_OK) continue;
    if (code == TILEWISE_UNSUPPORTED && reason[0] != '\0') return Support::no(reason);
    return Support::no(plugin_status("supports", code, reason).reason);
  }
  return Support::yes();
}

std::size_t PluginImplementation::workspace_bytes(const Problem& problem) const {
  if (kernel_.workspace_bytes == nullptr) return 0;
  const tilewise_attention* theirs = nullptr;
  if (!as_theirs(shapes_of(problem), theirs).ok()) return 0;
  std::size_t most = 0;
  for (std::int32_t pass = 0; pass < passes(problem); ++pass)
    most = std::max(most, kernel_.workspace_bytes(kernel_.self, theirs, pass));
  return most;
}

Outputs PluginImplementation::writes(const Problem& problem) const {
  const Outputs all = Implementation::writes(problem), own = outputs_of(kernel_.writes);
  return {all.o && own.o,   all.lse && own.lse,     all.dq && own.dq,        all.dk && own.dk,
          all.dv && own.dv, all.dbias && own.dbias, all.dsinks && own.dsinks};
}

Outputs PluginImplementation::repeatable() const {
  return outputs_of(kernel_.repeatable);
}

Status PluginImplementation::run(const harness::Call& call) const {
  tilewise_plugin_call theirs{sizeof(tilewise_plugin_call), call.threads, call.workspace,
                              call.workspace_bytes, nullptr};
  if (device().type == DeviceType::cpu) return compute(call.problem, call.tensors, theirs);
  DeviceCopy copy(plugin_, device());
  if (Status status = copy.upload(call); !status.ok()) return status;
  theirs.workspace = copy.workspace();
  if (Status status = compute(call.problem, copy.tensors(), theirs); !status.ok()) return status;
  return copy.download();
}

Status PluginImplementation::compute(const Problem& problem, const AttentionTensors& tensors,
                                     const tilewise_plugin_call& call) const {
  const tilewise_attention* theirs = nullptr;
  if (Status status = as_theirs(c_attention(problem, tensors), theirs); !status.ok()) return status;
  for (std::int32_t pass = 0; pass < passes(problem); ++pass) {
    char reason[reason_bytes] = {};
    const tilewise_plugin_run kernel =
        pass == TILEWISE_FORWARD ? kernel_.forward : kernel_.backward;
    const tilewise_status code = kernel(kernel_.self, theirs, &call, reason, sizeof reason - 1);
    if (code != TILEWISE_OK) return plugin_status(pass_names[pass], code, reason);
  }
  return {};
}

}  // namespace tilewise::tools
