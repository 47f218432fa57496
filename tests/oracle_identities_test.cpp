// What is true of attention whatever the numbers are. Each identity is tried on random problems,
// and held to the rounding bounds of tests/rounding_bounds.hpp, or to the last bit where the oracle
// does the very same operations in the same order.
#include "oracle/attention.hpp"
#include "oracle/bounds.hpp"
#include "tests/random_problem.hpp"
#include "tests/rounding_bounds.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

namespace tilewise::tests {
namespace {

constexpr double u = 0x1p-53;
constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

/// A problem, its tensors, the oracle's answer, and how far that may be from the truth.
struct Solved {
  Problem problem;
  AttentionTensors tensors;
  oracle::Everything all;
  SecondEverything bound;

  Solved(const Problem& asked, const AttentionTensors& views)
      : problem(asked),
        tensors(views),
        all(oracle::attention(oracle::Case(asked, views))),
        bound(rounding_bounds(asked, views)) {}

  std::size_t row(std::int64_t b, std::int64_t h, std::int64_t i) const {
    return static_cast<std::size_t>((b * problem.nheads_q + h) * problem.max_seqlen_q() + i);
  }
  std::size_t key(std::int64_t b, std::int64_t kv, std::int64_t j) const {
    return static_cast<std::size_t>((b * problem.nheads_k + kv) * problem.max_seqlen_k() + j);
  }
  std::size_t o(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t c) const {
    return row(b, h, i) * problem.head_dim_v + c;
  }
  std::size_t dq(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t c) const {
    return row(b, h, i) * problem.head_dim + c;
  }
  std::size_t dk(std::int64_t b, std::int64_t kv, std::int64_t j, std::int64_t c) const {
    return key(b, kv, j) * problem.head_dim + c;
  }
  std::size_t dv(std::int64_t b, std::int64_t kv, std::int64_t j, std::int64_t c) const {
    return key(b, kv, j) * problem.head_dim_v + c;
  }
  bool empty(std::int64_t b, std::int64_t h, std::int64_t i) const {
    return !std::isfinite(all.lse[row(b, h, i)]);
  }
};

/// `each` sees `count` random problems that `suits` let through; a backward pass, and no NaN
/// output.
void for_random(int count, const std::function<bool(Problem&)>& suits,
                const std::function<void(const Problem&, Random&)>& each) {
  RandomLimits limits;
  limits.max_seqlen = 9;
  limits.max_head_dim = 5;
  int tried = 0;
  std::uint64_t seed = 1;
  for (; tried < count && seed < 100000; ++seed) {
    Problem problem = random_problem(seed, limits);
    problem.pass = Pass::backward;
    if (problem.conventions.empty_row_output == EmptyRowOutput::nan)
      problem.conventions.empty_row_output = EmptyRowOutput::zero;
    if (!suits(problem)) continue;
    Random random(seed);
    ++tried;
    SCOPED_TRACE(to_string(problem));
    each(problem, random);
    if (testing::Test::HasFailure()) return;
  }
  ASSERT_EQ(tried, count);
}

bool any(Problem&) {
  return true;
}
/// P sums to one over the keys, and multiplies V as it is.
bool without_sink_and_dropout(Problem& problem) {
  problem.sink = false;
  problem.dropout_p = 0;
  return true;
}
/// No score depends on where a key stands.
bool without_positions(Problem& problem) {
  problem.causal = problem.alibi = false;
  problem.window_left = problem.window_right = -1;
  problem.attention_chunk = 0;
  problem.blocks.reset();
  problem.dropout_p = 0;
  return true;
}

double get(const TensorView& view, const TensorView& starts, std::int64_t b, std::int64_t s,
           std::int64_t h, std::int64_t c) {
  return load(view.dtype, element(view, starts, b, s, h, c));
}
void set(const TensorView& view, const TensorView& starts, std::int64_t b, std::int64_t s,
         std::int64_t h, std::int64_t c, double value) {
  store(view.dtype, element(view, starts, b, s, h, c), value);
}

/// Rows [first, first + length) of sequence b of a tensor, as a batch of one.
TensorView rows_of(const TensorView& view, const TensorView& starts, std::int64_t b,
                   std::int64_t first, std::int64_t length) {
  const int rows = view.ndim - 3;  // which dimension counts rows: 0 packed, else 1
  TensorView part = view;
  part.data = element(view, starts, b, first, 0, 0);
  part.ndim = 4;
  part.shape[0] = 1;
  part.strides[0] = 0;
  part.shape[1] = length;
  for (int dim = 1; dim < 4; ++dim) part.strides[dim] = view.strides[rows + dim - 1];
  for (int dim = 2; dim < 4; ++dim) part.shape[dim] = view.shape[rows + dim - 1];
  return part;
}
/// The same for bias and mask: sequence b, keys from `first_key` on.
TensorView part_of(const TensorView& view, std::int64_t b, std::int64_t first_key) {
  if (!view.exists()) return view;
  TensorView part = view;
  if (view.shape[0] != 1) part.data = part.at(b * view.strides[0]);
  part.shape[0] = 1;
  if (first_key > 0 && view.shape[3] != 1) part.data = part.at(first_key * view.strides[3]);
  return part;
}
/// Sequence b of a block mask.
BlockMask part_of(const BlockMask& mask, std::int64_t b) {
  BlockMask part = mask;
  for (TensorView BlockMask::*list : {&BlockMask::kv_num_blocks, &BlockMask::kv_indices,
                                      &BlockMask::full_kv_num_blocks, &BlockMask::full_kv_indices})
    if ((part.*list).exists()) part.*list = part_of(part.*list, b, 0);
  return part;
}
/// Sequence b with the keys [first_key, first_key + keys) alone, as a problem of its own; a block
/// mask wants all keys.
Solved alone(const Problem& problem, const AttentionTensors& tensors, std::int64_t b,
             std::int64_t first_key, std::int64_t keys) {
  Problem single = problem;
  single.batch = 1;
  single.layout = Layout::bshd;
  single.seqlens_q = {problem.seqlen_q(b)};
  single.seqlens_k = {keys};
  // A default scale must not be worked out anew from anything.
  single.softmax_scale = problem.scale();
  AttentionTensors t = tensors;
  t.cu_seqlens_q = t.cu_seqlens_k = t.seqlens_q = t.seqlens_k = {};
  t.q = rows_of(tensors.q, tensors.cu_seqlens_q, b, 0, problem.seqlen_q(b));
  t.dout = rows_of(tensors.dout, tensors.cu_seqlens_q, b, 0, problem.seqlen_q(b));
  t.k = rows_of(tensors.k, tensors.cu_seqlens_k, b, first_key, keys);
  t.v = rows_of(tensors.v, tensors.cu_seqlens_k, b, first_key, keys);
  t.bias = part_of(tensors.bias, b, first_key);
  t.mask = part_of(tensors.mask, b, first_key);
  t.block_mask = part_of(tensors.block_mask, b);
  return {single, t};
}

bool same_bits(double x, double y) {
  return x == y || (std::isnan(x) && std::isnan(y));
}
void expect_close(double got, double expected, Real allowed, const char* what) {
  if (same_bits(got, expected)) return;
  EXPECT_LE(std::abs(got - expected), static_cast<double>(allowed))
      << what << ": " << got << " against " << expected;
}

TEST(Identities, EveryOutputLiesBetweenTheSmallestAndTheLargestVisibleValue) {
  const auto suits = [](Problem& problem) {
    problem.dropout_p = 0;  // it moves outputs to both sides
    return true;
  };
  for_random(300, suits, [](const Problem& problem, Random&) {
    const SmallTensors tensors(problem);
    const Solved solved(problem, tensors.views());
    for (std::int64_t b = 0; b < problem.batch; ++b) {
      const std::vector<SecondHead> heads = second_sequence(problem, tensors.views(), b);
      for (std::int64_t h = 0; h < problem.nheads_q; ++h)
        for (std::int64_t i = 0; i < problem.seqlen_q(b); ++i)
          for (std::int64_t c = 0; c < problem.head_dim_v; ++c) {
            const SecondHead& head = heads[static_cast<std::size_t>(h)];
            if (solved.empty(b, h, i)) continue;
            // A sink pulls towards zero, as a value of its own would.
            double least = problem.sink ? 0 : infinity, most = problem.sink ? 0 : -infinity;
            for (std::int64_t j = 0; j < problem.seqlen_k(b); ++j) {
              if (!head.visible(i, j)) continue;
              least = std::min(least, static_cast<double>(head.v(j, c)));
              most = std::max(most, static_cast<double>(head.v(j, c)));
            }
            const std::size_t at = solved.o(b, h, i, c);
            const auto slack = static_cast<double>(solved.bound.o[at]);
            EXPECT_GE(solved.all.o[at], least - slack);
            EXPECT_LE(solved.all.o[at], most + slack);
          }
    }
  });
}

TEST(Identities, ValuesOfOneGiveOutputsOfOne) {
  for_random(300, without_sink_and_dropout, [](const Problem& problem, Random&) {
    const SmallTensors tensors(problem);
    const AttentionTensors& t = tensors.views();
    for (std::int64_t b = 0; b < problem.batch; ++b)
      for (std::int64_t j = 0; j < problem.seqlen_k(b); ++j)
        for (std::int64_t h = 0; h < problem.nheads_k; ++h)
          for (std::int64_t c = 0; c < problem.head_dim_v; ++c)
            set(t.v, t.cu_seqlens_k, b, j, h, c, 1);
    const oracle::Everything all = oracle::attention(oracle::Case(problem, t));
    // The error of the scores cancels: p sums to one whatever they are, but for its own rounding,
    // that of l and that of the sum over the keys.
    const double allowed = 3 * static_cast<double>(problem.max_seqlen_k() + 2) * u;
    const Solved solved(problem, t);
    for (std::int64_t b = 0; b < problem.batch; ++b)
      for (std::int64_t h = 0; h < problem.nheads_q; ++h)
        for (std::int64_t i = 0; i < problem.seqlen_q(b); ++i)
          for (std::int64_t c = 0; c < problem.head_dim_v; ++c)
            if (!solved.empty(b, h, i)) expect_close(all.o[solved.o(b, h, i, c)], 1, allowed, "o");
  });
}

TEST(Identities, TheOrderOfTheKeysDoesNotMatter) {
  const auto suits = [](Problem& problem) {
    without_positions(problem);
    problem.mask.reset();
    problem.bias.reset();
    return true;
  };
  for_random(200, suits, [](const Problem& problem, Random& random) {
    const SmallTensors tensors(problem), permuted(problem);
    const AttentionTensors &from = tensors.views(), &to = permuted.views();
    std::vector<std::vector<std::int64_t>> order;  // order[b][j]: where key j goes
    for (std::int64_t b = 0; b < problem.batch; ++b) {
      std::vector<std::int64_t> p;
      for (std::int64_t j = 0; j < problem.seqlen_k(b); ++j)
        p.insert(p.begin() + random.between(0, j), j);
      for (std::int64_t j = 0; j < problem.seqlen_k(b); ++j)
        for (std::int64_t h = 0; h < problem.nheads_k; ++h) {
          for (std::int64_t c = 0; c < problem.head_dim; ++c)
            set(to.k, to.cu_seqlens_k, b, p[static_cast<std::size_t>(j)], h, c,
                get(from.k, from.cu_seqlens_k, b, j, h, c));
          for (std::int64_t c = 0; c < problem.head_dim_v; ++c)
            set(to.v, to.cu_seqlens_k, b, p[static_cast<std::size_t>(j)], h, c,
                get(from.v, from.cu_seqlens_k, b, j, h, c));
        }
      order.push_back(p);
    }
    const Solved before(problem, from), after(problem, to);
    for (std::size_t n = 0; n < before.all.o.size(); ++n)
      expect_close(after.all.o[n], before.all.o[n], 2 * before.bound.o[n], "o");
    for (std::size_t n = 0; n < before.all.lse.size(); ++n)
      expect_close(after.all.lse[n], before.all.lse[n], 2 * before.bound.lse[n], "lse");
    for (std::size_t n = 0; n < before.all.dq.size(); ++n)
      expect_close(after.all.dq[n], before.all.dq[n], 2 * before.bound.dq[n], "dq");
    for (std::int64_t b = 0; b < problem.batch; ++b)
      for (std::int64_t j = 0; j < problem.seqlen_k(b); ++j)
        for (std::int64_t h = 0; h < problem.nheads_k; ++h) {
          const std::int64_t there =
              order[static_cast<std::size_t>(b)][static_cast<std::size_t>(j)];
          for (std::int64_t c = 0; c < problem.head_dim; ++c)
            expect_close(after.all.dk[after.dk(b, h, there, c)],
                         before.all.dk[before.dk(b, h, j, c)],
                         2 * before.bound.dk[before.dk(b, h, j, c)], "dk");
          for (std::int64_t c = 0; c < problem.head_dim_v; ++c)
            expect_close(after.all.dv[after.dv(b, h, there, c)],
                         before.all.dv[before.dv(b, h, j, c)],
                         2 * before.bound.dv[before.dv(b, h, j, c)], "dv");
        }
  });
}

TEST(Identities, AConstantAddedToEveryKeyMovesOnlyTheLse) {
  const auto suits = [](Problem& problem) {
    problem.softcap = 0;   // it would bend the shifted scores
    problem.sink = false;  // it would stay where it is
    problem.dtype = DType::f64;
    problem.fill = Fill::normal;
    problem.conventions.lse_base = LseBase::e;
    return true;
  };
  for_random(200, suits, [](const Problem& problem, Random& random) {
    const SmallTensors tensors(problem), shifted(problem);
    const AttentionTensors &from = tensors.views(), &to = shifted.views();
    std::vector<double> shift;
    for (std::int64_t c = 0; c < problem.head_dim; ++c)
      shift.push_back(std::ldexp(static_cast<double>(random.between(-40, 40)), -3));
    for (std::int64_t b = 0; b < problem.batch; ++b)
      for (std::int64_t j = 0; j < problem.seqlen_k(b); ++j)
        for (std::int64_t h = 0; h < problem.nheads_k; ++h)
          for (std::int64_t c = 0; c < problem.head_dim; ++c) {
            // On a grid, so that k + shift is exact.
            const double k = std::ldexp(
                std::round(std::ldexp(get(from.k, from.cu_seqlens_k, b, j, h, c), 20)), -20);
            set(from.k, from.cu_seqlens_k, b, j, h, c, k);
            set(to.k, to.cu_seqlens_k, b, j, h, c, k + shift[static_cast<std::size_t>(c)]);
          }
    const Solved before(problem, from), after(problem, to);
    for (std::size_t n = 0; n < before.all.o.size(); ++n)
      expect_close(after.all.o[n], before.all.o[n], before.bound.o[n] + after.bound.o[n], "o");
    for (std::int64_t b = 0; b < problem.batch; ++b)
      for (std::int64_t h = 0; h < problem.nheads_q; ++h)
        for (std::int64_t i = 0; i < problem.seqlen_q(b); ++i) {
          if (before.empty(b, h, i)) continue;
          double moved = 0, size = 0;
          for (std::int64_t c = 0; c < problem.head_dim; ++c) {
            const double term = problem.scale() * get(from.q, from.cu_seqlens_q, b, i, h, c) *
                                shift[static_cast<std::size_t>(c)];
            moved += term;
            size += std::abs(term);
          }
          const std::size_t at = before.row(b, h, i);
          expect_close(after.all.lse[at] - before.all.lse[at], moved,
                       before.bound.lse[at] + after.bound.lse[at] +
                           static_cast<Real>(problem.head_dim + 4) * u * size +
                           u * std::abs(after.all.lse[at]),
                       "lse");
        }
  });
}

TEST(Identities, GradientsOfTheKeysSumToZeroAndThoseOfTheValuesToDout) {
  const auto suits = [](Problem& problem) {
    without_sink_and_dropout(problem);
    problem.softcap = 0;  // its slope differs from key to key
    return true;
  };
  for_random(300, suits, [](const Problem& problem, Random&) {
    const SmallTensors tensors(problem);
    const AttentionTensors& t = tensors.views();
    const Solved solved(problem, t);
    const bool mean = problem.conventions.empty_row_output == EmptyRowOutput::mean_v;
    for (std::int64_t b = 0; b < problem.batch; ++b)
      for (std::int64_t kv = 0; kv < problem.nheads_k; ++kv) {
        for (std::int64_t c = 0; c < problem.head_dim; ++c) {
          Real sum = 0, allowed = 0;
          for (std::int64_t j = 0; j < problem.seqlen_k(b); ++j) {
            sum += solved.all.dk[solved.dk(b, kv, j, c)];
            allowed += solved.bound.dk[solved.dk(b, kv, j, c)];
          }
          expect_close(static_cast<double>(sum), 0, allowed, "sum of dk");
        }
        for (std::int64_t c = 0; c < problem.head_dim_v; ++c) {
          Real sum = 0, allowed = 0, expected = 0;
          for (std::int64_t j = 0; j < problem.seqlen_k(b); ++j) {
            sum += solved.all.dv[solved.dv(b, kv, j, c)];
            allowed += solved.bound.dv[solved.dv(b, kv, j, c)];
          }
          for (std::int64_t h = kv * problem.group(); h < (kv + 1) * problem.group(); ++h)
            for (std::int64_t i = 0; i < problem.seqlen_q(b); ++i)
              if (mean || !solved.empty(b, h, i))
                expected += get(t.dout, t.cu_seqlens_q, b, i, h, c);
          expect_close(static_cast<double>(sum - expected), 0, allowed, "sum of dv - sum of dO");
        }
      }
  });
}

// O depends on Q and K through scale Q K^T alone, whatever is added, capped or masked afterwards:
// <Q, dQ> = <scale Q K^T, dS> = <K, dK>, over all query heads that read a key head.
TEST(Identities, QueriesAndKeysWeighTheirGradientsAlike) {
  for_random(300, any, [](const Problem& problem, Random&) {
    const SmallTensors tensors(problem);
    const AttentionTensors& t = tensors.views();
    const Solved solved(problem, t);
    for (std::int64_t b = 0; b < problem.batch; ++b)
      for (std::int64_t kv = 0; kv < problem.nheads_k; ++kv) {
        Real queries = 0, keys = 0, allowed = 0;
        for (std::int64_t c = 0; c < problem.head_dim; ++c) {
          for (std::int64_t h = kv * problem.group(); h < (kv + 1) * problem.group(); ++h)
            for (std::int64_t i = 0; i < problem.seqlen_q(b); ++i) {
              const Real q = get(t.q, t.cu_seqlens_q, b, i, h, c);
              queries += q * solved.all.dq[solved.dq(b, h, i, c)];
              allowed += std::abs(q) * solved.bound.dq[solved.dq(b, h, i, c)];
            }
          for (std::int64_t j = 0; j < problem.seqlen_k(b); ++j) {
            const Real k = get(t.k, t.cu_seqlens_k, b, j, kv, c);
            keys += k * solved.all.dk[solved.dk(b, kv, j, c)];
            allowed += std::abs(k) * solved.bound.dk[solved.dk(b, kv, j, c)];
          }
        }
        expect_close(static_cast<double>(queries - keys), 0, allowed, "<Q, dQ> - <K, dK>");
      }
  });
}

TEST(Identities, RowsOfDsSumToZero) {
  const auto suits = [](Problem& problem) {
    problem.softcap = 0;
    return true;
  };
  for_random(200, suits, [](const Problem& problem, Random&) {
    const SmallTensors tensors(problem);
    const oracle::Case problem_case(problem, tensors.views());
    for (std::int64_t b = 0; b < problem.batch; ++b)
      for (std::int64_t h = 0; h < problem.nheads_q; ++h) {
        const oracle::KeyValueHead head =
            oracle::read_key_value_head(problem_case, b, h / problem.group());
        for (std::int64_t i = 0; i < problem.seqlen_q(b); ++i) {
          const oracle::Row row = oracle::forward_row(problem_case, head, h, i);
          const oracle::RowGradient gradient = oracle::backward_row(problem_case, head, row, h, i);
          Real sum = 0, size = 0;
          // What the keys' scores lose, the sink's gains: with it the sum is over all of softmax.
          sum -= static_cast<Real>(row.sink) * gradient.d;
          size += static_cast<Real>(row.sink) * std::abs(gradient.d);
          for (std::size_t n = 0; n < row.keys.size(); ++n) {
            sum += gradient.ds[n];
            size += static_cast<Real>(row.p[n]) * (std::abs(gradient.dp[n]) + std::abs(gradient.d));
          }
          // sum p (dp - D) with D = sum p dp, and p summing to 1 within (n + 4) u.
          const auto n = static_cast<Real>(row.keys.size() + 1);
          EXPECT_LE(std::abs(sum), (2 * n + 8) * u * size + n * 0x1p-1070L);
        }
      }
  });
}

// The same sum from outside: all of dbias, whatever it was broadcast over, and all of dsinks.
TEST(Identities, GradientsOfBiasAndSinksSumToZero) {
  const auto suits = [](Problem& problem) {
    problem.softcap = 0;
    return problem.bias.has_value();
  };
  int with_sinks = 0;
  for_random(200, suits, [&](const Problem& problem, Random&) {
    const SmallTensors tensors(problem);
    const Solved solved(problem, tensors.views());
    with_sinks += problem.sink;
    Real sum = 0, allowed = 0;
    for (std::size_t n = 0; n < solved.all.dbias.size(); ++n) {
      sum += solved.all.dbias[n];
      allowed += solved.bound.dbias[n];
    }
    for (std::size_t h = 0; h < solved.all.dsinks.size(); ++h) {
      sum += solved.all.dsinks[h];
      allowed += solved.bound.dsinks[h];
    }
    expect_close(static_cast<double>(sum), 0, allowed, "sum of dbias and dsinks");
    if (problem.bias->head && !problem.bias->batch && !problem.bias->query) {
      // [1, h, 1, k or 1]: head by head.
      const std::size_t keys = solved.all.dbias.size() / static_cast<std::size_t>(problem.nheads_q);
      for (std::size_t h = 0; h < solved.all.dsinks.size(); ++h) {
        Real of_head = solved.all.dsinks[h], bound = solved.bound.dsinks[h];
        for (std::size_t j = 0; j < keys; ++j) {
          of_head += solved.all.dbias[h * keys + j];
          bound += solved.bound.dbias[h * keys + j];
        }
        expect_close(static_cast<double>(of_head), 0, bound, "sum of a head's dbias and dsink");
      }
    }
  });
  EXPECT_GE(with_sinks, 30);
}

// A sink is a key whose score is its own and whose value is zero: with a bias in its place, plain
// attention over one key more gives the same.
TEST(Identities, ASinkIsOneMoreKey) {
  const auto suits = [](Problem& problem) {
    without_positions(problem);
    problem.dtype = DType::f64;
    problem.layout = Layout::bshd;
    problem.fill = Fill::normal;
    problem.softcap = 0;
    problem.mask.reset();
    problem.bias = Broadcast{false, true, false, true};
    problem.sink = true;
    return !problem.varlen();
  };
  for_random(200, suits, [](const Problem& problem, Random&) {
    Problem longer = problem;
    longer.seqlens_k = {problem.seqlen_k(0) + 1};
    longer.softmax_scale = problem.scale();
    longer.sink = false;
    const SmallTensors tensors(problem), more(longer);
    const AttentionTensors &from = tensors.views(), &to = more.views();
    const std::int64_t keys = problem.seqlen_k(0);
    for (std::int64_t b = 0; b < problem.batch; ++b) {
      for (std::int64_t i = 0; i < problem.seqlen_q(0); ++i)
        for (std::int64_t h = 0; h < problem.nheads_q; ++h) {
          for (std::int64_t c = 0; c < problem.head_dim; ++c)
            set(to.q, {}, b, i, h, c, get(from.q, {}, b, i, h, c));
          for (std::int64_t c = 0; c < problem.head_dim_v; ++c)
            set(to.dout, {}, b, i, h, c, get(from.dout, {}, b, i, h, c));
        }
      for (std::int64_t j = 0; j <= keys; ++j)
        for (std::int64_t h = 0; h < problem.nheads_k; ++h) {
          for (std::int64_t c = 0; c < problem.head_dim; ++c)
            set(to.k, {}, b, j, h, c, j < keys ? get(from.k, {}, b, j, h, c) : 0);
          for (std::int64_t c = 0; c < problem.head_dim_v; ++c)
            set(to.v, {}, b, j, h, c, j < keys ? get(from.v, {}, b, j, h, c) : 0);
        }
    }
    for (std::int64_t h = 0; h < problem.nheads_q; ++h)
      for (std::int64_t j = 0; j <= keys; ++j)
        store(DType::f64, to.bias.at(h * (keys + 1) + j),
              j < keys ? load(DType::f64, from.bias.at(h * keys + j))
                       : load(DType::f32, from.sinks.at(h)));
    const Solved with_sink(problem, from), with_key(longer, to);
    for (std::size_t n = 0; n < with_sink.all.o.size(); ++n)
      expect_close(with_sink.all.o[n], with_key.all.o[n],
                   with_sink.bound.o[n] + with_key.bound.o[n], "o");
    for (std::size_t n = 0; n < with_sink.all.lse.size(); ++n)
      expect_close(with_sink.all.lse[n], with_key.all.lse[n],
                   with_sink.bound.lse[n] + with_key.bound.lse[n], "lse");
    for (std::size_t n = 0; n < with_sink.all.dq.size(); ++n)
      expect_close(with_sink.all.dq[n], with_key.all.dq[n],
                   with_sink.bound.dq[n] + with_key.bound.dq[n], "dq");
    for (std::size_t h = 0; h < with_sink.all.dsinks.size(); ++h) {
      const std::size_t at = (h + 1) * static_cast<std::size_t>(keys + 1) - 1;
      expect_close(with_sink.all.dsinks[h], with_key.all.dbias[at],
                   with_sink.bound.dsinks[h] + with_key.bound.dbias[at], "dsinks");
    }
  });
}

// Attention over the keys of two blocks is the average of the two outputs, weighted by e^{lse}:
// the decomposition of Dao et al. 2022, section 3.1, in terms of the LSE.
TEST(Identities, PartsOfTheKeysMergeByTheirLse) {
  const auto suits = [](Problem& problem) {
    without_positions(problem);
    problem.sink = false;  // it would count in both parts
    problem.conventions.lse_base = LseBase::e;
    problem.conventions.empty_row_lse = EmptyRowLse::minus_inf;
    problem.conventions.empty_row_output = EmptyRowOutput::zero;
    return problem.seqlen_k(0) >= 2;
  };
  for_random(200, suits, [](const Problem& problem, Random& random) {
    const SmallTensors tensors(problem);
    const std::int64_t keys = problem.seqlen_k(0), cut = random.between(1, keys - 1);
    const Solved whole = alone(problem, tensors.views(), 0, 0, keys);
    const Solved left = alone(problem, tensors.views(), 0, 0, cut);
    const Solved right = alone(problem, tensors.views(), 0, cut, keys - cut);
    for (std::int64_t h = 0; h < problem.nheads_q; ++h)
      for (std::int64_t i = 0; i < problem.seqlen_q(0); ++i) {
        const std::size_t row = whole.row(0, h, i);
        const Real first = left.all.lse[row], second = right.all.lse[row];
        const Real most = std::max(first, second);
        if (most == -infinity) {
          EXPECT_TRUE(whole.empty(0, h, i));
          continue;
        }
        const Real first_weight = std::exp(first - most), second_weight = std::exp(second - most);
        const Real sum = first_weight + second_weight;
        // Errors of the parts' LSE move the weights by that much, relatively.
        const Real allowed = left.bound.lse[row] + right.bound.lse[row];
        expect_close(static_cast<double>(most + std::log(sum)), whole.all.lse[row],
                     allowed + whole.bound.lse[row] + 2 * u * std::abs(whole.all.lse[row]), "lse");
        for (std::int64_t c = 0; c < problem.head_dim_v; ++c) {
          const std::size_t at = whole.o(0, h, i, c);
          const Real x = first_weight / sum * left.all.o[at];
          const Real y = second_weight / sum * right.all.o[at];
          expect_close(static_cast<double>(x + y), whole.all.o[at],
                       whole.bound.o[at] + left.bound.o[at] + right.bound.o[at] +
                           2 * (allowed + u) * (std::abs(x) + std::abs(y)) + 0x1p-1073L,
                       "o");
        }
      }
  });
}

TEST(Identities, CausalIsAttentionToAPrefix) {
  const auto suits = [](Problem& problem) {
    without_positions(problem);
    problem.causal = true;
    problem.conventions.alignment = Alignment::top_left;
    problem.conventions.mask_and_causal = MaskAndCausal::intersect;
    problem.conventions.empty_row_output = EmptyRowOutput::zero;
    return true;
  };
  for_random(200, suits, [](const Problem& problem, Random& random) {
    const SmallTensors tensors(problem);
    const Solved causal(problem, tensors.views());
    const std::int64_t b = random.below(problem.batch), i = random.below(problem.seqlen_q(b));
    Problem full = problem;
    full.causal = false;
    const std::int64_t keys = std::min(i + 1, problem.seqlen_k(b));
    const Solved prefix = alone(full, tensors.views(), b, 0, keys);
    for (std::int64_t h = 0; h < problem.nheads_q; ++h) {
      EXPECT_TRUE(
          same_bits(prefix.all.lse[prefix.row(0, h, i)], causal.all.lse[causal.row(b, h, i)]));
      for (std::int64_t c = 0; c < problem.head_dim_v; ++c)
        EXPECT_EQ(prefix.all.o[prefix.o(0, h, i, c)], causal.all.o[causal.o(b, h, i, c)]);
      for (std::int64_t c = 0; c < problem.head_dim; ++c)
        EXPECT_EQ(prefix.all.dq[prefix.dq(0, h, i, c)], causal.all.dq[causal.dq(b, h, i, c)]);
    }
  });
}

TEST(Identities, GroupedHeadsAreRepeatedKeysAndValues) {
  const auto suits = [](Problem& problem) { return problem.group() > 1; };
  for_random(200, suits, [](const Problem& problem, Random&) {
    const SmallTensors tensors(problem);
    Problem repeated = problem;
    repeated.nheads_k = problem.nheads_q;
    SmallTensors copies(repeated);
    const AttentionTensors &from = tensors.views(), &to = copies.views();
    for (std::int64_t b = 0; b < problem.batch; ++b)
      for (std::int64_t h = 0; h < problem.nheads_q; ++h)
        for (std::int64_t j = 0; j < problem.seqlen_k(b); ++j) {
          for (std::int64_t c = 0; c < problem.head_dim; ++c)
            set(to.k, to.cu_seqlens_k, b, j, h, c,
                get(from.k, from.cu_seqlens_k, b, j, h / problem.group(), c));
          for (std::int64_t c = 0; c < problem.head_dim_v; ++c)
            set(to.v, to.cu_seqlens_k, b, j, h, c,
                get(from.v, from.cu_seqlens_k, b, j, h / problem.group(), c));
        }
    AttentionTensors t = from;
    t.k = to.k;
    t.v = to.v;
    const Solved grouped(problem, from), plain(repeated, t);
    for (std::size_t n = 0; n < grouped.all.o.size(); ++n)
      EXPECT_EQ(grouped.all.o[n], plain.all.o[n]);
    for (std::size_t n = 0; n < grouped.all.lse.size(); ++n)
      EXPECT_EQ(grouped.all.lse[n], plain.all.lse[n]);
    for (std::size_t n = 0; n < grouped.all.dq.size(); ++n)
      EXPECT_EQ(grouped.all.dq[n], plain.all.dq[n]);
    for (std::int64_t b = 0; b < problem.batch; ++b)
      for (std::int64_t kv = 0; kv < problem.nheads_k; ++kv)
        for (std::int64_t j = 0; j < problem.seqlen_k(b); ++j) {
          const auto copied = [&](const std::vector<double>& gradients, std::int64_t width,
                                  std::int64_t c) {
            Real sum = 0;
            for (std::int64_t h = kv * problem.group(); h < (kv + 1) * problem.group(); ++h)
              sum += gradients[plain.key(b, h, j) * width + c];
            return static_cast<double>(sum);
          };
          for (std::int64_t c = 0; c < problem.head_dim; ++c)
            expect_close(copied(plain.all.dk, problem.head_dim, c),
                         grouped.all.dk[grouped.dk(b, kv, j, c)],
                         2 * grouped.bound.dk[grouped.dk(b, kv, j, c)], "dk");
          for (std::int64_t c = 0; c < problem.head_dim_v; ++c)
            expect_close(copied(plain.all.dv, problem.head_dim_v, c),
                         grouped.all.dv[grouped.dv(b, kv, j, c)],
                         2 * grouped.bound.dv[grouped.dv(b, kv, j, c)], "dv");
        }
  });
}

TEST(Identities, ABatchIsItsSequencesOneByOne) {
  const auto suits = [](Problem& problem) {
    problem.dropout_p = 0;  // every sequence has a mask of its own
    return problem.batch > 1;
  };
  for_random(200, suits, [](const Problem& problem, Random&) {
    const SmallTensors tensors(problem);
    const Solved batch(problem, tensors.views());
    for (std::int64_t b = 0; b < problem.batch; ++b) {
      const Solved single = alone(problem, tensors.views(), b, 0, problem.seqlen_k(b));
      for (std::int64_t h = 0; h < problem.nheads_q; ++h)
        for (std::int64_t i = 0; i < problem.seqlen_q(b); ++i) {
          EXPECT_EQ(single.all.lse[single.row(0, h, i)], batch.all.lse[batch.row(b, h, i)]);
          for (std::int64_t c = 0; c < problem.head_dim_v; ++c)
            EXPECT_EQ(single.all.o[single.o(0, h, i, c)], batch.all.o[batch.o(b, h, i, c)]);
          for (std::int64_t c = 0; c < problem.head_dim; ++c)
            EXPECT_EQ(single.all.dq[single.dq(0, h, i, c)], batch.all.dq[batch.dq(b, h, i, c)]);
        }
      for (std::int64_t h = 0; h < problem.nheads_k; ++h)
        for (std::int64_t j = 0; j < problem.seqlen_k(b); ++j) {
          for (std::int64_t c = 0; c < problem.head_dim; ++c)
            EXPECT_EQ(single.all.dk[single.dk(0, h, j, c)], batch.all.dk[batch.dk(b, h, j, c)]);
          for (std::int64_t c = 0; c < problem.head_dim_v; ++c)
            EXPECT_EQ(single.all.dv[single.dv(0, h, j, c)], batch.all.dv[batch.dv(b, h, j, c)]);
        }
    }
  });
}

TEST(Identities, WhatARowMayNotSeeDoesNotReachIt) {
  int unseen = 0, seen = 0;
  for_random(300, any, [&](const Problem& problem, Random& random) {
    const SmallTensors tensors(problem);
    const AttentionTensors& t = tensors.views();
    const oracle::Everything before = oracle::attention(oracle::Case(problem, t));
    const Solved index(problem, t);
    const std::int64_t b = random.below(problem.batch), j = random.below(problem.seqlen_k(b));
    const std::int64_t kv = random.below(problem.nheads_k);
    const std::vector<SecondHead> heads = second_sequence(problem, t, b);
    for (std::int64_t c = 0; c < problem.head_dim; ++c)
      set(t.k, t.cu_seqlens_k, b, j, kv, c, not_a_number);
    for (std::int64_t c = 0; c < problem.head_dim_v; ++c)
      set(t.v, t.cu_seqlens_k, b, j, kv, c, not_a_number);
    const oracle::Everything after = oracle::attention(oracle::Case(problem, t));
    for (std::int64_t other = 0; other < problem.batch; ++other)
      for (std::int64_t h = 0; h < problem.nheads_q; ++h)
        for (std::int64_t i = 0; i < problem.seqlen_q(other); ++i) {
          const bool own = other == b && h / problem.group() == kv;
          const bool empty = index.empty(other, h, i);
          const bool mean = problem.conventions.empty_row_output == EmptyRowOutput::mean_v;
          const bool sees =
              own && (empty ? mean : heads[static_cast<std::size_t>(h)].visible(i, j));
          ++(sees ? seen : unseen);
          for (std::int64_t c = 0; c < problem.head_dim_v; ++c) {
            const std::size_t at = index.o(other, h, i, c);
            if (sees)
              EXPECT_TRUE(std::isnan(after.o[at])) << "a NaN that is seen must show";
            else
              EXPECT_EQ(after.o[at], before.o[at]);
          }
          if (sees) continue;
          EXPECT_EQ(after.lse[index.row(other, h, i)], before.lse[index.row(other, h, i)]);
          for (std::int64_t c = 0; c < problem.head_dim; ++c)
            EXPECT_EQ(after.dq[index.dq(other, h, i, c)], before.dq[index.dq(other, h, i, c)]);
        }
  });
  EXPECT_GT(unseen, 300);
  EXPECT_GT(seen, 300);
}

// A verdict on a large problem works out single rows and columns: they must be those of the whole.
TEST(Sampled, RowsAndColumnsAreThoseOfTheWhole) {
  for_random(200, any, [](const Problem& problem, Random&) {
    const SmallTensors tensors(problem);
    const oracle::Case problem_case(problem, tensors.views());
    const oracle::Recipe recipe = oracle::recipe_for(problem);
    const Solved whole(problem, tensors.views());
    for (std::int64_t b = 0; b < problem.batch; ++b)
      for (std::int64_t kv = 0; kv < problem.nheads_k; ++kv) {
        const oracle::KeyValueHead keys = oracle::read_key_value_head(problem_case, b, kv);
        std::vector<oracle::QueryHead> group;
        for (std::int64_t h = kv * problem.group(); h < (kv + 1) * problem.group(); ++h) {
          oracle::QueryHead queries{
              b,
              h,
              problem.seqlen_q(b),
              problem_case.head(tensors.views().q, oracle::Side::query, b, h),
              problem_case.head(tensors.views().dout, oracle::Side::query, b, h),
              {}};
          for (std::int64_t i = 0; i < problem.seqlen_q(b); ++i) {
            const oracle::Row row = oracle::forward_row(problem_case, keys, h, i);
            const oracle::RowGradient gradient =
                oracle::backward_row(problem_case, keys, row, h, i);
            oracle::RowFacts facts;  // of which the column's values need these; its bounds more
            facts.empty = row.empty;
            facts.lse = row.lse;
            facts.d = gradient.d;
            queries.facts.push_back(facts);
            EXPECT_EQ(oracle::expected_lse(problem.conventions, row),
                      whole.all.lse[whole.row(b, h, i)]);
            for (std::int64_t c = 0; c < problem.head_dim_v; ++c)
              EXPECT_EQ(row.o[static_cast<std::size_t>(c)], whole.all.o[whole.o(b, h, i, c)]);
            for (std::int64_t c = 0; c < problem.head_dim; ++c)
              EXPECT_EQ(gradient.dq[static_cast<std::size_t>(c)],
                        whole.all.dq[whole.dq(b, h, i, c)]);
          }
          group.push_back(queries);
        }
        // A column takes P from the LSE, whose own rounding it adds: two evaluations and two LSEs.
        for (std::int64_t j = 0; j < problem.seqlen_k(b); ++j) {
          const oracle::Column column =
              oracle::backward_column(problem_case, group, b, kv, j, recipe);
          for (std::int64_t c = 0; c < problem.head_dim; ++c)
            expect_close(column.dk[static_cast<std::size_t>(c)],
                         whole.all.dk[whole.dk(b, kv, j, c)],
                         4 * whole.bound.dk[whole.dk(b, kv, j, c)], "dk");
          for (std::int64_t c = 0; c < problem.head_dim_v; ++c)
            expect_close(column.dv[static_cast<std::size_t>(c)],
                         whole.all.dv[whole.dv(b, kv, j, c)],
                         4 * whole.bound.dv[whole.dv(b, kv, j, c)], "dv");
        }
      }
  });
}

}  // namespace
}  // namespace tilewise::tests
