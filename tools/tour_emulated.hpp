// The CUDA steps of the course under the emulator: judged like all others, and counted. A table of
// its own, with its own, small sizes: an emulator's time says nothing of a GPU's.
#pragma once

#include "cuda/emulator/emulator.hpp"
#include "oracle/harness/implementation.hpp"
#include "oracle/harness/verdict.hpp"

#include <string>
#include <vector>

namespace tilewise::tools {

struct EmulatedRun {
  std::string implementation, idea;
  harness::Verdict verdict;
  emulator::Report report;
};

#if defined(TILEWISE_HAVE_EMULATOR)

/// The CUDA steps, in the course's order, and the kernels that are shipped.
harness::Table emulated_implementations(const emulator::Options& options);
/// With a trace of who did what when.
harness::Table emulated_implementations();

EmulatedRun run_emulated(const harness::Implementation& implementation, bool quick);

std::string emulated_text(const std::vector<EmulatedRun>& runs);
std::string emulated_html(const std::vector<EmulatedRun>& runs);
/// Of one run's report: emulator::to_json's text.
std::string emulated_json(const EmulatedRun& run);

#else

inline harness::Table emulated_implementations() {
  return {};
}
inline EmulatedRun run_emulated(const harness::Implementation&, bool) {
  return {};
}
inline std::string emulated_text(const std::vector<EmulatedRun>&) {
  return {};
}
inline std::string emulated_html(const std::vector<EmulatedRun>&) {
  return {};
}
inline std::string emulated_json(const EmulatedRun&) {
  return "null";
}

#endif

}  // namespace tilewise::tools
