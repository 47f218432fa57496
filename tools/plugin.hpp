// Plug-ins: kernels in shared libraries (include/tilewise/plugin.h), loaded into the table of
// implementations.
#pragma once

#include "include/tilewise/plugin.h"
#include "oracle/harness/implementation.hpp"

#include <string>
#include <vector>

namespace tilewise::tools {

/// One kernel of a plug-in, on the CPU or on a device of the plug-in's own.
class PluginImplementation final : public harness::Implementation {
 public:
  /// Both tables have been checked and live as long as the process; `path` is the library's.
  PluginImplementation(std::string path, const tilewise_plugin& plugin,
                       const tilewise_plugin_kernel& kernel);

  std::string_view name() const override { return kernel_.name; }
  std::string_view idea() const override { return kernel_.idea; }
  harness::Support supports(const Problem& problem) const override;
  std::size_t workspace_bytes(const Problem& problem) const override;
  harness::Outputs writes(const Problem& problem) const override;
  harness::Outputs repeatable() const override;
  Status run(const harness::Call& call) const override;

  const std::string& path() const { return path_; }
  Device device() const {
    return {static_cast<DeviceType>(kernel_.device_type), kernel_.device_id};
  }

 private:
  /// `attention` as the plug-in's own header has it, or why that is not possible.
  Status as_theirs(const tilewise_attention& attention, const tilewise_attention*& theirs) const;
  tilewise_attention shapes_of(const Problem& problem) const;
  Status compute(const Problem& problem, const AttentionTensors& tensors,
                 const tilewise_plugin_call& call) const;

  std::string path_;
  const tilewise_plugin& plugin_;
  const tilewise_plugin_kernel& kernel_;
  /// Room for a tilewise_attention of the plug-in's size. One call at a time.
  mutable std::vector<std::uint64_t> attention_;
};

/// The kernels of a plug-in. Throws BadInput, in one sentence, for a file that is none or that
/// breaks a rule of plugin.h. The library stays loaded: kernels may have threads of their own.
harness::Table load_plugin(const std::string& path);

/// The table with the kernels of these plug-ins behind it. Throws BadInput also for a name that two
/// implementations would have.
harness::Table with_plugins(harness::Table table, const std::vector<std::string>& paths);

/// The plug-in that an implementation comes from; null for one of ours.
const PluginImplementation* plugin_of(const harness::Implementation& implementation);

/// Throws BadInput if one of these computes on a device, where `what` ("bench") cannot follow.
void require_on_cpu(const std::vector<const harness::Implementation*>& chosen, const char* what);

/// The names of all plug-in kernels in a table, as --impl takes them; empty without any.
std::string plugin_names(const harness::Table& table);

}  // namespace tilewise::tools
