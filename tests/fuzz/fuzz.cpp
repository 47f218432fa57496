// libFuzzer's entry (llvm.org/docs/LibFuzzer.html), for the target that TILEWISE_FUZZ_TARGET names.
#include "tests/fuzz/targets.hpp"

// The names are libFuzzer's. NOLINTNEXTLINE(readability-identifier-naming)
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  tilewise::fuzz::TILEWISE_FUZZ_TARGET(data, size);
  return 0;
}
