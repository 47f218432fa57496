#include "oracle/harness/session.hpp"

#include "oracle/harness/fill.hpp"
#include "oracle/harness/memory_meter.hpp"

#include <fmt/format.h>

#include <chrono>

namespace tilewise::harness {

Status Session::allocate() {
  if (const Support support = implementation_.supports(problem_); !support.ok)
    return failure(Code::unsupported, "%s", support.reason.c_str());
  if (Status status = buffers_.allocate(problem_, implementation_.writes(problem_)); !status.ok())
    return status;
  const std::size_t bytes = implementation_.workspace_bytes(problem_);
  std::optional<GuardedBuffer> workspace = GuardedBuffer::allocate(bytes);
  if (!workspace)
    return failure(Code::no_memory, "the workspace of %zu bytes is more memory than there is",
                   bytes);
  workspace_ = std::move(*workspace);
  return {};
}

Status Session::fill(const std::string& data_directory) {
  buffers_.unprotect_inputs();
  Status status = fill_inputs(problem_, buffers_.tensors(), data_directory);
  if (!status.ok()) return status;
  buffers_.remember_updated();
  buffers_.protect_inputs();
  return status;
}

Status Session::run(double* device_seconds) const {
  return implementation_.run({problem_, problem_.params(), buffers_.tensors(), workspace_.data(),
                              workspace_.size(), threads_, device_seconds});
}

Status Session::call() const {
  return run(nullptr);
}

Status Session::timed_call(double& seconds) const {
  double device_seconds = -1;
  const auto start = std::chrono::steady_clock::now();
  Status status = run(&device_seconds);
  seconds = device_seconds >= 0
                ? device_seconds
                : std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return status;
}

Status Session::call_on_poison() {
  buffers_.poison_outputs();
  workspace_.poison();
  const FaultGuard guard;
  return call();
}

std::vector<std::string> Session::trespasses(bool& input_written) const {
  std::vector<std::string> sentences;
  input_written = false;
  for (const ProblemBuffers::Named& named : buffers_.all())
    if (named.use == ProblemBuffers::Use::input)
      if (const std::optional<std::ptrdiff_t> at = named.buffer.first_write()) {
        sentences.push_back(
            fmt::format("input: {} was written to, first at byte {}", named.name, *at));
        input_written = true;
      }
  if (const std::string broken = buffers_.broken_guard(); !broken.empty())
    sentences.push_back("guard: " + broken);
  if (const std::string changed = buffers_.changed_cache(problem_); !changed.empty())
    sentences.push_back("cache: " + changed);
  if (!workspace_.guards_intact())
    sentences.push_back(
        fmt::format("guard: wrote outside its workspace of {} bytes", workspace_.size()));
  return sentences;
}

MemoryReport Session::measure_memory() {
  Status status;
  MemoryReport report =
      harness::measure_memory(workspace_.data(), workspace_.size(), [&] { status = call(); });
  report.workspace_declared = static_cast<std::int64_t>(workspace_.size());
  if (!status.ok()) {
    report.measured = false;
    report.why = status.reason;
  }
  return report;
}

}  // namespace tilewise::harness
