// See prepared.hpp.
#include "tools/prepared.hpp"

#include "oracle/harness/fill.hpp"
#include "oracle/harness/memory_meter.hpp"
#include "tools/common.hpp"
#include "tools/tensors.hpp"

#include <fmt/core.h>

#include <optional>
#include <utility>

namespace tilewise::tools {

Prepared::Prepared(const harness::Implementation& implementation, const Problem& problem,
                   const std::string& data_directory, int threads)
    : implementation_(implementation), problem_(problem), threads_(threads) {
  allocate();
  require(harness::fill_inputs(problem_, tensors(), data_directory));
}

Prepared::Prepared(const harness::Implementation& implementation, const Problem& problem,
                   const AttentionTensors& inputs, int threads)
    : implementation_(implementation), problem_(problem), threads_(threads) {
  allocate();
  for (const TensorName& row : tensor_names)
    if (row.input && (tensors().*row.view).exists())
      copy_elements(inputs.*row.view, tensors().*row.view);
}

void Prepared::allocate() {
  const harness::Support support = implementation_.supports(problem_);
  if (!support.ok)
    throw BadInput(fmt::format("{} does not serve \"{}\": {}", implementation_.name(),
                               to_string(problem_), support.reason));
  require(buffers_.allocate(problem_, implementation_.writes(problem_)));
  workspace_bytes_ = implementation_.workspace_bytes(problem_);
  if (workspace_bytes_ == 0) return;
  auto workspace = harness::GuardedBuffer::allocate(workspace_bytes_);
  if (!workspace)
    throw BadInput(fmt::format("{} wants {} of workspace: there is not enough memory",
                               implementation_.name(),
                               bytes_text(static_cast<double>(workspace_bytes_))));
  workspace_ = std::move(*workspace);
}

void Prepared::run() {
  const Status status = implementation_.run(harness::Call{
      problem_, problem_.params(), tensors(), workspace_.data(), workspace_bytes_, threads_});
  if (!status.ok())
    throw BadInput(fmt::format("{} could not compute \"{}\": {}", implementation_.name(),
                               to_string(problem_), status.reason));
}

harness::MemoryReport Prepared::measure_memory() {
  std::optional<BadInput> failure;  // the call runs on another thread, where none may escape
  harness::MemoryReport report = harness::measure_memory(workspace_.data(), workspace_bytes_, [&] {
    try {
      run();
    } catch (const BadInput& error) {
      failure = error;
    }
  });
  if (failure) throw *failure;
  report.workspace_declared = static_cast<std::int64_t>(workspace_bytes_);
  return report;
}

}  // namespace tilewise::tools
