// libFuzzer's entry (llvm.org/docs/LibFuzzer.html), for the target that TILEWISE_FUZZ_TARGET names.
#include "tests/fuzz/targets.hpp"

#if !defined(TILEWISE_FUZZ_TARGET)  // for tools that read this file by itself
#define TILEWISE_FUZZ_TARGET fuzz_capi
#endif

// The name is libFuzzer's. NOLINTNEXTLINE(readability-identifier-naming)
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  tilewise::fuzz::TILEWISE_FUZZ_TARGET(data, size);
  return 0;
}
