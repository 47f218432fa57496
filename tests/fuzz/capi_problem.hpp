// A problem for the C interface out of a fuzzer's bytes: first one that is sound, in any of its
// forms; then edits that may spoil it; then memory, and lengths and tables in it.
#pragma once

#include "include/tilewise/tilewise.h"
#include "tests/fuzz/capi_bytes.hpp"
#include "tests/fuzz/capi_memory.hpp"

#include <initializer_list>

namespace tilewise::fuzz {

struct CapiProblem {
  tilewise_attention attention;
  std::int32_t pass;
};
CapiProblem choose_problem(Bytes& bytes, Memory& memory);

/// A tensor of one of the layouts that callers have; it has no memory yet.
tilewise_tensor tensor_of(Bytes& bytes, std::int32_t dtype,
                          std::initializer_list<std::int64_t> shape);

/// One field of a tensor becomes anything.
void edit(Bytes& bytes, tilewise_tensor& tensor);

/// About how many multiplications a call makes: a fuzzer wants thousands of calls a second.
double work_of(const tilewise_attention& attention);
inline constexpr double most_work = 1 << 14;

}  // namespace tilewise::fuzz
