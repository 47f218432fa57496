// Memory that is not there, has not been written, or is not where the instruction wants it.
#include "cuda/device/ptx/vector_access.hpp"
#include "cuda/device/shared.hpp"
#include "on_device.hpp"

namespace tilewise::tests::inline TILEWISE_TARGET {
namespace {

constexpr unsigned threads = 64, count = 100;  // two blocks, the second with a tail

template <bool buggy>
__global__ void tail_read(const float* in, float* out) {
  __shared__ float tile[threads];
  const unsigned t = threadIdx.x, n = blockIdx.x * threads + t;
  tile[t] = buggy || n < count ? in[n] : 0;  // bug: tail_read
  __syncthreads();
  if (n < count) out[n] = tile[t];
}

Ran run_tail_read(bool buggy) {
  return run("tail_read", buggy ? tail_read<true> : tail_read<false>, {{2}, {threads}},
             counted(count), counted(count));
}

template <bool buggy>
__global__ void tail_write(const float* in, float* out) {
  const unsigned n = blockIdx.x * blockDim.x + threadIdx.x;
  const float value = n < count ? in[n] : 0;
  if (buggy || n < count) out[n] = value;  // bug: tail_write
}

Ran run_tail_write(bool buggy) {
  return run("tail_write", buggy ? tail_write<true> : tail_write<false>, {{2}, {threads}},
             counted(count), counted(count));
}

// The halo of a stencil begins before the tensor.
template <bool buggy>
__global__ void halo(const float* in, float* out) {
  const int n = static_cast<int>(threadIdx.x);
  const float left = buggy || n > 0 ? in[n - 1] : 0;  // bug: halo
  out[n] = in[n] + left;
}

Ran run_halo(bool buggy) {
  std::vector<float> expected = counted(threads);
  for (float& value : expected) value += value - 1;
  return run("halo", buggy ? halo<true> : halo<false>, {{1}, {threads}}, counted(threads),
             expected);
}

// The mistake is in a function of the device: of what is inlined, both lines are told.
__device__ inline float two(const float* row) {
  return row[0] + row[1];  // bug: inlined_read
}
template <bool buggy>
__global__ void pairs(const float* in, float* out, unsigned last) {
  const unsigned n = threadIdx.x;
  out[n] = buggy || n < last ? two(in + n) : in[n];  // call: inlined_read
}

Ran run_pairs(bool buggy) {
  std::vector<float> expected = counted(threads);
  for (unsigned n = 0; n + 1 < threads; ++n) expected[n] += expected[n + 1];
  return run("pairs", buggy ? pairs<true> : pairs<false>, {{1}, {threads}}, counted(threads),
             expected, threads - 1);
}

// The kernel is given the host's own copy.
__global__ void copy(const float* in, float* out) {
  out[threadIdx.x] = in[threadIdx.x];  // bug: host_pointer bug: freed_memory
}

Ran run_host_pointer(bool buggy) {
  const std::vector<float> values = counted(threads);
  Memory<float> in, out;
  Ran ran;
  ran.status = uploaded(in, values, "in");
  if (ran.status.ok()) ran.status = out.allocate(threads, "out");
  if (ran.status.ok())
    ran.status = device::launch("copy", copy, {{1}, {threads}}, buggy ? values.data() : in.data(),
                                out.data());
  ran.right = ran.status.ok() && downloaded(out) == values;
  return ran;
}

Ran run_freed_memory(bool buggy) {
  const std::vector<float> values = counted(threads);
  Memory<float> in, out;
  Ran ran;
  ran.status = uploaded(in, values, "in");
  if (ran.status.ok()) ran.status = out.allocate(threads, "out");
  if (!ran.status.ok()) return ran;
  const float* const data = in.data();
  if (buggy) in = Memory<float>();
  ran.status = device::launch("copy", copy, {{1}, {threads}}, data, out.data());
  ran.right = ran.status.ok() && downloaded(out) == values;
  return ran;
}

// ------------------------------------------------------------------------------------------------

struct Row {
  float values[threads];
};

template <bool buggy>
__global__ void off_by_one(const float* in, float* out) {
  Row& row = device::shared_memory<Row>();
  const unsigned t = threadIdx.x;
  const unsigned at = buggy ? t + 1 : t;
  row.values[at] = in[t];  // bug: shared_off_by_one
  __syncthreads();
  out[t] = row.values[at];
}

Ran run_off_by_one(bool buggy) {
  return run("off_by_one", buggy ? off_by_one<true> : off_by_one<false>,
             {{1}, {threads}, sizeof(Row)}, counted(threads), counted(threads));
}

// The launch gives less than the kernel uses.
__global__ void uses_row(const float* in, float* out) {
  Row& row = device::shared_memory<Row>();  // bug: too_little_shared
  row.values[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = row.values[threadIdx.x];
}

Ran run_too_little(bool buggy) {
  return run("uses_row", uses_row, {{1}, {threads}, buggy ? sizeof(Row) - 4 : sizeof(Row)},
             counted(threads), counted(threads));
}

// Padding that nobody has filled goes into the sum.
template <bool buggy>
__global__ void padded_sum(const float* in, float* out) {
  __shared__ float row[threads];
  const unsigned t = threadIdx.x;
  if (t < 50)
    row[t] = in[t];
  else if (!buggy)
    row[t] = 0;
  __syncthreads();
  float sum = 0;
  for (unsigned n = 0; n < threads; ++n) sum += row[n];  // bug: uninitialised_shared
  out[t] = sum;
}

Ran run_padded_sum(bool buggy) {
  return run("padded_sum", buggy ? padded_sum<true> : padded_sum<false>, {{1}, {threads}},
             counted(50), std::vector<float>(threads, 1275));
}

// The output is taken to be zero.
template <bool buggy>
__global__ void accumulate(const float* in, float* out) {
  const unsigned t = threadIdx.x;
  if (!buggy) out[t] = 0;
  for (unsigned n = 0; n < 2; ++n) out[t] += in[t];  // bug: uninitialised_global
}

Ran run_accumulate(bool buggy) {
  std::vector<float> expected = counted(threads);
  for (float& value : expected) value *= 2;
  return run("accumulate", buggy ? accumulate<true> : accumulate<false>, {{1}, {threads}},
             counted(threads), expected);
}

// Rows of 6 numbers, read as if each began at a multiple of 16 bytes.
template <bool buggy>
__global__ void vector_read(const float* in, float* out) {
  const unsigned pitch = buggy ? 6 : 8;
  const float* const from = in + pitch * threadIdx.x;
  const float4 four = device::load_vector<float4>(from);  // bug: misaligned_vector
  out[threadIdx.x] = four.x + four.y + four.z + four.w;
}

Ran run_vector_read(bool buggy) {
  std::vector<float> expected(threads);
  for (unsigned t = 0; t < threads; ++t) expected[t] = static_cast<float>(4 * 8 * t + 10);
  return run("vector_read", buggy ? vector_read<true> : vector_read<false>, {{1}, {threads}},
             counted(8 * threads), expected);
}

// Integers packed as bytes, read where they begin.
template <bool buggy>
__global__ void packed_read(const int* in, int* out) {
  const unsigned offset = buggy ? 2 : 0;
  const char* const bytes = reinterpret_cast<const char*>(in) + offset;
  out[threadIdx.x] = reinterpret_cast<const int*>(bytes)[threadIdx.x];  // bug: misaligned_integer
}

Ran run_packed_read(bool buggy) {
  return run("packed_read", buggy ? packed_read<true> : packed_read<false>, {{1}, {threads}},
             counted<int>(threads + 1), counted<int>(threads));
}

}  // namespace
}  // namespace tilewise::tests::inline TILEWISE_TARGET

namespace tilewise::tests {

std::vector<Planted> bounds_bugs() {
  using emulator::Kind;
  const char* const file = "bounds.cu";
  return {
      {"tail_read", file, Kind::out_of_bounds, run_tail_read},
      {"tail_write", file, Kind::out_of_bounds, run_tail_write},
      {"halo", file, Kind::out_of_bounds, run_halo},
      {"inlined_read", file, Kind::out_of_bounds, run_pairs},
      {"host_pointer", file, Kind::out_of_bounds, run_host_pointer},
      {"freed_memory", file, Kind::out_of_bounds, run_freed_memory},
      {"shared_off_by_one", file, Kind::out_of_bounds, run_off_by_one},
      {"too_little_shared", file, Kind::out_of_bounds, run_too_little},
      {"uninitialised_shared", file, Kind::uninitialised, run_padded_sum},
      {"uninitialised_global", file, Kind::uninitialised, run_accumulate},
      {"misaligned_vector", file, Kind::misaligned, run_vector_read},
      {"misaligned_integer", file, Kind::misaligned, run_packed_read},
  };
}

}  // namespace tilewise::tests
