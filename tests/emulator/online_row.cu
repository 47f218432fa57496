// The online softmax of one row a thread, for a debugger to stop in: gdb_test.py.
#include "measured.hpp"
#include "on_device.hpp"

#include <cmath>

namespace tilewise::tests::inline TILEWISE_TARGET {
namespace {

__global__ void online_row(const float* q, const float* k, float* lse, int keys) {
  const int row = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  float m = -INFINITY;
  float l = 0;
  for (int j = 0; j < keys; ++j) {
    float s = 0;
    for (int c = 0; c < online_row_dim; ++c)
      s += q[row * online_row_dim + c] * k[j * online_row_dim + c];
    const float m_new = fmaxf(m, s);  // stop here: one key more
    l = l * __expf(m - m_new) + __expf(s - m_new);
    m = m_new;
  }
  lse[row] = m + __logf(l);  // stop here: the row is done
}

}  // namespace
}  // namespace tilewise::tests::inline TILEWISE_TARGET

namespace tilewise::tests {

Status online_rows(const std::vector<float>& q, const std::vector<float>& k,
                   std::vector<float>& lse) {
  Memory<float> of_q, of_k, of_lse;
  const std::size_t rows = q.size() / online_row_dim;
  Status status = uploaded(of_q, q, "q");
  if (status.ok()) status = uploaded(of_k, k, "k");
  if (status.ok()) status = of_lse.allocate(rows, "lse");
  if (status.ok())
    status = device::launch("online_row", online_row, {{static_cast<unsigned>(rows / 64)}, {64}},
                            of_q.data(), of_k.data(), of_lse.data(),
                            static_cast<int>(k.size() / online_row_dim));
  if (status.ok()) lse = downloaded(of_lse);
  return status;
}

}  // namespace tilewise::tests
