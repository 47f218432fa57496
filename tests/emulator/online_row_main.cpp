// Runs online_row.cu on small numbers that gdb_test.py knows how to make.
#include "cuda/emulator/emulator.hpp"
#include "measured.hpp"

#include <cstdio>
#include <vector>

namespace {

/// Multiples of 1/8 from -1 to 1, exact in any format; gdb_test.py has the same.
std::vector<float> numbers(int count, int step) {
  std::vector<float> values;
  for (int n = 0; n < count; ++n) values.push_back(static_cast<float>(n * step % 17 - 8) / 8);
  return values;
}

}  // namespace

int main() {
  constexpr int rows = 128, keys = 20;
  // In a debugger one wants one thread of the host, and one order.
  tilewise::emulator::Options options;
  options.threads = 1;
  const tilewise::emulator::Session session(options);
  std::vector<float> lse;
  const tilewise::Status status =
      tilewise::tests::online_rows(numbers(rows * tilewise::tests::online_row_dim, 5),
                                   numbers(keys * tilewise::tests::online_row_dim, 7), lse);
  if (!status.ok()) {
    std::puts(status.reason);
    return 1;
  }
  for (const float value : lse) std::printf("%.9g\n", static_cast<double>(value));
  return 0;
}
