// Session: one implementation on one problem, ready to be called again and again. What judging,
// timing and measuring share.
#pragma once

#include "buffers.hpp"
#include "implementation.hpp"
#include "verdict.hpp"

#include <optional>
#include <string>

namespace tilewise::harness {

class Session {
 public:
  /// `implementation` must outlive the session. `threads` is handed to it; 0: all of the machine's.
  Session(const Implementation& implementation, const Problem& problem, int threads = 0)
      : implementation_(implementation), problem_(problem), threads_(threads) {}

  /// Memory for every tensor and the workspace. `unsupported` if the implementation does not serve
  /// the problem.
  Status allocate();
  /// Writes the inputs as the problem's fill says, and makes them read-only. A second time, too.
  Status fill(const std::string& data_directory = {});

  /// One call of the implementation on the memory as it is.
  Status call() const;
  /// The same, timed: by the device's clock if the implementation has one, else by the host's.
  Status timed_call(double& seconds) const;
  /// One call on poisoned outputs and workspace, writes to inputs let through and remembered.
  Status call_on_poison();

  /// Sentences on what the last call did that it must not: wrote beside a tensor or its workspace,
  /// or to an input (`input_written` tells that one of them was).
  std::vector<std::string> trespasses(bool& input_written) const;

  /// Extra memory of one call (memory_meter.hpp). Contents of outputs and workspace are lost.
  MemoryReport measure_memory();

  const Problem& problem() const { return problem_; }
  const Implementation& implementation() const { return implementation_; }
  ProblemBuffers& buffers() { return buffers_; }
  const AttentionTensors& tensors() const { return buffers_.tensors(); }

 private:
  Status run(double* device_seconds) const;

  const Implementation& implementation_;
  Problem problem_;
  int threads_;
  ProblemBuffers buffers_;
  GuardedBuffer workspace_;
};

}  // namespace tilewise::harness
