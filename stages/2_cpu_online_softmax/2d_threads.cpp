// 2d. Threads: row blocks are independent, so hand them out.
//
// A block of query rows needs only its own m, l and O; no other block reads or writes them. So the
// work is a list of batch x nheads_q x ceil(seqlen_q / Br) tasks (the FlashAttention-2 paper makes
// the same list its grid of thread blocks: Dao 2023, section 3.2):
//
//     head 0   [block 0][block 1][block 2]...        thread 0 takes the next task,
//     head 1   [block 0][block 1][block 2]...        thread 1 the one after, ...
//      ...                                           whoever is done takes another
//
// Each task computes in the same order whoever runs it: the result has the same bits for any number
// of threads. Under causal the last blocks see the most keys; they go first, so that no thread is
// left with a long task at the end. Each thread owns one set of tiles: extra memory is
// threads x tile, whatever the lengths.
//
// Inside a task the mathematics is 2c's.
#include "cpu/simd.hpp"
#include "stages/stage.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#if defined(TILEWISE_HAVE_OPENMP)
#include <omp.h>
#endif

namespace tilewise::stages {
namespace {

using simd::Broadcast;
using simd::Floats;
using simd::Into;
using simd::lanes;

constexpr std::int64_t Br = 64, Bc = 64;
constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

struct Tiles {
  Tiles(std::int64_t head_dim, std::int64_t head_dim_v)
      : Qt(head_dim * Br), Pt(Bc * Br), Ot(head_dim_v * Br), m(Br), l(Br), keys(Br) {}
  simd::Buffer Qt, Pt, Ot, m, l, keys;
};

/// -inf for the keys that a row may not see.
void mask(std::int64_t n, Tiles& tiles) {
  for (std::int64_t j = 0; j < n; ++j)
    for (std::int64_t x = 0; x < Br; x += lanes) {
      float* s = &tiles.Pt[j * Br + x];
      const auto visible = Floats(static_cast<float>(j)) < simd::load<Floats>(&tiles.keys[x]);
      simd::store(s, simd::select(visible, simd::load<Floats>(s), Floats(minus_infinity)));
    }
}

void online_softmax(std::int64_t n, std::int64_t head_dim_v, Tiles& tiles) {
  for (std::int64_t x = 0; x < Br; x += lanes) {
    float* pt = &tiles.Pt[x];
    const Floats m_old = simd::load<Floats>(&tiles.m[x]);
    Floats m = m_old, sum(0.0f);
    for (std::int64_t j = 0; j < n; ++j) m = simd::max(m, simd::load<Floats>(pt + j * Br));
    const Floats shift = simd::select(m == Floats(minus_infinity), Floats(0.0f), m);
    const Floats alpha = simd::exp(m_old - shift);
    for (std::int64_t j = 0; j < n; ++j) {
      const Floats p = simd::exp(simd::load<Floats>(pt + j * Br) - shift);
      simd::store(pt + j * Br, p);
      sum = sum + p;
    }
    simd::store(&tiles.m[x], m);
    simd::store(&tiles.l[x], simd::fma(alpha, simd::load<Floats>(&tiles.l[x]), sum));
    for (std::int64_t c = 0; c < head_dim_v; ++c) {
      float* ot = &tiles.Ot[c * Br + x];
      simd::store(ot, alpha * simd::load<Floats>(ot));
    }
  }
}

void attend_block(const StageArgs& args, std::int64_t b, std::int64_t h, std::int64_t i0,
                  Tiles& tiles) {
  const std::int64_t rows = std::min(Br, args.seqlen_q - i0);
  const ConstMatrix Q = args.q(b, h);
  const ConstMatrix K = args.k(b, args.kv_head(h)), V = args.v(b, args.kv_head(h));
  for (std::int64_t c = 0; c < Q.cols; ++c)
    for (std::int64_t r = 0; r < Br; ++r)
      tiles.Qt[c * Br + r] = r < rows ? args.softmax_scale * Q(i0 + r, c) : 0;
  std::fill_n(tiles.Ot.data(), V.cols * Br, 0.0f);
  std::fill_n(tiles.m.data(), Br, minus_infinity);
  std::fill_n(tiles.l.data(), Br, 0.0f);

  const std::int64_t last_row = i0 + rows - 1, keys = args.keys_of_row(last_row);
  for (std::int64_t j0 = 0; j0 < keys; j0 += Bc) {
    const std::int64_t n = std::min(Bc, keys - j0);
    simd::tile_product<Into::replace>(n, Br, Q.cols, Broadcast{K.row(j0), K.stride, 1},
                                      tiles.Qt.data(), Br, tiles.Pt.data(), Br);
    if (j0 + n > args.keys_of_row(i0)) {  // the diagonal crosses this tile
      for (std::int64_t r = 0; r < Br; ++r)
        tiles.keys[r] = static_cast<float>(args.keys_of_row(std::min(i0 + r, last_row)) - j0);
      mask(n, tiles);
    }
    online_softmax(n, V.cols, tiles);
    simd::tile_product<Into::add>(V.cols, Br, n, Broadcast{V.row(j0), 1, V.stride}, tiles.Pt.data(),
                                  Br, tiles.Ot.data(), Br);
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    const bool empty = args.keys_of_row(i0 + r) == 0;
    for (std::int64_t c = 0; c < V.cols; ++c)
      args.o(b, h)(i0 + r, c) = empty ? 0 : tiles.Ot[c * Br + r] / tiles.l[r];
    args.lse(b, h)[i0 + r] = empty ? minus_infinity : tiles.m[r] + std::log(tiles.l[r]);
  }
}

#if defined(TILEWISE_HAVE_OPENMP)
// [snippet threads]
void run(const StageArgs& args) {
  const std::int64_t blocks = (args.seqlen_q + Br - 1) / Br;
  const std::int64_t tasks = args.batch * args.nheads_q * blocks;
  const int threads = args.threads > 0 ? args.threads : omp_get_max_threads();
#pragma omp parallel num_threads(threads)
  {
    Tiles tiles(args.head_dim, args.head_dim_v);
#pragma omp for schedule(dynamic)
    for (std::int64_t task = 0; task < tasks; ++task) {
      const std::int64_t heads = args.batch * args.nheads_q;
      const std::int64_t block = blocks - 1 - task / heads;  // longest first under causal
      const std::int64_t b = task % heads / args.nheads_q, h = task % args.nheads_q;
      attend_block(args, b, h, block * Br, tiles);
    }
  }
}
// [end threads]
#endif

// As 2b, with Br = 64: threads share the work, not the tiles. Dao et al. 2022, Theorem 2.
double bytes_moved(const StageArgs& args) {
  const double width = static_cast<double>(args.head_dim + args.head_dim_v);
  double floats_a_head = static_cast<double>(args.seqlen_q) * (width + 1);
  for (std::int64_t i0 = 0; i0 < args.seqlen_q; i0 += Br) {
    const std::int64_t last_row = std::min(i0 + Br, args.seqlen_q) - 1;
    floats_a_head += static_cast<double>(args.keys_of_row(last_row)) * width;
  }
  return 4 * static_cast<double>(args.batch * args.nheads_q) * floats_a_head;
}

}  // namespace

Step threads() {
  Step step{.name = "stage.2d_threads",
            .idea = "Row blocks are independent tasks: any number of threads, the same bits.",
            .features = {.causal = true, .grouped_heads = true, .lse = true},
            .run = nullptr,
            .bytes_moved = bytes_moved};
#if defined(TILEWISE_HAVE_OPENMP)
  step.run = run;
#else
  step.unavailable = "this build has no OpenMP (libgomp comes with g++; for clang: libomp-dev)";
  static_cast<void>(attend_block);
#endif
  return step;
}

}  // namespace tilewise::stages
