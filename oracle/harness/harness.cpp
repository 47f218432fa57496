#include "oracle/harness/harness.hpp"

#include "oracle/harness/compare.hpp"
#include "oracle/harness/session.hpp"

#include <algorithm>

#include <fmt/format.h>

namespace tilewise::harness {

namespace {

/// One implementation on one problem, from memory to verdict.
class Judgement {
 public:
  Judgement(const Implementation& implementation, const Problem& problem, const Options& options)
      : implementation_(implementation),
        problem_(problem),
        options_(options),
        session_(implementation, problem, options.threads) {
    verdict_.implementation = implementation.name();
    verdict_.problem = to_string(problem);
    verdict_.reproduce =
        fmt::format("tilewise check \"{}\" --impl {}", verdict_.problem, implementation.name());
  }

  Verdict run() {
    if (const std::string why = inconsistency(problem_); !why.empty())
      return end_as(State::error, why);
    Status status = session_.allocate();
    if (status.code == Code::unsupported) return end_as(State::unsupported, status.reason);
    if (status.ok()) status = session_.fill(options_.data_directory);
    if (!status.ok()) return end_as(State::error, status.reason);

    if (status = call(); !status.ok()) {
      fail(fmt::format("run() answered {}: {}", tilewise::name_of(status.code), status.reason));
      return finish();
    }
    Comparison comparison = compare(problem_, session_.tensors(), options_, /*poisoned=*/true);
    verdict_.outputs = std::move(comparison.outputs);
    verdict_.not_checked = std::move(comparison.not_checked);
    verdict_.coverage = std::move(comparison.coverage);
    for (std::string& reason : comparison.reasons) fail(std::move(reason));

    repeat();
    verdict_.bytes_moved = implementation_.bytes_moved(problem_);
    if (options_.measure_memory) verdict_.memory = session_.measure_memory();
    if (options_.time_seconds > 0) time();
    return finish();
  }

 private:
  /// Runs once on poisoned memory and looks at everything around the outputs.
  Status call() {
    Status status = session_.call_on_poison();
    bool input_written = false;
    for (std::string& sentence : session_.trespasses(input_written)) fail(std::move(sentence));
    // The oracle is to see the inputs that were given.
    if (input_written)
      if (Status refilled = session_.fill(options_.data_directory); !refilled.ok()) return refilled;
    return status;
  }

  /// Runs again: the same bits where that was promised, and correct every time elsewhere.
  void repeat() {
    const std::vector<ProblemBuffers::Snapshot> first = session_.buffers().snapshot();
    const Outputs promised = implementation_.repeatable();
    const auto is_promised = [&](const std::string& name) {
      const std::pair<const char*, bool> outputs[] = {
          {"o", promised.o},           {"lse", promised.lse}, {"dq", promised.dq},
          {"dk", promised.dk},         {"dv", promised.dv},   {"dbias", promised.dbias},
          {"dsinks", promised.dsinks}, {"k", promised.o},     {"v", promised.o}};
      return std::any_of(std::begin(outputs), std::end(outputs),
                         [&](const auto& output) { return name == output.first && output.second; });
    };
    bool judge_each = false;
    for (int n = 0; n < options_.repeats; ++n) {
      if (!call().ok()) {
        fail(fmt::format("repeat: run() failed at repetition {}", n + 1));
        return;
      }
      ++verdict_.repeats;
      for (const ProblemBuffers::Snapshot& now : session_.buffers().snapshot())
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
             compare(problem_, session_.tensors(), options_, /*poisoned=*/true).reasons)
          fail(fmt::format("repeat {}: {}", n + 1, reason));
      if (!verdict_.reasons.empty()) return;
    }
  }

  void time() {
    std::vector<double> seconds;
    double spent = 0;
    constexpr std::size_t fewest = 3, most = 1000;
    while (seconds.size() < fewest || (spent < options_.time_seconds && seconds.size() < most)) {
      static_cast<void>(session_.timed_call(seconds.emplace_back()).ok());
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

  Verdict end_as(State state, std::string why) {
    verdict_.state = state;
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
  Session session_;
  Verdict verdict_;
};

}  // namespace

Verdict check(const Implementation& implementation, const Problem& problem,
              const Options& options) {
  return Judgement(implementation, problem, options).run();
}

Verdict check(const Implementation& implementation, std::string_view problem,
              const Options& options) {
  const auto parsed = parse_problem(problem);
  if (const ParseError* error = std::get_if<ParseError>(&parsed)) {
    Verdict verdict;
    verdict.state = State::error;
    verdict.implementation = implementation.name();
    verdict.problem = problem;
    verdict.reasons.push_back(error->explain(problem));
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
