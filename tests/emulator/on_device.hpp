// For the .cu files of this folder: memory of the device filled and fetched, and the usual run, one
// tensor in and one out.
#pragma once

#include "cuda/device/launch.hpp"
#include "cuda/device/memory.hpp"
#include "cuda/device/platform.hpp"
#include "planted.hpp"

#include <cstddef>
#include <type_traits>
#include <vector>

namespace tilewise::tests::inline TILEWISE_TARGET {

using device::Grid;
using device::Memory;
using device::Site;

/// 1, 2, 3 ...: sums of a few of them are exact, and no two are alike.
template <class T = float>
std::vector<T> counted(std::size_t count) {
  std::vector<T> values(count);
  for (std::size_t n = 0; n < count; ++n) values[n] = static_cast<T>(n + 1);
  return values;
}

template <class T>
Status uploaded(Memory<T>& memory, const std::vector<T>& values, const char* name) {
  Status status = memory.allocate(values.size(), name);
  if (status.ok()) status = memory.upload(values.data());
  return status;
}

template <class T>
std::vector<T> downloaded(const Memory<T>& memory) {
  std::vector<T> values(memory.size());
  if (!memory.download(values.data()).ok()) values.clear();
  return values;
}

/// Launches kernel(in, out, more...); `out` is not initialised, and right if it is `expected`.
template <class T, class... More>
Ran run(const char* name, void (*kernel)(const T*, T*, More...), const Grid& grid,
        const std::vector<T>& in, const std::vector<T>& expected,
        std::type_identity_t<More>... more) {
  Memory<T> from, to;
  Ran ran;
  ran.status = uploaded(from, in, "in");
  if (ran.status.ok()) ran.status = to.allocate(expected.size(), "out");
  if (!ran.status.ok()) return ran;
  ran.status = device::launch(name, kernel, grid, from.data(), to.data(), more...);
  if (ran.status.ok()) ran.right = downloaded(to) == expected;
  return ran;
}

}  // namespace tilewise::tests::inline TILEWISE_TARGET
