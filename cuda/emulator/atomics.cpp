// Atomic operations, on memory that other blocks change at the same time.
#include "cuda/emulator/services.hpp"

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>

namespace tilewise::emulator {
namespace {

/// Every bit counts: -0 is not 0, a NaN is itself.
template <class T>
bool differ(T a, T b) {
  using Bytes = std::array<std::byte, sizeof(T)>;
  return std::bit_cast<Bytes>(a) != std::bit_cast<Bytes>(b);
}

template <class T>
T changed(T* at, T value, T (*function)(T, T), Site site) {
  note_atomic(at, sizeof(T), site);
  std::atomic_ref<T> there(*at);
  T before = there.load();
  T after = function(before, value);
  while (!there.compare_exchange_weak(before, after)) after = function(before, value);
  note_outcome(at, differ(before, after), site);
  return before;
}

template <class T>
T swapped(T* at, T expected, T value, Site site) {
  note_atomic(at, sizeof(T), site);
  T before = expected;
  const bool swaps = std::atomic_ref<T>(*at).compare_exchange_strong(before, value);
  note_outcome(at, swaps && expected != value, site);
  return before;
}

}  // namespace

float change(float* at, float value, float (*function)(float, float), Site site) {
  return changed(at, value, function, site);
}
double change(double* at, double value, double (*function)(double, double), Site site) {
  return changed(at, value, function, site);
}
int change(int* at, int value, int (*function)(int, int), Site site) {
  return changed(at, value, function, site);
}
unsigned change(unsigned* at, unsigned value, unsigned (*function)(unsigned, unsigned), Site site) {
  return changed(at, value, function, site);
}
int compare_and_swap(int* at, int expected, int value, Site site) {
  return swapped(at, expected, value, site);
}
unsigned compare_and_swap(unsigned* at, unsigned expected, unsigned value, Site site) {
  return swapped(at, expected, value, site);
}

}  // namespace tilewise::emulator
