// Problem: its arithmetic, and what makes one inconsistent.
#include "oracle/problem.hpp"

#include "oracle/problem_keys.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace tilewise {

// ---------------------------------------------------------------------------------- arithmetic

std::int64_t Problem::longest(const std::vector<std::int64_t>& lengths) {
  return lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end());
}

std::int64_t Problem::total(const std::vector<std::int64_t>& lengths) const {
  if (lengths.size() == 1) return lengths[0] * batch;
  return std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
}

double Problem::scale() const {
  if (softmax_scale) return *softmax_scale;
  switch (conventions.default_scale) {
    case DefaultScale::inverse_sqrt_head_dim: return 1 / std::sqrt(static_cast<double>(head_dim));
    case DefaultScale::one: return 1;
    case DefaultScale::required: break;  // inconsistency() refuses it: let no number look right
  }
  return std::numeric_limits<double>::quiet_NaN();
}

AttentionParams Problem::params() const {
  AttentionParams params;
  params.softmax_scale = scale();
  params.causal = causal;
  params.window_left = window_left;
  params.window_right = window_right;
  params.attention_chunk = attention_chunk;
  params.softcap = softcap;
  params.dropout_p = dropout_p;
  params.philox_seed = seed;
  params.conventions = conventions;
  return params;
}

double Problem::flops() const {
  AttentionParams params = this->params();
  if (mask && conventions.mask_and_causal == MaskAndCausal::mask_replaces) params.causal = false;

  const auto visible_pairs = [&](std::int64_t b) {
    double pairs = 0;
    for (std::int64_t i = 0; i < seqlen_q(b); ++i) {
      const KeyRange range = visible_keys(params, i, seqlen_q(b), seqlen_k(b));
      pairs += static_cast<double>(range.end - range.begin);
    }
    return pairs;
  };
  double pairs = 0;
  if (varlen())
    for (std::int64_t b = 0; b < batch; ++b) pairs += visible_pairs(b);
  else
    pairs = static_cast<double>(batch) * visible_pairs(0);
  if (blocks) pairs *= blocks->density;  // as many as are expected to be there

  const double d = static_cast<double>(head_dim), dv = static_cast<double>(head_dim_v);
  // Two operations per multiply-add. Forward: S = Q K^T (d) and O = P V (dv). Backward: S again,
  // dQ = dS K and dK = dS^T Q (d each), dP = dO V^T and dV = P^T dO (dv each).
  const double forward = 2 * (d + dv), both = forward + 2 * (3 * d + 2 * dv);
  return static_cast<double>(nheads_q) * pairs * (pass == Pass::backward ? both : forward);
}

// -------------------------------------------------------------------------------- inconsistency

namespace problem_text {
namespace {

/// Elements of the largest tensor. In double, because the question is whether int64 suffices.
double largest_tensor(const Problem& problem) {
  const auto real = [](std::int64_t number) { return static_cast<double>(number); };
  const double b = real(problem.batch), d = real(std::max(problem.head_dim, problem.head_dim_v));
  const double sq = real(problem.max_seqlen_q()), sk = real(problem.max_seqlen_k());
  const double hq = real(problem.nheads_q), hk = real(problem.nheads_k);
  const double rows = real(std::max(problem.batch, problem.slots));
  const double capacity = sk + real(problem.leftpad) + real(problem.page);
  double largest = std::max(b * sq * hq * d, rows * capacity * hk * d);
  for (const std::optional<Broadcast>& added : {problem.bias, problem.mask})
    if (added)
      largest = std::max(largest, (added->batch ? b : 1) * (added->head ? hq : 1) *
                                      (added->query ? sq : 1) * (added->key ? sk : 1));
  return largest;
}

std::int64_t shortest(const std::vector<std::int64_t>& lengths) {
  return *std::min_element(lengths.begin(), lengths.end());
}

/// What a cache, and keys and values of other dtypes, do not go together with.
std::optional<Conflict> cache_conflict(const Problem& problem) {
  if (problem.cached() && problem.pass == Pass::backward)
    return Conflict{"a cache of keys has no backward pass, expected fwd",
                    {"pass", "page", "slots", "leftpad", "new", "rotary"}};
  if (problem.kv && problem.pass == Pass::backward)
    return Conflict{"keys and values of another dtype have no backward pass, expected fwd",
                    {"kv", "pass"}};
  if (problem.kv == problem.dtype)
    return Conflict{fmt::format("kv and dtype are both {}, expected kv of another dtype",
                                name_of(problem.dtype)),
                    {"kv"}};
  if (problem.kv == DType::q8_0 && (problem.head_dim % 32 != 0 || problem.head_dim_v % 32 != 0))
    return Conflict{fmt::format("q8_0 has blocks of 32 numbers, expected head_dim {} and "
                                "head_dim_v {} to be multiples of 32",
                                problem.head_dim, problem.head_dim_v),
                    {"kv"}};
  if (problem.kv && problem.seqlen_new > 0)
    return Conflict{"new keys are not converted to another dtype, expected new without kv",
                    {"new", "kv"}};
  if (problem.seqlen_new > shortest(problem.seqlens_k))
    return Conflict{fmt::format("{} keys are new, and a sequence has {}: expected new among "
                                "seqlen_k",
                                problem.seqlen_new, shortest(problem.seqlens_k)),
                    {"new", "seqlen_k"}};
  if (problem.slots > 0 && problem.page > 0)
    return Conflict{"pages have no cache rows, expected page or slots", {"slots", "page"}};
  if (problem.slots > 0 && problem.slots < problem.batch)
    return Conflict{fmt::format("{} cache rows do not hold {} sequences, expected at least as many",
                                problem.slots, problem.batch),
                    {"slots", "batch"}};
  if (problem.rotary && problem.rotary->elements > problem.head_dim)
    return Conflict{
        fmt::format("rotary turns {} elements and head_dim is {}, expected at most that",
                    problem.rotary->elements, problem.head_dim),
        {"rotary", "head_dim"}};
  return std::nullopt;
}

}  // namespace

std::optional<Conflict> find_conflict(const Problem& problem) {
  for (const Key& key : keys()) {
    Problem scratch;
    const std::optional<std::string> value = key.print(problem, key);
    if (value && !key.read(scratch, key, *value))
      return Conflict{mismatch(key, *value), {key.name}};
  }
  const auto fits = [&](const std::vector<std::int64_t>& lengths) {
    return lengths.size() == 1 || lengths.size() == static_cast<std::size_t>(problem.batch);
  };
  const auto wrong_list = [&](std::string_view name, std::size_t size) {
    return Conflict{fmt::format("{} lists {} lengths for batch {}, expected one length or {}", name,
                                size, problem.batch, problem.batch),
                    {name, "batch"}};
  };
  if (!fits(problem.seqlens_q)) return wrong_list("seqlen_q", problem.seqlens_q.size());
  if (!fits(problem.seqlens_k)) return wrong_list("seqlen_k", problem.seqlens_k.size());
  if (problem.nheads_q % problem.nheads_k != 0)
    return Conflict{
        fmt::format("nheads_q is {} and nheads_k is {}, expected nheads_k to divide nheads_q",
                    problem.nheads_q, problem.nheads_k),
        {"nheads_k", "nheads_q"}};
  if (problem.mask && problem.causal &&
      problem.conventions.mask_and_causal == MaskAndCausal::refuse)
    return Conflict{
        "these conventions refuse a mask together with causal, expected one of the two, "
        "or mask_and_causal=intersect",
        {"mask", "causal"}};
  if (!problem.softmax_scale && problem.conventions.default_scale == DefaultScale::required)
    return Conflict{"these conventions have no default scale, expected scale=NUMBER",
                    {"default_scale", "conv"}};
  if (problem.layout == Layout::packed && std::max(problem.total_q(), problem.total_k()) > most)
    return Conflict{
        fmt::format(
            "the packed sequences have {} rows together, expected at most {} (int32 offsets)",
            std::max(problem.total_q(), problem.total_k()), most),
        {"layout"}};
  if (std::optional<Conflict> conflict = cache_conflict(problem)) return conflict;
  if (const double largest = largest_tensor(problem); largest > 0x1p60)
    return Conflict{
        fmt::format("a tensor would have {:.3g} elements, expected at most 2^60", largest),
        {"seqlen_q", "seqlen_k", "batch", "nheads_q"}};
  return std::nullopt;
}

}  // namespace problem_text

std::string inconsistency(const Problem& problem) {
  const std::optional<problem_text::Conflict> conflict = problem_text::find_conflict(problem);
  return conflict ? conflict->message : "";
}

}  // namespace tilewise
