// The fuzzed functions, one a target. Each takes any bytes and returns, or stops the process with a
// sentence where what it fuzzes broke a promise (require); a sanitizer stops it for the rest.
//
// fuzz.cpp puts one of them before libFuzzer; replay.cpp runs them over files, with any compiler.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string_view>

namespace tilewise::fuzz {

void fuzz_capi(const std::uint8_t* data, std::size_t size);
void fuzz_problem(const std::uint8_t* data, std::size_t size);
void fuzz_npy(const std::uint8_t* data, std::size_t size);
void fuzz_safetensors(const std::uint8_t* data, std::size_t size);

struct Target {
  std::string_view name;
  void (*run)(const std::uint8_t* data, std::size_t size);
};
inline constexpr Target targets[] = {
    {"capi", fuzz_capi},
    {"problem", fuzz_problem},
    {"npy", fuzz_npy},
    {"safetensors", fuzz_safetensors},
};

inline void require(bool holds, const char* promise, const char* detail = "") {
  if (holds) return;
  std::fprintf(stderr, "broken promise: %s%s%s\n", promise, *detail == '\0' ? "" : ": ", detail);
  std::abort();
}

}  // namespace tilewise::fuzz
