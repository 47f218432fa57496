// Two copies of Tilewise, each by its own name, and the same numbers.
#include "caller.hpp"

#include <cstdio>
#include <cstring>

int main() {
  const Answer first = one(), second = two();
  if (first.numbers.empty() || second.numbers.empty()) {
    std::puts("a call failed");
    return 1;
  }
  if (first.forward == second.forward) {
    std::puts("both callers reach the same function: there is one copy, not two");
    return 1;
  }
  if (first.numbers.size() != second.numbers.size() ||
      std::memcmp(first.numbers.data(), second.numbers.data(),
                  first.numbers.size() * sizeof(float)) != 0) {
    std::puts("the copies do not agree");
    return 1;
  }
  double sum = 0;
  for (const float number : first.numbers) sum += number < 0 ? -number : number;
  std::printf("%zu numbers, sum of magnitudes %g\n", first.numbers.size(), sum);
  return sum > 0 ? 0 : 1;
}
