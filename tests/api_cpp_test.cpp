// The C++ functions of attention.hpp: what each computes is judged as the problem that its system's
// documentation says it is. Included after core/, whose names must not collide with it.
#include "core/attention.hpp"
#include "include/tilewise/attention.hpp"
#include "oracle/harness/buffers.hpp"
#include "oracle/harness/fill.hpp"
#include "oracle/harness/harness.hpp"
#include "tools/capi_implementation.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace tilewise {
namespace {

/// A problem with filled inputs and poisoned outputs, its tensors as the C++ functions take them.
struct World {
  Problem problem;
  harness::ProblemBuffers buffers;
  tilewise_attention tensors{};

  explicit World(const std::string& line)
      : problem(std::get<Problem>(parse_problem(line + " seed=3"))) {
    EXPECT_TRUE(buffers.allocate(problem, harness::Outputs::all()).ok());
    EXPECT_TRUE(harness::fill_inputs(problem, buffers.tensors()).ok());
    buffers.poison_outputs();
    tensors = tools::c_attention(problem.params(), buffers.tensors());
  }

  /// Are the outputs that the problem asks for right? Without `lse` where nothing wrote it.
  void expect_right(bool lse = true) const {
    AttentionTensors judged = buffers.tensors();
    if (!lse) judged.lse = {};
    const harness::Verdict verdict = harness::judge(problem, judged);
    EXPECT_TRUE(verdict.passed()) << verdict.problem << ": "
                                  << (verdict.reasons.empty() ? "" : verdict.reasons.front());
  }
};

/// [b, s, h, d] seen as [b, h, s, d], and the other way round.
Tensor heads_first(const Tensor& view) {
  return transposed(view, 1, 2);
}

/// [total, h, d] as [1, total, h, d].
Tensor with_batch_of_one(Tensor view) {
  for (int dim = 3; dim > 0; --dim) {
    view.shape[dim] = view.shape[dim - 1];
    view.strides[dim] = view.strides[dim - 1];
  }
  view.shape[0] = 1;
  view.strides[0] = view.shape[1] * view.strides[1];
  view.ndim = 4;
  return view;
}

void expect_done(const Result& result) {
  EXPECT_TRUE(result) << result.message();
  EXPECT_STREQ(result.message(), "");
}

void expect_refused(const Result& result, const std::string& says,
                    tilewise_status code = TILEWISE_BAD_ARGUMENT) {
  EXPECT_FALSE(result);
  EXPECT_EQ(result.code(), code);
  EXPECT_NE(std::string(result.message()).find(says), std::string::npos) << result.message();
}

/// k or v of a problem moved into a cache whose other rows are NaN.
struct Cache {
  std::vector<float> memory;
  Tensor tensor;

  Cache(std::int64_t blocks, std::int64_t block_rows, const Tensor& like)
      : memory(static_cast<std::size_t>(blocks * block_rows * row_of(like)),
               std::numeric_limits<float>::quiet_NaN()),
        tensor(tilewise::tensor(memory.data(), {blocks, block_rows, like.shape[like.ndim - 2],
                                                like.shape[like.ndim - 1]})) {}

  static std::int64_t row_of(const Tensor& view) {
    return view.shape[view.ndim - 2] * view.shape[view.ndim - 1];
  }
  float* row(std::int64_t block, std::int64_t r) {
    return memory.data() + block * tensor.strides[0] + r * tensor.strides[1];
  }
  /// Rows [first, end) of sequence b of contiguous rows, to where `place` says that row r goes.
  template <class Place>
  void take(const float* rows, std::int64_t first, std::int64_t end, const Place& place) {
    for (std::int64_t r = first; r < end; ++r) {
      const auto [block, row_in_block] = place(r);
      std::copy_n(rows + r * row_of(tensor), row_of(tensor), row(block, row_in_block));
    }
  }
};

const float* floats(const Tensor& view) {
  return static_cast<const float*>(view.data);
}

/// Rows from `first` on of each sequence of a dense tensor.
Tensor rows_from(Tensor view, std::int64_t first) {
  view.data = static_cast<float*>(view.data) + first * view.strides[1];
  view.shape[1] -= first;
  return view;
}

TEST(FlashAttn2, Func) {
  Context context;
  const std::pair<std::string, FlashAttnArgs> table[] = {
      {"", {}},
      {" causal", {.causal = true}},
      {" scale=0.5 window=7,2", {.softmax_scale = 0.5, .window_size = {7, 2}}},
      {" softcap=3 causal", {.causal = true, .softcap = 3}},
      {" dropout=0.25", {.dropout_p = 0.25, .rng_state = {3, 0}}},
  };
  for (const auto& [line, args] : table) {
    const World world("fwd b2 sq40 sk21 hq4 hk2 d16 conv=fa2" + line);
    const tilewise_attention& t = world.tensors;
    expect_done(flash_attn_func(context, t.q, t.k, t.v, t.o, t.lse, args));
    world.expect_right();
  }
  const World world("fwd sq20 sk31 h4 d16 conv=fa2 alibi causal");
  const tilewise_attention& t = world.tensors;
  expect_done(flash_attn_func(context, t.q, t.k, t.v, t.o, t.lse,
                              {.causal = true, .alibi_slopes = t.alibi_slopes}));
  world.expect_right();
  expect_refused(
      flash_attn_func(context, t.q, t.k, t.v, t.o, t.lse, {.dropout_p = 0.1, .softcap = 1}),
      "softcap and dropout_p");
  expect_refused(flash_attn_func(context, t.q, t.k, t.v, t.o, t.lse, {.return_attn_probs = true}),
                 "return_attn_probs is set", TILEWISE_UNSUPPORTED);
}

TEST(FlashAttn2, AndBackward) {
  Context context;
  const World world("bwd b2 sq40 sk21 hq4 hk2 d16 conv=fa2 causal dropout=0.25");
  const tilewise_attention& t = world.tensors;
  const FlashAttnArgs args{
      .dropout_p = 0.25, .causal = true, .deterministic = true, .rng_state = {3, 0}};
  expect_done(flash_attn_func(context, t.q, t.k, t.v, t.o, t.lse, args));
  expect_done(
      flash_attn_backward(context, t.dout, t.q, t.k, t.v, t.o, t.lse, t.dq, t.dk, t.dv, args));
  world.expect_right();
}

TEST(FlashAttn2, Varlen) {
  Context context;
  const World world("bwd sq9,0,20 sk30,5,1 hq4 hk2 d16 packed conv=fa2 window=4,4");
  const tilewise_attention& t = world.tensors;
  const FlashAttnArgs args{.window_size = {4, 4}};
  expect_done(flash_attn_varlen_func(context, t.q, t.k, t.v, t.cu_seqlens_q, t.cu_seqlens_k, 20, 30,
                                     t.o, t.lse, args));
  expect_done(flash_attn_varlen_backward(context, t.dout, t.q, t.k, t.v, t.o, t.lse, t.dq, t.dk,
                                         t.dv, t.cu_seqlens_q, t.cu_seqlens_k, 20, 30, args));
  world.expect_right();
  expect_refused(flash_attn_varlen_func(context, t.q, t.k, t.v, t.cu_seqlens_q, t.cu_seqlens_k, 19,
                                        30, t.o, t.lse, args),
                 "max_seqlen_q promised at most 19");
}

TEST(FlashAttn2, WithKvcacheAppendsAndAttends) {
  Context context;
  // The first 11 of 14 keys are in the cache, the last 3 are new.
  const World world("fwd b2 sq3 sk14 hq4 hk2 d8 conv=fa2 causal");
  const tilewise_attention& t = world.tensors;
  const std::int32_t slots[] = {4, 1}, table[] = {9, 3, 0, 7, -1, 2, 8, 1, 5, -1},
                     elevens[] = {11, 11};
  const auto expect_appended = [&](Cache& cache, const Tensor& all, const auto& place) {
    for (std::int64_t b = 0; b < 2; ++b)
      for (std::int64_t r = 11; r < 14; ++r) {
        const auto [block, row] = place(b, r);
        EXPECT_TRUE(std::equal(cache.row(block, row), cache.row(block, row) + 16,
                               floats(all) + b * all.strides[0] + r * all.strides[1]));
      }
  };
  const auto check = [&](std::int64_t blocks, std::int64_t block_rows, const auto& place,
                         FlashAttnWithKvcacheArgs args) {
    Cache k(blocks, block_rows, t.k), v(blocks, block_rows, t.v);
    for (std::int64_t b = 0; b < 2; ++b) {
      const auto here = [&](std::int64_t r) { return place(b, r); };
      k.take(floats(t.k) + b * t.k.strides[0], 0, 11, here);
      v.take(floats(t.v) + b * t.v.strides[0], 0, 11, here);
    }
    args.k = rows_from(t.k, 11);
    args.v = rows_from(t.v, 11);
    args.causal = true;
    expect_done(flash_attn_with_kvcache(context, t.q, k.tensor, v.tensor, t.o, t.lse, args));
    world.expect_right();
    expect_appended(k, t.k, place);
    expect_appended(v, t.v, place);
  };
  using Place = std::pair<std::int64_t, std::int64_t>;
  const auto in_slot = [&](std::int64_t b, std::int64_t r) { return Place(slots[b], r); };
  const auto in_order = [](std::int64_t b, std::int64_t r) { return Place(b, r); };
  const auto in_page = [&](std::int64_t b, std::int64_t r) {
    return Place(table[b * 5 + r / 4], r % 4);
  };
  check(5, 20, in_slot, {.cache_seqlens = 11, .cache_batch_idx = tensor(slots, {2})});
  check(3, 14, in_order, {.cache_seqlens = tensor(elevens, {2}), .num_splits = 2});
  check(10, 4, in_page,
        {.cache_seqlens = tensor(elevens, {2}), .block_table = tensor(table, {2, 5})});
  check(10, 4, in_page,
        {.cache_seqlens = 11, .block_table = tensor(table, {2, 5}), .return_softmax_lse = true});
  // Nothing new, and all of the cache: a plain call.
  expect_done(flash_attn_with_kvcache(context, t.q, t.k, t.v, t.o, t.lse, {.causal = true}));
  world.expect_right();

  const FlashAttnWithKvcacheArgs appending{.k = rows_from(t.k, 11), .v = rows_from(t.v, 11)};
  expect_refused(
      flash_attn_with_kvcache(context, t.q, t.k, t.v, t.o, {}, {.return_softmax_lse = true}),
      "return_softmax_lse is set and softmax_lse is absent");
  expect_refused(flash_attn_with_kvcache(context, t.q, t.k, t.v, t.o, {}, appending),
                 "k_new is given without seqlens_k");
  FlashAttnWithKvcacheArgs full = appending;
  full.cache_seqlens = 14;
  expect_refused(flash_attn_with_kvcache(context, t.q, t.k, t.v, t.o, {}, full),
                 "sequence 0 has 14 rows and 3 new ones; its cache has room for 14");
  // One length for all is there as long as the description is, and shapes are enough to ask.
  full.cache_seqlens = 3;
  const Description described = describe::flash_attn_with_kvcache(t.q, t.k, t.v, t.o, t.lse, full);
  EXPECT_EQ(described.attention.rotary_interleaved, 1);
  EXPECT_EQ(described.attention.num_splits, 0);
  EXPECT_TRUE(available(context, described));
}

TEST(FlashAttn2, VarlenInPages) {
  Context context;
  const World world("fwd sq9,0,20 sk30,5,1 hq4 hk2 d16 packed conv=fa2 causal");
  const tilewise_attention& t = world.tensors;
  const std::int32_t table[] = {6, 0, 4, 3, 2, -1, -1, -1, 1, -1, -1, -1};
  const auto* const starts = static_cast<const std::int32_t*>(t.cu_seqlens_k.data);
  Cache k(7, 8, t.k), v(7, 8, t.v);
  for (std::int64_t b = 0; b < 3; ++b) {
    const auto place = [&](std::int64_t r) {
      return std::pair<std::int64_t, std::int64_t>(table[b * 4 + r / 8], r % 8);
    };
    k.take(floats(t.k) + starts[b] * t.k.strides[0], 0, starts[b + 1] - starts[b], place);
    v.take(floats(t.v) + starts[b] * t.v.strides[0], 0, starts[b + 1] - starts[b], place);
  }
  const FlashAttnArgs args{.causal = true, .block_table = tensor(table, {3, 4})};
  const auto call = [&](const Tensor& cu_seqlens_k, std::int64_t max_seqlen_k) {
    return flash_attn_varlen_func(context, t.q, k.tensor, v.tensor, t.cu_seqlens_q, cu_seqlens_k,
                                  20, max_seqlen_k, t.o, t.lse, args);
  };
  expect_done(call(t.cu_seqlens_k, 30));
  world.expect_right();
  EXPECT_TRUE(available(
      context, describe::flash_attn_varlen_func(t.q, k.tensor, v.tensor, t.cu_seqlens_q,
                                                t.cu_seqlens_k, 20, 30, t.o, t.lse, args)));

  expect_refused(call({}, 30), "cu_seqlens_k is not what it has to be");
  expect_refused(call(tensor(static_cast<const std::int32_t*>(nullptr), {4}), 30),
                 "cu_seqlens_k has elements and its data is null");
  expect_refused(call(tensor(starts, {3}), 30), "seqlens_k has shape [2]; expected [3], [batch]");
  const std::int32_t falling[] = {0, 30, 20, 25}, wild[] = {0, INT32_MIN, INT32_MAX, 4};
  expect_refused(call(tensor(falling, {4}), 0), "seqlens_k says -1 for sequence 1");
  expect_refused(call(tensor(wild, {4}), 0), "seqlens_k says -1 for sequence 0");
  expect_refused(call(t.cu_seqlens_k, 29), "max_seqlen_k promised at most 29");
  expect_refused(
      flash_attn_varlen_backward(context, t.o, t.q, k.tensor, v.tensor, t.o, t.lse, t.q, k.tensor,
                                 v.tensor, t.cu_seqlens_q, t.cu_seqlens_k, 20, 30, args),
      "block_table is given; attention over a cache has no backward pass", TILEWISE_UNSUPPORTED);
  expect_refused(flash_attn_func(context, t.q, k.tensor, v.tensor, t.o, t.lse, args),
                 "block_table is given; it is an argument of flash_attn_varlen_func");
}

TEST(FlashAttn3, Backward) {
  Context context;
  const World dense("bwd b2 sq40 sk21 hq4 hk2 d16 causal chunk=8");
  const tilewise_attention& t = dense.tensors;
  const fa3::FlashAttnArgs args{.causal = true, .attention_chunk = 8};
  expect_done(fa3::flash_attn_func(context, t.q, t.k, t.v, t.o, t.lse, args));
  expect_done(
      fa3::flash_attn_backward(context, t.dout, t.q, t.k, t.v, t.o, t.lse, t.dq, t.dk, t.dv, args));
  dense.expect_right();
  const World packed("bwd sq9,0,20 sk30,5,1 h2 d16 packed softcap=2");
  const tilewise_attention& p = packed.tensors;
  expect_done(fa3::flash_attn_varlen_func(context, p.q, p.k, p.v, p.cu_seqlens_q, p.cu_seqlens_k,
                                          20, 30, p.o, p.lse, {.softcap = 2}));
  expect_done(fa3::flash_attn_varlen_backward(context, p.dout, p.q, p.k, p.v, p.o, p.lse, p.dq,
                                              p.dk, p.dv, p.cu_seqlens_q, p.cu_seqlens_k, 20, 30,
                                              {.softcap = 2}));
  packed.expect_right();
}

TEST(FlashAttn3, DescaleMultipliesWhatIsStored) {
  Context context;
  const World world("fwd b2 sq9 sk14 hq4 hk2 d16");
  const tilewise_attention& t = world.tensors;
  // Powers of two, so that a quarter of each number times its factor is that number.
  const std::vector<float> fours(4, 4);
  std::vector<std::vector<float>> quarters;
  const auto quarter = [&](const Tensor& view) {
    std::vector<float>& values =
        quarters.emplace_back(floats(view), floats(view) + view.shape[0] * view.strides[0]);
    for (float& value : values) value /= 4;
    Tensor changed = view;
    changed.data = values.data();
    return changed;
  };
  quarters.reserve(3);
  const Tensor q = quarter(t.q), k = quarter(t.k), v = quarter(t.v);
  const Tensor factors = tensor(fours.data(), {2, 2});
  expect_done(fa3::flash_attn_func(
      context, q, k, v, t.o, t.lse,
      {.q_descale = factors, .k_descale = factors, .v_descale = factors, .num_splits = 3}));
  world.expect_right();
}

TEST(FlashAttn3, WithKvcacheAndPackedQueries) {
  Context context;
  const World world("fwd sq2,3 sk9,5 hq4 hk2 d8 packed causal window=6,-1");
  const tilewise_attention& t = world.tensors;
  const std::int32_t table[] = {3, 1, 2, 0, -1, -1}, lengths[] = {9, 5};
  Cache k(4, 5, t.k), v(4, 5, t.v);
  for (std::int64_t b = 0; b < 2; ++b) {
    const auto place = [&](std::int64_t r) {
      return std::pair<std::int64_t, std::int64_t>(table[b * 3 + r / 5], r % 5);
    };
    k.take(floats(t.k) + b * 9 * t.k.strides[0], 0, lengths[b], place);
    v.take(floats(t.v) + b * 9 * t.v.strides[0], 0, lengths[b], place);
  }
  const fa3::FlashAttnWithKvcacheArgs args{.cache_seqlens = tensor(lengths, {2}),
                                           .page_table = tensor(table, {2, 3}),
                                           .cu_seqlens_q = t.cu_seqlens_q,
                                           .max_seqlen_q = 3,
                                           .causal = true,
                                           .window_size = {6, -1}};
  const auto call = [&](const fa3::FlashAttnWithKvcacheArgs& changed) {
    return fa3::flash_attn_with_kvcache(context, t.q, k.tensor, v.tensor, t.o, t.lse, changed);
  };
  expect_done(call(args));
  world.expect_right();

  const struct {
    const char* says;
    Tensor fa3::FlashAttnWithKvcacheArgs::*field;
  } table_of_refusals[] = {
      {"qv is given", &fa3::FlashAttnWithKvcacheArgs::qv},
      {"cu_seqlens_k_new is given", &fa3::FlashAttnWithKvcacheArgs::cu_seqlens_k_new},
      {"rotary_seqlens is given", &fa3::FlashAttnWithKvcacheArgs::rotary_seqlens},
  };
  for (const auto& [says, field] : table_of_refusals) {
    fa3::FlashAttnWithKvcacheArgs changed = args;
    changed.*field = t.cu_seqlens_q;
    expect_refused(call(changed), says, TILEWISE_UNSUPPORTED);
  }
  expect_refused(fa3::flash_attn_func(context, t.q, t.k, t.v, t.o, t.lse, {.qv = t.q}),
                 "qv is given", TILEWISE_UNSUPPORTED);
}

TEST(FlashAttn3, FuncAndVarlen) {
  Context context;
  const World dense("fwd b2 sq40 sk21 hq4 hk2 d16 causal chunk=8");
  const tilewise_attention& t = dense.tensors;
  expect_done(fa3::flash_attn_func(context, t.q, t.k, t.v, t.o, t.lse,
                                   {.causal = true, .attention_chunk = 8}));
  dense.expect_right();
  const World packed("fwd sq9,0,20 sk30,5,1 h2 d16 packed softcap=2");
  const tilewise_attention& p = packed.tensors;
  expect_done(fa3::flash_attn_varlen_func(context, p.q, p.k, p.v, p.cu_seqlens_q, p.cu_seqlens_k,
                                          20, 30, p.o, p.lse, {.softcap = 2}));
  packed.expect_right();
}

TEST(FlashAttn, ItsRefusals) {
  Context context;
  const World world("fwd sq4 sk4 d8");
  const tilewise_attention& t = world.tensors;
  expect_refused(
      flash_attn_func(context, t.q, t.k, t.v, t.o, t.lse, {.softmax_scale = std::nan("")}),
      "softmax_scale is not a number");
  expect_refused(flash_attn_func(context, t.q, {}, t.v, t.o, {}), "k is absent");
  Context other = std::move(context);
  expect_done(flash_attn_func(other, t.q, t.k, t.v, t.o, {}));
  world.expect_right(false);
}

TEST(ScaledDotProductAttention, FollowsPyTorch) {
  Context context;
  struct Row {
    std::string line;
    std::function<ScaledDotProductAttentionArgs(const tilewise_attention&)> args;
  };
  const Row table[] = {
      {"", [](const auto&) { return ScaledDotProductAttentionArgs{}; }},
      {" causal", [](const auto&) { return ScaledDotProductAttentionArgs{.is_causal = true}; }},
      {" mask=b,1,q,k",
       [](const auto& t) { return ScaledDotProductAttentionArgs{.attn_mask = t.mask}; }},
      {" bias=1,h,q,k",
       [](const auto& t) { return ScaledDotProductAttentionArgs{.attn_mask = t.bias}; }},
      {" scale=2 dropout=0.5",
       [](const auto&) {
         return ScaledDotProductAttentionArgs{.dropout_p = 0.5, .scale = 2, .rng_state = {3, 0}};
       }},
  };
  for (const Row& row : table) {
    const World world("fwd b2 sq9 sk14 h4 d8 dv16 bhsd conv=torch_sdpa" + row.line);
    const tilewise_attention& t = world.tensors;
    expect_done(scaled_dot_product_attention(context, heads_first(t.q), heads_first(t.k),
                                             heads_first(t.v), heads_first(t.o), row.args(t)));
    world.expect_right(false);
  }
  const World world("fwd b2 sq9 sk14 hq4 hk2 d8 bhsd conv=torch_sdpa");
  const tilewise_attention& t = world.tensors;
  const Tensor q = heads_first(t.q), k = heads_first(t.k), v = heads_first(t.v);
  const Tensor o = heads_first(t.o);
  expect_refused(scaled_dot_product_attention(context, q, k, v, o), "without enable_gqa");
  expect_done(scaled_dot_product_attention(context, q, k, v, o, {.enable_gqa = true}));
  world.expect_right(false);
}

TEST(ScaledDotProductAttention, BroadcastsMasksAndTakesFewerDimensions) {
  Context context;
  // [L, S] for every batch entry and head.
  {
    const World world("fwd b2 sq9 sk14 h4 d8 bhsd conv=torch_sdpa mask=1,1,q,k");
    const tilewise_attention& t = world.tensors;
    const Tensor mask =
        tensor(static_cast<const bool*>(t.mask.data), {t.mask.shape[2], t.mask.shape[3]});
    expect_done(scaled_dot_product_attention(context, heads_first(t.q), heads_first(t.k),
                                             heads_first(t.v), heads_first(t.o),
                                             {.attn_mask = mask}));
    world.expect_right(false);
  }
  // Without heads: [N, L, E] and a mask [N, L, S]; without batch: [L, E] and a bias [S].
  {
    const World world("fwd b3 sq9 sk14 h1 d8 bhsd conv=torch_sdpa mask=b,1,q,k");
    const tilewise_attention& t = world.tensors;
    const auto three = [](const Tensor& view) {
      return tensor(view.data, view.dtype, {view.shape[0], view.shape[1], view.shape[3]});
    };
    const Tensor mask = tensor(static_cast<const bool*>(t.mask.data), {3, 9, 14});
    expect_done(scaled_dot_product_attention(context, three(t.q), three(t.k), three(t.v),
                                             three(t.o), {.attn_mask = mask}));
    world.expect_right(false);
    expect_refused(scaled_dot_product_attention(context, three(t.q), three(t.k), three(t.v),
                                                three(t.o), {.attn_mask = t.mask}),
                   "attn_mask has more dimensions");
  }
  {
    const World world("fwd b1 sq9 sk14 h1 d8 conv=torch_sdpa bias=1,1,1,k");
    const tilewise_attention& t = world.tensors;
    const auto two = [](const Tensor& view) {
      return tensor(view.data, view.dtype, {view.shape[1], view.shape[3]});
    };
    const Tensor bias = tensor(static_cast<const float*>(t.bias.data), {14});
    expect_done(scaled_dot_product_attention(context, two(t.q), two(t.k), two(t.v), two(t.o),
                                             {.attn_mask = bias}));
    world.expect_right(false);
    expect_refused(scaled_dot_product_attention(context, two(t.q), two(t.k), two(t.v), two(t.o),
                                                {.attn_mask = bias, .is_causal = true}),
                   "attn_mask and is_causal are both given");
    expect_refused(scaled_dot_product_attention(context, t.q, two(t.k), two(t.v), t.o),
                   "other numbers of dimensions");
  }
}

TEST(MemoryEfficientAttention, ItsMasks) {
  Context context;
  struct Row {
    std::string line;
    AttentionBias bias;
  };
  const std::string top_left = " conv=xformers", bottom_right = " conv=xformers align=bottom_right";
  const Row table[] = {
      {top_left, {}},
      {top_left + " causal", LowerTriangularMask()},
      {bottom_right + " causal", LowerTriangularFromBottomRightMask()},
      {bottom_right + " causal window=3,-1 window_left=keys_including_self",
       LowerTriangularFromBottomRightLocalAttentionMask(3)},
      {bottom_right + " window=3,2", LocalAttentionFromBottomRightMask(3, 2)},
  };
  for (const Row& row : table) {
    const World world("fwd b2 sq9 sk14 h4 d8" + row.line);
    const tilewise_attention& t = world.tensors;
    expect_done(memory_efficient_attention(context, t.q, t.k, t.v, t.o,
                                           {.attn_bias = row.bias, .lse = t.lse}));
    world.expect_right();
  }
  const World world("fwd b2 sq9 sk14 h4 d8 conv=xformers causal bias=b,h,q,k dropout=0.5");
  const tilewise_attention& t = world.tensors;
  expect_done(memory_efficient_attention(
      context, t.q, t.k, t.v, t.o,
      {.attn_bias = LowerTriangularMaskWithTensorBias(t.bias), .p = 0.5, .rng_state = {3, 0}}));
  world.expect_right(false);
  expect_refused(memory_efficient_attention(
                     context, t.q, t.k, t.v, t.o,
                     {.attn_bias = LowerTriangularFromBottomRightLocalAttentionMask(0)}),
                 "window_size is not positive");
}

TEST(MemoryEfficientAttention, BlockDiagonalMasks) {
  Context context;
  const auto check = [&](const std::string& line, const auto& make_bias) {
    const World world("fwd sq9,0,4 sk14,3,5 h2 d8 packed conv=xformers" + line);
    const tilewise_attention& t = world.tensors;
    const AttentionBias bias = make_bias(t.cu_seqlens_q, t.cu_seqlens_k);
    expect_done(memory_efficient_attention(context, with_batch_of_one(t.q), with_batch_of_one(t.k),
                                           with_batch_of_one(t.v), with_batch_of_one(t.o),
                                           {.attn_bias = bias, .lse = t.lse}));
    world.expect_right();
  };
  using T = const Tensor&;
  const std::string window = " causal window=3,-1 window_left=keys_including_self";
  check("", [](T q, T k) { return BlockDiagonalMask(q, k, 9, 14); });
  check(" causal", [](T q, T k) { return BlockDiagonalCausalMask(q, k); });
  check(" causal align=bottom_right",
        [](T q, T k) { return BlockDiagonalCausalFromBottomRightMask(q, k); });
  check(window, [](T q, T k) { return BlockDiagonalCausalLocalAttentionMask(q, k, 3); });
  check(window + " align=bottom_right",
        [](T q, T k) { return BlockDiagonalCausalLocalAttentionFromBottomRightMask(q, k, 3); });
}

TEST(MemoryEfficientAttention, PaddedAndGappyKeysAreTheirUsedKeys) {
  Context context;
  const World world("fwd sq4,2,3 sk5,7,3 h2 d8 packed conv=xformers");
  const tilewise_attention& t = world.tensors;
  constexpr std::int64_t padding = 8, width = 2 * 8;
  const std::int32_t used[] = {5, 7, 3}, starts[] = {0, 8, 16, 24};
  const Tensor kv_seqlen = tensor(used, {3}), kv_starts = tensor(starts, {4});
  // What is not in use is NaN: it must not be looked at.
  const auto padded = [&](const Tensor& packed, std::vector<float>& memory) {
    memory.assign(3 * padding * width, std::numeric_limits<float>::quiet_NaN());
    const auto* from = static_cast<const float*>(packed.data);
    for (std::size_t b = 0; b < 3; ++b) {
      const std::int64_t count = used[b] * width;
      std::copy(from, from + count, memory.begin() + starts[b] * width);
      from += count;
    }
    return tensor(memory.data(), {1, 3 * padding, 2, 8});
  };
  std::vector<float> k_memory, v_memory;
  const Tensor k = padded(t.k, k_memory), v = padded(t.v, v_memory);
  const Tensor q = with_batch_of_one(t.q);
  const auto computed = [&](const Tensor& keys, const Tensor& values, const AttentionBias& bias) {
    std::vector<float> o(9 * width);
    expect_done(memory_efficient_attention(context, q, keys, values, tensor(o.data(), {1, 9, 2, 8}),
                                           {.attn_bias = bias}));
    return o;
  };
  const Tensor packed_k = with_batch_of_one(t.k), packed_v = with_batch_of_one(t.v);
  const Tensor &cu_q = t.cu_seqlens_q, &cu_k = t.cu_seqlens_k;

  const auto all = computed(packed_k, packed_v, BlockDiagonalMask(cu_q, cu_k));
  EXPECT_EQ(computed(k, v, BlockDiagonalPaddedKeysMask(cu_q, padding, kv_seqlen)), all);
  EXPECT_EQ(computed(k, v, BlockDiagonalGappyKeysMask(cu_q, kv_starts, kv_seqlen)), all);

  const auto causal =
      computed(packed_k, packed_v, BlockDiagonalCausalFromBottomRightMask(cu_q, cu_k));
  EXPECT_NE(causal, all);
  EXPECT_EQ(computed(k, v, BlockDiagonalCausalWithOffsetPaddedKeysMask(cu_q, padding, kv_seqlen)),
            causal);
  EXPECT_EQ(computed(k, v, BlockDiagonalCausalWithOffsetGappyKeysMask(cu_q, kv_starts, kv_seqlen)),
            causal);

  const auto local = computed(packed_k, packed_v,
                              BlockDiagonalCausalLocalAttentionFromBottomRightMask(cu_q, cu_k, 2));
  EXPECT_NE(local, causal);
  EXPECT_EQ(
      computed(k, v, BlockDiagonalCausalLocalAttentionPaddedKeysMask(cu_q, padding, kv_seqlen, 2)),
      local);
  // W = 2 with the query's own is one key before, and none after.
  EXPECT_EQ(
      computed(k, v, BlockDiagonalLocalAttentionPaddedKeysMask(cu_q, padding, kv_seqlen, 1, 0)),
      local);

  expect_refused(
      memory_efficient_attention(context, q, k, v, with_batch_of_one(t.o),
                                 {.attn_bias = BlockDiagonalPaddedKeysMask(cu_q, 7, kv_seqlen)}),
      "a multiple of the padding");
}

TEST(MemoryEfficientAttention, PagedKeysAreTheirUsedKeys) {
  Context context;
  const World world("fwd sq4,2,3 sk5,7,3 h2 d8 packed conv=xformers");
  const tilewise_attention& t = world.tensors;
  constexpr std::int64_t page_size = 4;
  const std::int32_t table[] = {2, 0, -1, 4, 1, 3, 5, -1, -1}, lengths[] = {5, 7, 3};
  const std::int32_t gaps[] = {1, 2, 0}, ends[] = {6, 9, 3}, starts[] = {0, 5, 12};
  const Tensor block_tables = tensor(table, {3, 3});
  const auto in_pages = [&](const Tensor& packed, const std::int32_t* first) {
    Cache cache(6, page_size, packed);
    for (std::int64_t b = 0; b < 3; ++b)
      cache.take(floats(packed) + starts[b] * packed.strides[0], 0, lengths[b],
                 [&](std::int64_t r) {
                   const std::int64_t row = r + (first == nullptr ? 0 : first[b]);
                   return std::pair<std::int64_t, std::int64_t>(table[b * 3 + row / page_size],
                                                                row % page_size);
                 });
    return cache;
  };
  const auto computed = [&](const Tensor& keys, const Tensor& values, const AttentionBias& bias) {
    std::vector<float> o(9 * 16);
    expect_done(memory_efficient_attention(context, with_batch_of_one(t.q), keys, values,
                                           tensor(o.data(), {1, 9, 2, 8}), {.attn_bias = bias}));
    return o;
  };
  const auto of_one_batch = [](const Cache& cache) {
    return tensor(cache.memory.data(), {1, 6 * page_size, 2, 8});
  };
  const Tensor packed_k = with_batch_of_one(t.k), packed_v = with_batch_of_one(t.v);
  const Tensor &cu_q = t.cu_seqlens_q, &cu_k = t.cu_seqlens_k;
  const auto all = computed(packed_k, packed_v, BlockDiagonalMask(cu_q, cu_k));
  const auto causal =
      computed(packed_k, packed_v, BlockDiagonalCausalFromBottomRightMask(cu_q, cu_k));
  EXPECT_NE(causal, all);
  {
    const Cache k = in_pages(t.k, nullptr), v = in_pages(t.v, nullptr);
    const Tensor used = tensor(lengths, {3});
    EXPECT_EQ(computed(of_one_batch(k), of_one_batch(v),
                       PagedBlockDiagonalPaddedKeysMask(cu_q, used, block_tables, page_size)),
              all);
    EXPECT_EQ(computed(of_one_batch(k), of_one_batch(v),
                       PagedBlockDiagonalCausalWithOffsetPaddedKeysMask(cu_q, used, block_tables,
                                                                        page_size)),
              causal);
    expect_refused(memory_efficient_attention(context, with_batch_of_one(t.q), of_one_batch(k),
                                              of_one_batch(v), with_batch_of_one(t.o),
                                              {.attn_bias = PagedBlockDiagonalPaddedKeysMask(
                                                   cu_q, used, block_tables, 5)}),
                   "of paged ones of the page size");
  }
  {
    const Cache k = in_pages(t.k, gaps), v = in_pages(t.v, gaps);
    const Tensor first = tensor(gaps, {3}), end = tensor(ends, {3});
    EXPECT_EQ(computed(of_one_batch(k), of_one_batch(v),
                       PagedBlockDiagonalGappyKeysMask(cu_q, first, end, block_tables, page_size)),
              all);
    EXPECT_EQ(computed(of_one_batch(k), of_one_batch(v),
                       PagedBlockDiagonalCausalWithOffsetGappyKeysMask(cu_q, first, end,
                                                                       block_tables, page_size)),
              causal);
  }
}

TEST(MemoryEfficientAttention, FiveDimensionsAreGroupedHeads) {
  Context context;
  const World world("fwd b2 sq9 sk14 hq6 hk2 d8 conv=xformers");
  const tilewise_attention& t = world.tensors;
  const auto grouped = [](const Tensor& view) {
    Tensor five = tensor(view.data, view.dtype, {2, 9, 2, 3, 8});
    return five;
  };
  const auto expanded = [](const Tensor& view) {
    Tensor five = tensor(view.data, view.dtype, {2, 14, 2, 1, 8});
    five.shape[3] = 3;
    five.strides[3] = 0;
    return five;
  };
  expect_done(memory_efficient_attention(context, grouped(t.q), expanded(t.k), expanded(t.v),
                                         grouped(t.o), {.lse = t.lse}));
  world.expect_right();
  Tensor loose = grouped(t.q);
  loose.strides[2] += 1;
  expect_refused(
      memory_efficient_attention(context, loose, expanded(t.k), expanded(t.v), grouped(t.o)),
      "G and H one dimension in memory");
}

TEST(MergeStates, JoinsHalves) {
  Context context;
  const World world("fwd b1 sq9 sk14 h2 d8");
  const tilewise_attention& t = world.tensors;
  std::vector<float> o[2], lse[2];
  Tensor outs[2], lses[2];
  for (std::size_t half = 0; half < 2; ++half) {
    o[half].resize(9 * 2 * 8);
    lse[half].resize(2 * 9);
    outs[half] = tensor(o[half].data(), {1, 9, 2, 8});
    lses[half] = tensor(lse[half].data(), {1, 2, 9});
    Tensor k = t.k, v = t.v;
    for (Tensor* view : {&k, &v}) {
      view->data = static_cast<float*>(view->data) + (half == 0 ? 0 : 6 * view->strides[1]);
      view->shape[1] = half == 0 ? 6 : 8;
    }
    expect_done(flash_attn_func(context, t.q, k, v, outs[half], lses[half]));
  }
  expect_done(merge_states(context, {outs[0], outs[1]}, {lses[0], lses[1]}, t.o, t.lse));
  world.expect_right();
  expect_refused(merge_states(context, {outs[0], outs[1]}, {lses[0]}, t.o, t.lse),
                 "differ in number");
}

TEST(Available, SaysWhoAndWhyNot) {
  const Context context;
  const auto none = [](std::initializer_list<std::int64_t> shape) {
    return tensor(nullptr, TILEWISE_BF16, shape);
  };
  const Tensor q = none({1, 128, 8, 64}), k = none({1, 256, 2, 64});
  const Availability yes = available(context, describe::flash_attn_func(q, k, k, q, {}));
  EXPECT_TRUE(yes);
  EXPECT_EQ(yes.fast(), std::string(yes.implementation()) != "cpu.portable");
  EXPECT_STRNE(yes.reason(), "");

  const Tensor wide = none({1, 128, 8, 1024});
  const Availability no = available(context, describe::flash_attn_func(wide, wide, wide, wide, {}));
  EXPECT_FALSE(no);
  EXPECT_EQ(no.code(), TILEWISE_UNSUPPORTED);
  EXPECT_NE(std::string(no.reason()).find("head_dim is 1024"), std::string::npos);

  const Availability wrong = available(
      context,
      describe::scaled_dot_product_attention(q, k, k, q, {.attn_mask = q, .is_causal = true}));
  EXPECT_FALSE(wrong);
  EXPECT_NE(std::string(wrong.reason()).find("attn_mask and is_causal"), std::string::npos);
}

TEST(ContextClass, SaysWhatWentWrong) {
  ContextOptions options;
  options.threads = -3;
  Context context(options);
  EXPECT_FALSE(context);
  expect_refused(context.result(), "threads is -3");
  const World world("fwd sq4 sk4 d8");
  const tilewise_attention& t = world.tensors;
  expect_refused(flash_attn_func(context, t.q, t.k, t.v, t.o, t.lse), "context is null");
}

}  // namespace
}  // namespace tilewise
