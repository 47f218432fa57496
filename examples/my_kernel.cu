// Somebody else's CUDA kernel, judged on a machine without a GPU: under the emulator, which says
// what is wrong with its barriers and accesses, and by the harness, which says whether its numbers
// are right. examples/CMakeLists.txt builds it against an installed Tilewise.
//
//   cmake -S examples -B build-example -DCMAKE_PREFIX_PATH=PREFIX && cmake --build build-example
//   build-example/my_kernel ["fwd b1 s200 h3 d32" ...]
#include "cuda/device/launch.hpp"
#include "cuda/device/memory.hpp"

#include <tilewise/harness.hpp>

#include <cstdio>
#include <string>
#include <vector>

// ------------------------------------------------------- the kernel, as nvcc would compile it too

namespace mine::inline TILEWISE_TARGET {

constexpr int Br = 64, Bc = 32, most_dim = 64;

/// O = softmax(scale Q K^T) V: a thread a row of queries, tiles of K and V in shared memory.
/// [batch, seqlen, nheads, head_dim] each.
__global__ void attend(const float* Q, const float* K, const float* V, float* O, int seqlen_q,
                       int seqlen_k, int nheads, int head_dim, float scale) {
  __shared__ float k[Bc][most_dim], v[Bc][most_dim];
  const int head = static_cast<int>(blockIdx.y), batch = static_cast<int>(blockIdx.z);
  const int i = static_cast<int>(blockIdx.x) * Br + static_cast<int>(threadIdx.x);
  const int row = nheads * head_dim;
  const float* const q = Q + (batch * seqlen_q + i) * row + head * head_dim;
  const float* const keys = K + batch * seqlen_k * row + head * head_dim;
  const float* const values = V + batch * seqlen_k * row + head * head_dim;

  float o[most_dim], m = -INFINITY, l = 0;
  for (int c = 0; c < most_dim; ++c) o[c] = 0;
  for (int first = 0; first < seqlen_k; first += Bc) {
    const int tile = min(Bc, seqlen_k - first);
    for (int n = static_cast<int>(threadIdx.x); n < tile * head_dim; n += Br) {
      const int j = n / head_dim, c = n % head_dim;
      k[j][c] = keys[(first + j) * row + c];
      v[j][c] = values[(first + j) * row + c];
    }
    __syncthreads();  // leave one out, and see what is said
    for (int j = 0; i < seqlen_q && j < tile; ++j) {
      float s = 0;
      for (int c = 0; c < head_dim; ++c) s += q[c] * k[j][c];
      s *= scale;
      const float m_new = fmaxf(m, s), alpha = __expf(m - m_new), p = __expf(s - m_new);
      l = alpha * l + p;
      for (int c = 0; c < head_dim; ++c) o[c] = alpha * o[c] + p * v[j][c];
      m = m_new;
    }
    __syncthreads();
  }
  if (i >= seqlen_q) return;
  float* const out = O + (batch * seqlen_q + i) * row + head * head_dim;
  for (int c = 0; c < head_dim; ++c) out[c] = l > 0 ? o[c] / l : 0;
}

}  // namespace mine::inline TILEWISE_TARGET

// ------------------------------------------------------------------ how the judge may call it

namespace {

using namespace tilewise;

harness::Support supports(const Problem& problem) {
  if (problem.dtype != DType::f32 || problem.layout != Layout::bshd || problem.varlen())
    return harness::Support::no("float32, [batch, seqlen, nheads, head_dim], one length");
  if (problem.nheads_q != problem.nheads_k || problem.head_dim != problem.head_dim_v ||
      problem.head_dim > mine::most_dim)
    return harness::Support::no("as many key heads as query heads, head_dim up to 64");
  if (problem.causal || problem.window_left >= 0 || problem.window_right >= 0 ||
      problem.softcap != 0 || problem.alibi || problem.bias || problem.mask || problem.blocks ||
      problem.sink || problem.dropout_p > 0 || problem.cached() || problem.pass == Pass::backward)
    return harness::Support::no("plain attention, forward");
  return harness::Support::yes();
}

Status run(const harness::Call& call) {
  const Problem& problem = call.problem;
  const auto count = [](const TensorView& view) {
    return static_cast<std::size_t>(view.elements());
  };
  device::Memory<float> q, k, v, o;
  for (const auto& [memory, view, name] :
       {std::tuple{&q, &call.tensors.q, "Q"}, std::tuple{&k, &call.tensors.k, "K"},
        std::tuple{&v, &call.tensors.v, "V"}, std::tuple{&o, &call.tensors.o, "O"}}) {
    if (Status status = memory->allocate(count(*view), name); !status.ok()) return status;
    if (memory == &o) continue;  // what a kernel has not written, it may not read
    if (Status status = memory->upload(static_cast<const float*>(view->data)); !status.ok())
      return status;
  }
  const auto sq = static_cast<int>(problem.max_seqlen_q());
  const device::Grid grid{
      {static_cast<unsigned>((sq + mine::Br - 1) / mine::Br),
       static_cast<unsigned>(problem.nheads_q), static_cast<unsigned>(problem.batch)},
      {mine::Br}};
  Status status = device::launch(
      "attend", mine::attend, grid, q.data(), k.data(), v.data(), o.data(), sq,
      static_cast<int>(problem.max_seqlen_k()), static_cast<int>(problem.nheads_q),
      static_cast<int>(problem.head_dim), static_cast<float>(call.params.softmax_scale));
  return status.ok() ? o.download(static_cast<float*>(call.tensors.o.data)) : status;
}

}  // namespace

int main(int count, char** words) {
  const auto kernel = harness::make_implementation("mine.attend", run,
                                                   {.supports = supports, .writes = {.o = true}});
  std::vector<std::string> problems(words + 1, words + count);
  if (problems.empty()) problems = {"fwd b2 sq70 sk100 h2 d64", "fwd s33 h3 d48"};
  bool fine = true;
  for (const std::string& problem : problems) {
    emulator::Session session;
    const harness::Verdict verdict = harness::check(kernel, problem);
    std::printf("%s\n", harness::to_text(verdict).c_str());
    const emulator::Counts& counts = session.report().counts;
    for (const auto& [name, traffic] : counts.traffic)
      std::printf("  %s: %lld bytes loaded, %lld stored, in %lld sectors\n", name.c_str(),
                  static_cast<long long>(traffic.bytes_loaded),
                  static_cast<long long>(traffic.bytes_stored),
                  static_cast<long long>(traffic.sectors_loaded + traffic.sectors_stored));
    fine = fine && verdict.passed();
  }
  return fine ? 0 : 1;
}
