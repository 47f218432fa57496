// Bytes of shared memory: each has a writer of its own, whatever lies beside it.
#include "cuda/device/ptx/vector_access.hpp"
#include "on_device.hpp"

#include <cstdint>

namespace tilewise::tests::inline TILEWISE_TARGET {
namespace {

constexpr unsigned threads = 64;

// A mask with a byte a thread; or, wrongly, a byte for two.
template <bool buggy>
__global__ void flags(const float* in, float* out) {
  __shared__ std::uint8_t flag[threads];
  const unsigned t = threadIdx.x, at = buggy ? t / 2 : t;
  flag[at] = in[t] > 20;  // bug: byte_for_two
  __syncthreads();
  out[t] = flag[at] != 0 ? in[t] : 0;
}

Ran run_flags(bool buggy) {
  std::vector<float> expected = counted(threads);
  for (float& value : expected)
    if (value <= 20) value = 0;
  return run("flags", buggy ? flags<true> : flags<false>, {{1}, {threads}}, counted(threads),
             expected);
}

__device__ inline unsigned sum_of_bytes(unsigned four) {
  return (four & 255) + (four >> 8 & 255) + (four >> 16 & 255) + (four >> 24);
}

// Written one by one, read as words of four: after others' writes.
template <bool buggy>
__global__ void pack_four(const unsigned* in, unsigned* out) {
  alignas(4) __shared__ std::uint8_t bytes[4 * threads];
  const unsigned t = threadIdx.x;
  for (unsigned n = 0; n < 4; ++n)
    bytes[n * threads + t] = static_cast<std::uint8_t>(in[t]);  // meets: word_of_others_bytes
  if (!buggy) __syncthreads();
  out[t] = sum_of_bytes(device::load_vector<unsigned>(&bytes[4 * t]));  // bug: word_of_others_bytes
}

std::vector<unsigned> sums_of_four() {
  std::vector<unsigned> expected(threads);
  for (unsigned t = 0; t < threads; ++t) expected[t] = 16 * (t % 16) + 10;
  return expected;
}

Ran run_pack_four(bool buggy) {
  return run("pack_four", buggy ? pack_four<true> : pack_four<false>, {{1}, {threads}},
             counted<unsigned>(threads), sums_of_four());
}

// The other way around: bytes are replaced while others still read the word.
template <bool buggy>
__global__ void unpack(const unsigned* in, unsigned* out) {
  alignas(4) __shared__ std::uint8_t bytes[threads];
  const unsigned t = threadIdx.x;
  bytes[t] = static_cast<std::uint8_t>(in[t]);
  __syncthreads();
  const unsigned four = device::load_vector<unsigned>(&bytes[t / 4 * 4]);  // meets: byte_of_a_word
  if (!buggy) __syncthreads();
  if (t % 4 == 3) bytes[t] = 0;  // bug: byte_of_a_word
  out[t] = sum_of_bytes(four);
}

Ran run_unpack(bool buggy) {
  std::vector<unsigned> expected(threads);
  for (unsigned t = 0; t < threads; ++t) expected[t] = 4 * (t / 4 * 4) + 10;
  return run("unpack", buggy ? unpack<true> : unpack<false>, {{1}, {threads}},
             counted<unsigned>(threads), expected);
}

// Three of each four bytes are written.
template <bool buggy>
__global__ void three_of_four(const unsigned* in, unsigned* out) {
  alignas(4) __shared__ std::uint8_t bytes[threads];
  const unsigned t = threadIdx.x;
  if (t % 4 != 3 || !buggy) bytes[t] = static_cast<std::uint8_t>(in[t]);
  __syncthreads();
  out[t] = sum_of_bytes(device::load_vector<unsigned>(&bytes[t / 4 * 4]));  // bug: fourth_byte
}

Ran run_three_of_four(bool buggy) {
  std::vector<unsigned> expected(threads);
  for (unsigned t = 0; t < threads; ++t) expected[t] = 4 * (t / 4 * 4) + 10;
  return run("three_of_four", buggy ? three_of_four<true> : three_of_four<false>, {{1}, {threads}},
             counted<unsigned>(threads), expected);
}

}  // namespace
}  // namespace tilewise::tests::inline TILEWISE_TARGET

namespace tilewise::tests {

std::vector<Planted> byte_bugs() {
  using emulator::Kind;
  const char* const file = "bytes.cu";
  return {
      {"byte_for_two", file, Kind::race, run_flags},
      {"word_of_others_bytes", file, Kind::race, run_pack_four},
      {"byte_of_a_word", file, Kind::race, run_unpack},
      {"fourth_byte", file, Kind::uninitialised, run_three_of_four},
  };
}

}  // namespace tilewise::tests
