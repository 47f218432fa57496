// A call's tensors on a plug-in's device: copied over before a kernel runs, looked at and copied
// back after it.
//
// Every tensor stands between guard bands there as it does here, and arrives with the contents that
// it has here: outputs and workspace poisoned, if the judge has poisoned them.
#pragma once

#include "include/tilewise/plugin.h"
#include "oracle/harness/implementation.hpp"
#include "oracle/harness/protect.hpp"

#include <cstddef>
#include <string>
#include <vector>

namespace tilewise::tools {

/// What a plug-in's function answered, as ours: `what` says which function it was.
Status plugin_status(const char* what, tilewise_status code, const char* reason);

class DeviceCopy {
 public:
  DeviceCopy(const tilewise_plugin& plugin, Device device) : plugin_(plugin), device_(device) {}
  ~DeviceCopy();
  DeviceCopy(const DeviceCopy&) = delete;
  DeviceCopy& operator=(const DeviceCopy&) = delete;

  /// Copies what the call has to the device.
  Status upload(const harness::Call& call);
  /// The call's tensors and workspace there.
  AttentionTensors tensors() const;
  void* workspace() const;
  /// Waits for the kernel, copies back what it was to write, and answers whether it wrote anything
  /// else.
  Status download();

 private:
  enum class Use : std::uint8_t { input, output, workspace };

  /// Host memory that tensors lie in. Tensors that share memory here share it there.
  struct Region {
    std::string name;
    Use use;
    std::byte* host;
    std::size_t bytes;
    harness::GuardedBuffer staging = {};  ///< what is copied: with guard bands
    void* device = nullptr;               ///< of the lower guard band
  };

  void add(std::string name, Use use, void* host, std::size_t bytes);
  void merge_overlapping();
  Status upload(Region& region) const;
  Status download(Region& region) const;
  void* on_device(const void* host) const;

  const tilewise_plugin& plugin_;
  Device device_;
  AttentionTensors host_tensors_{};
  void* host_workspace_ = nullptr;
  std::vector<Region> regions_;
};

}  // namespace tilewise::tools
