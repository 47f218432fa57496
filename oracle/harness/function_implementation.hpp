// An Implementation made from a function: no class to write.
//
//   auto mine = make_implementation("mine.flash", [](const Call& call) -> Status { ... });
#pragma once

#include "implementation.hpp"

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace tilewise::harness {

/// What else can be said of a kernel. What is left out means: it serves every problem, wants no
/// workspace, writes every output of the pass, and gives the same bits at every call.
struct FunctionTraits {
  std::string idea = {};
  std::function<Support(const Problem&)> supports = {};
  std::function<std::size_t(const Problem&)> workspace_bytes = {};
  /// Of the outputs that a problem has, those that it writes: {.o = true} for a kernel without LSE.
  Outputs writes = Outputs::all();
  Outputs repeatable = Outputs::all();
  std::function<std::optional<double>(const Problem&)> bytes_moved = {};
};

class FunctionImplementation final : public Implementation {
 public:
  using Function = std::function<Status(const Call&)>;

  FunctionImplementation(std::string name, Function function, FunctionTraits traits = {})
      : name_(std::move(name)), function_(std::move(function)), traits_(std::move(traits)) {}

  std::string_view name() const override { return name_; }
  std::string_view idea() const override { return traits_.idea; }
  Support supports(const Problem& problem) const override {
    return traits_.supports ? traits_.supports(problem) : Support::yes();
  }
  std::size_t workspace_bytes(const Problem& problem) const override {
    return traits_.workspace_bytes ? traits_.workspace_bytes(problem) : 0;
  }
  Outputs writes(const Problem& problem) const override {
    const Outputs all = Implementation::writes(problem);
    const Outputs& own = traits_.writes;
    return {all.o && own.o,   all.lse && own.lse,     all.dq && own.dq,        all.dk && own.dk,
            all.dv && own.dv, all.dbias && own.dbias, all.dsinks && own.dsinks};
  }
  Outputs repeatable() const override { return traits_.repeatable; }
  std::optional<double> bytes_moved(const Problem& problem) const override {
    return traits_.bytes_moved ? traits_.bytes_moved(problem) : std::nullopt;
  }
  Status run(const Call& call) const override { return function_(call); }

 private:
  std::string name_;
  Function function_;
  FunctionTraits traits_;
};

inline FunctionImplementation make_implementation(std::string name,
                                                  FunctionImplementation::Function function,
                                                  FunctionTraits traits = {}) {
  return {std::move(name), std::move(function), std::move(traits)};
}

}  // namespace tilewise::harness
