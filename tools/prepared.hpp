// One implementation on one problem, ready to be called again and again: tensors filled, scratch
// memory there. What `run`, `bench` and the tour's memory curve share.
#pragma once

#include "oracle/harness/buffers.hpp"
#include "oracle/harness/implementation.hpp"
#include "oracle/harness/verdict.hpp"

#include <memory>
#include <string>

namespace tilewise::tools {

class Prepared {
 public:
  /// With generated inputs. Throws BadInput when the implementation does not serve the problem.
  Prepared(const harness::Implementation& implementation, const Problem& problem,
           const std::string& data_directory, int threads);
  /// With a copy of these inputs.
  Prepared(const harness::Implementation& implementation, const Problem& problem,
           const AttentionTensors& inputs, int threads);

  /// Calls the implementation once; throws BadInput with its reason when it refuses.
  void run();

  harness::MemoryReport measure_memory();

  const harness::Implementation& implementation() const { return implementation_; }
  const Problem& problem() const { return problem_; }
  const AttentionTensors& tensors() const { return buffers_.tensors(); }

 private:
  void allocate();

  const harness::Implementation& implementation_;
  Problem problem_;
  int threads_;
  harness::ProblemBuffers buffers_;
  std::size_t workspace_bytes_ = 0;
  harness::GuardedBuffer workspace_;
};

}  // namespace tilewise::tools
