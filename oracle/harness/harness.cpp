#include "oracle/harness/harness.hpp"

#include "oracle/harness/buffers.hpp"
#include "oracle/harness/compare.hpp"
#include "oracle/harness/fill.hpp"
#include "oracle/harness/memory_meter.hpp"

#include <algorithm>
#include <chrono>

#include <fmt/format.h>

namespace tilewise::harness {

namespace {

double seconds_of(const std::function<void()>& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// One implementation on one problem, from memory to verdict.
class Judgement {
 public:
  Judgement(const Implementation& implementation, const Problem& problem, const Options& options)
      : implementation_(implementation), problem_(problem), options_(options) {
    verdict_.implementation = implementation.name();
    verdict_.problem = to_string(problem);
    verdict_.reproduce =
        fmt::format("tilewise check \"{}\" --impl {}", verdict_.problem, implementation.name());
  }

  Verdict run() {
    if (const std::string why = inconsistency(problem_); !why.empty()) return error(why);
    if (const Support support = implementation_.supports(problem_); !support.ok) {
      verdict_.state = State::unsupported;
      verdict_.reasons.push_back(support.reason);
      return std::move(verdict_);
    }
    if (Status status = prepare(); !status.ok()) return error(status.reason);

    if (Status status = call_guarded(); !status.ok()) {
      fail(fmt::format("run() answered {}: {}", tilewise::name_of(status.code), status.reason));
      return finish();
    }
    Comparison comparison = compare(problem_, buffers_.tensors(), options_, /*poisoned=*/true);
    verdict_.outputs = std::move(comparison.outputs);
    verdict_.not_checked = std::move(comparison.not_checked);
    verdict_.coverage = std::move(comparison.coverage);
    for (std::string& reason : comparison.reasons) fail(std::move(reason));

    repeat();
    verdict_.bytes_moved = implementation_.bytes_moved(problem_);
    if (options_.measure_memory) measure();
    if (options_.time_seconds > 0) time();
    return finish();
  }

 private:
  Status prepare() {
    if (Status status = buffers_.allocate(problem_, implementation_.writes(problem_)); !status.ok())
      return status;
    std::optional<GuardedBuffer> workspace =
        GuardedBuffer::allocate(implementation_.workspace_bytes(problem_));
    if (!workspace) return failure(Code::no_memory, "no memory for the workspace");
    workspace_ = std::move(*workspace);
    return fill();
  }

  Status fill() {
    buffers_.unprotect_inputs();
    Status status = fill_inputs(problem_, buffers_.tensors(), options_.data_directory);
    if (status.ok()) buffers_.protect_inputs();
    return status;
  }

  Status call() const {
    return implementation_.run({problem_, problem_.params(), buffers_.tensors(), workspace_.data(),
                                workspace_.size(), options_.threads});
  }

  /// Runs once on poisoned memory and looks at everything around the outputs.
  Status call_guarded() {
    buffers_.poison_outputs();
    workspace_.poison();
    Status status;
    {
      const FaultGuard guard;
      status = call();
    }
    bool written = false;
    for (const ProblemBuffers::Named& named : buffers_.all())
      if (named.input)
        if (const std::optional<std::ptrdiff_t> at = named.buffer.first_write()) {
          fail(fmt::format("input: {} was written to, first at byte {}", named.name, *at));
          written = true;
        }
    // The oracle is to see the inputs that were given.
    if (written)
      if (Status refilled = fill(); !refilled.ok()) return refilled;
    if (const std::string broken = buffers_.broken_guard(); !broken.empty())
      fail("guard: " + broken);
    if (!workspace_.guards_intact())
      fail(fmt::format("guard: wrote outside its workspace of {} bytes", workspace_.size()));
    return status;
  }

  /// Runs again: the same bits where that was promised, and correct every time elsewhere.
  void repeat() {
    const std::vector<ProblemBuffers::Snapshot> first = buffers_.snapshot();
    const Outputs promised = implementation_.repeatable();
    const auto is_promised = [&](const std::string& name) {
      return name == "o"     ? promised.o
             : name == "lse" ? promised.lse
             : name == "dq"  ? promised.dq
             : name == "dk"  ? promised.dk
                             : promised.dv;
    };
    bool judge_each = false;
    for (int n = 0; n < options_.repeats; ++n) {
      if (!call_guarded().ok()) {
        fail(fmt::format("repeat: run() failed at repetition {}", n + 1));
        return;
      }
      ++verdict_.repeats;
      for (const ProblemBuffers::Snapshot& now : buffers_.snapshot())
        for (const ProblemBuffers::Snapshot& before : first) {
          if (before.name != now.name || before.bytes == now.bytes) continue;
          if (is_promised(now.name))
            fail(fmt::format(
                "repeat: {} has other bits at repetition {}, and it is declared repeatable",
                now.name, n + 1));
          else
            judge_each = true;
        }
      if (judge_each && verdict_.reasons.empty())
        for (std::string& reason :
             compare(problem_, buffers_.tensors(), options_, /*poisoned=*/true).reasons)
          fail(fmt::format("repeat {}: {}", n + 1, reason));
      if (!verdict_.reasons.empty()) return;
    }
  }

  void measure() {
    verdict_.memory = measure_memory(workspace_.data(), workspace_.size(),
                                     [&] { static_cast<void>(call().ok()); });
    verdict_.memory.workspace_declared = static_cast<std::int64_t>(workspace_.size());
  }

  void time() {
    std::vector<double> seconds;
    double spent = 0;
    constexpr std::size_t fewest = 3, most = 1000;
    while (seconds.size() < fewest || (spent < options_.time_seconds && seconds.size() < most)) {
      seconds.push_back(seconds_of([&] { static_cast<void>(call().ok()); }));
      spent += seconds.back();
    }
    std::sort(seconds.begin(), seconds.end());
    verdict_.time = {static_cast<int>(seconds.size()), seconds[seconds.size() / 2], seconds.front(),
                     seconds.back(), problem_.flops()};
  }

  void fail(std::string reason) {
    if (std::find(verdict_.reasons.begin(), verdict_.reasons.end(), reason) ==
        verdict_.reasons.end())
      verdict_.reasons.push_back(std::move(reason));
  }

  Verdict error(std::string why) {
    verdict_.state = State::error;
    verdict_.reasons.push_back(std::move(why));
    return std::move(verdict_);
  }

  Verdict finish() {
    verdict_.state = verdict_.reasons.empty() ? State::pass : State::fail;
    return std::move(verdict_);
  }

  const Implementation& implementation_;
  const Problem& problem_;
  const Options& options_;
  ProblemBuffers buffers_;
  GuardedBuffer workspace_;
  Verdict verdict_;
};

}  // namespace

Verdict check(const Implementation& implementation, const Problem& problem,
              const Options& options) {
  return Judgement(implementation, problem, options).run();
}

Verdict check(const Implementation& implementation, std::string_view line, const Options& options) {
  const auto parsed = parse_problem(line);
  if (const ParseError* error = std::get_if<ParseError>(&parsed)) {
    Verdict verdict;
    verdict.state = State::error;
    verdict.implementation = implementation.name();
    verdict.problem = line;
    verdict.reasons.push_back(error->explain(line));
    return verdict;
  }
  return check(implementation, std::get<Problem>(parsed), options);
}

Verdict judge(const Problem& problem, const AttentionTensors& tensors, const Options& options) {
  Verdict verdict;
  verdict.implementation = "given outputs";
  verdict.problem = to_string(problem);
  if (const std::string why = inconsistency(problem); !why.empty()) {
    verdict.reasons.push_back(why);
    return verdict;
  }
  Comparison comparison = compare(problem, tensors, options, /*poisoned=*/false);
  verdict.outputs = std::move(comparison.outputs);
  verdict.not_checked = std::move(comparison.not_checked);
  verdict.coverage = std::move(comparison.coverage);
  verdict.reasons = std::move(comparison.reasons);
  verdict.state = verdict.reasons.empty() ? State::pass : State::fail;
  return verdict;
}

}  // namespace tilewise::harness
