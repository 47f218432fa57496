// The C interface's caches and quantised keys: every kind of bad input, structs of headers that
// knew neither, and small results that can be had another way: the same rows gathered, turned or
// scaled by hand.
#include "tests/capi_support.hpp"

#include "core/quantised.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace tilewise::tests {
namespace {

/// What all worlds with a cache share: 2 sequences of 2 queries, 4 query and 2 key heads, 2 new
/// rows behind 5 (of which one is padding) and 4.
void add_all_but_the_cache(World& world) {
  tilewise_attention& a = world.attention;
  EXPECT_EQ(tilewise_attention_init(&a, nullptr), TILEWISE_OK);
  a.causal = 1;
  a.q = world.input(TILEWISE_F32, {2, 2, 4, 8});
  a.seqlens_k = world.indices({2}, {5, 4});
  a.cache_leftpad = world.indices({2}, {1, 0});
  a.k_new = world.input(TILEWISE_F32, {2, 2, 2, 8});
  a.v_new = world.input(TILEWISE_F32, {2, 2, 2, 4});
  a.rotary_cos = world.input(TILEWISE_F32, {8, 3});
  a.rotary_sin = world.input(TILEWISE_F32, {8, 3});
  a.q_descale = world.input(TILEWISE_F32, {2, 2});
  a.k_descale = world.input(TILEWISE_F32, {2, 2});
  a.v_descale = world.input(TILEWISE_F32, {2, 2});
  a.bias = world.input(TILEWISE_F32, {1, 4, 2, 7});
  a.o = world.output(TILEWISE_F32, {2, 2, 4, 4});
  a.lse = world.output(TILEWISE_F32, {2, 4, 2});
}

/// Pages of 4 rows; the entries of the table that no row reaches name none.
World paged() {
  World world;
  add_all_but_the_cache(world);
  tilewise_attention& a = world.attention;
  a.k = world.input(TILEWISE_F32, {6, 4, 2, 8});
  a.v = world.input(TILEWISE_F32, {6, 4, 2, 4});
  a.block_table = world.indices({2, 3}, {5, 0, -9, 2, 3, 77});
  return world;
}

/// Rows of a cache that has more of them than there are sequences.
World slots() {
  World world;
  add_all_but_the_cache(world);
  tilewise_attention& a = world.attention;
  a.k = world.input(TILEWISE_F32, {4, 8, 2, 8});
  a.v = world.input(TILEWISE_F32, {4, 8, 2, 4});
  a.cache_batch_idx = world.indices({2}, {3, 1});
  return world;
}

/// k as whole numbers with scales, v in blocks of 32: head_dim 32, head_dim_v 64.
World quantised() {
  World world;
  tilewise_attention& a = world.attention;
  EXPECT_EQ(tilewise_attention_init(&a, nullptr), TILEWISE_OK);
  a.q = world.input(TILEWISE_F32, {2, 3, 4, 32});
  a.k = world.input(TILEWISE_I8, {2, 5, 2, 32});
  a.k_scales = world.input(TILEWISE_F32, {2, 5, 2});
  for (int i = 0; i < 20; ++i) static_cast<float*>(a.k_scales.data)[i] /= 128;
  a.v = world.input(TILEWISE_Q8_0, {2, 5, 2, 2});
  a.o = world.output(TILEWISE_F32, {2, 3, 4, 64});
  a.lse = world.output(TILEWISE_F32, {2, 4, 3});
  return world;
}

void forward(const tilewise_attention& attention) {
  const Context context = serial();
  const Workspace workspace(workspace_bytes(context, attention, TILEWISE_FORWARD));
  tilewise_error error = TILEWISE_ERROR_INIT;
  ASSERT_EQ(compute(context, attention, TILEWISE_FORWARD, workspace, error), TILEWISE_OK)
      << error.message;
}

BadInput row(const char* name, std::function<void(World&)> spoil, const char* says,
             tilewise_status code = bad_argument) {
  return {name, std::move(spoil), code, says, TILEWISE_FORWARD};
}

/// Shifts a tensor's memory by bytes.
void shift(tilewise_tensor& tensor, std::ptrdiff_t bytes) {
  tensor.data = static_cast<char*>(tensor.data) + bytes;
}

TEST(BadCache, TheUnspoiltProblemsRun) {
  for (const auto make : {paged, slots, quantised}) {
    const World world = make();
    forward(world.attention);
    for (const Buffer& buffer : world.outputs) EXPECT_FALSE(buffer.untouched());
  }
}

TEST(BadCache, FieldsThatDoNotGoTogether) {
  const std::vector<BadInput> table = {
      row(
          "a table and rows by name",
          [](World& w) {
            w.attention.cache_batch_idx = w.indices({2}, {0, 1});
          },
          "block_table and cache_batch_idx are both given"),
      row(
          "k_new alone", [](World& w) { w.attention.v_new = {}; },
          "of k_new and v_new one is given"),
      row(
          "v_new alone", [](World& w) { w.attention.k_new = {}; },
          "of k_new and v_new one is given"),
      row(
          "cosines alone", [](World& w) { w.attention.rotary_sin = {}; },
          "of rotary_cos and rotary_sin one is given"),
      row(
          "sines alone", [](World& w) { w.attention.rotary_cos = {}; },
          "of rotary_cos and rotary_sin one is given"),
      row(
          "a table without lengths", [](World& w) { w.attention.seqlens_k = {}; },
          "block_table is given without seqlens_k"),
      row(
          "new rows without lengths",
          [](World& w) { w.attention.block_table = w.attention.seqlens_k = {}; },
          "k_new is given without seqlens_k"),
      row(
          "turning without lengths",
          [](World& w) {
            tilewise_attention& a = w.attention;
            a.block_table = a.seqlens_k = a.k_new = a.v_new = {};
          },
          "rotary_cos is given without seqlens_k"),
      row(
          "packed keys",
          [](World& w) {
            w.attention.cu_seqlens_k = w.indices({3}, {0, 1, 2});
          },
          "block_table is given beside cu_seqlens_k"),
      {"backward", [](World&) {}, unsupported,
       "block_table is given; attention over a cache has no backward pass", TILEWISE_BACKWARD},
  };
  for (const BadInput& bad : table) {
    World world = paged();
    tilewise_attention& a = world.attention;
    if (bad.pass == TILEWISE_BACKWARD) {  // whose absence would be refused before
      a.dout = world.input(TILEWISE_F32, {2, 2, 4, 4});
      a.dq = world.output(TILEWISE_F32, {2, 2, 4, 8});
      a.dk = world.output(TILEWISE_F32, {6, 4, 2, 8});
      a.dv = world.output(TILEWISE_F32, {6, 4, 2, 4});
    }
    expect_refused(std::move(world), bad);
  }
}

TEST(BadCache, ShapesAndDTypes) {
  expect_all_refused(
      paged,
      {
          row(
              "table of 1", [](World& w) { w.attention.block_table.ndim = 1; },
              "block_table has shape [2]; expected [2, pages of a sequence]"),
          row(
              "table of another batch", [](World& w) { w.attention.block_table.shape[0] = 1; },
              "block_table has shape [1, 3]"),
          row(
              "table of floats", [](World& w) { w.attention.block_table.dtype = TILEWISE_F32; },
              "block_table has dtype f32; expected i32"),
          row(
              "leftpad", [](World& w) { w.attention.cache_leftpad.shape[0] = 1; },
              "cache_leftpad has shape [1]; expected [2], [batch]"),
          row(
              "leftpad of floats", [](World& w) { w.attention.cache_leftpad.dtype = TILEWISE_F32; },
              "cache_leftpad has dtype f32; expected i32"),
          row(
              "lengths", [](World& w) { w.attention.seqlens_k.shape[0] = 1; },
              "seqlens_k has shape [1]; expected [2], [batch]"),
          row(
              "lengths of floats", [](World& w) { w.attention.seqlens_k.dtype = TILEWISE_F32; },
              "seqlens_k has dtype f32; expected i32"),
          row(
              "empty pages", [](World& w) { w.attention.k.shape[1] = w.attention.v.shape[1] = 0; },
              "k has pages of 0 rows"),
          row(
              "packed pages", [](World& w) { w.attention.k.ndim = 3; }, "k has 3 dimensions"),
          row(
              "other pages of v", [](World& w) { w.attention.v.shape[0] = 5; },
              "v has shape [5, 4, 2, 4]; expected [6, 4, 2, 4]"),
          row(
              "k_new of 3", [](World& w) { w.attention.k_new.ndim = 3; },
              "k_new has 3 dimensions; expected 4, [batch, seqlen_new"),
          row(
              "k_new", [](World& w) { w.attention.k_new.shape[3] = 7; },
              "k_new has shape [2, 2, 2, 7]; expected [2, 2, 2, 8]"),
          row(
              "k_new's batch", [](World& w) { w.attention.k_new.shape[0] = 1; },
              "k_new has shape [1, 2, 2, 8]"),
          row(
              "v_new is shorter", [](World& w) { w.attention.v_new.shape[1] = 1; },
              "v_new has shape [2, 1, 2, 4]; expected [2, 2, 2, 4]"),
          row(
              "k_new of f16", [](World& w) { w.attention.k_new.dtype = TILEWISE_F16; },
              "k_new has dtype f16; expected f32"),
          row(
              "v_new of f16", [](World& w) { w.attention.v_new.dtype = TILEWISE_F16; },
              "v_new has dtype f16; expected f32"),
          row(
              "appending to fp8", [](World& w) { w.attention.v.dtype = TILEWISE_E4M3; },
              "v_new is given and v has dtype e4m3; rows are appended to a cache of q's dtype",
              unsupported),
          row(
              "cosines of 1", [](World& w) { w.attention.rotary_cos.ndim = 1; },
              "rotary_cos has shape [8]; expected [positions, pairs]"),
          row(
              "sines of another shape", [](World& w) { w.attention.rotary_sin.shape[1] = 2; },
              "rotary_sin has shape [8, 2]; expected [8, 3], rotary_cos's"),
          row(
              "sines of another length", [](World& w) { w.attention.rotary_sin.shape[0] = 7; },
              "rotary_sin has shape [7, 3]; expected [8, 3], rotary_cos's"),
          row(
              "too many pairs",
              [](World& w) {
                w.attention.rotary_cos = w.input(TILEWISE_F32, {8, 5});
                w.attention.rotary_sin = w.input(TILEWISE_F32, {8, 5});
              },
              "rotary_cos turns 5 pairs; expected at most 4, half of head_dim 8"),
          row(
              "cosines of bf16", [](World& w) { w.attention.rotary_cos.dtype = TILEWISE_BF16; },
              "rotary_cos has dtype bf16; expected f32 or q's"),
          row(
              "sines of i32", [](World& w) { w.attention.rotary_sin.dtype = TILEWISE_I32; },
              "rotary_sin has dtype i32; expected f32 or q's"),
          row(
              "q_descale", [](World& w) { w.attention.q_descale.shape[1] = 4; },
              "q_descale has shape [2, 4]; expected [2, 2], [batch, nheads_k]"),
          row(
              "k_descale", [](World& w) { w.attention.k_descale.ndim = 1; },
              "k_descale has shape [2]"),
          row(
              "v_descale", [](World& w) { w.attention.v_descale.dtype = TILEWISE_F16; },
              "v_descale has dtype f16; expected f32"),
          row(
              "bias that is too short", [](World& w) { w.attention.bias.shape[3] = 5; },
              "bias has shape [1, 4, 2, 5]; expected [2, 4, 2, 6]"),
          row(
              "misaligned table", [](World& w) { shift(w.attention.block_table, 2); },
              "block_table is misaligned"),
          row(
              "null lengths", [](World& w) { w.attention.seqlens_k.data = nullptr; },
              "seqlens_k has elements and its data is null"),
          row(
              "negative table", [](World& w) { w.attention.block_table.shape[1] = -1; },
              "block_table has size -1 in dimension 1"),
          row(
              "table beyond memory",
              [](World& w) { w.attention.block_table.strides[0] = std::int64_t{1} << 60; },
              "block_table has sizes and strides that reach beyond"),
      });
  expect_all_refused(
      slots, {
                 row(
                     "batch indices", [](World& w) { w.attention.cache_batch_idx.shape[0] = 1; },
                     "cache_batch_idx has shape [1]; expected [2], [batch]"),
                 row(
                     "batch indices of floats",
                     [](World& w) { w.attention.cache_batch_idx.dtype = TILEWISE_F32; },
                     "cache_batch_idx has dtype f32; expected i32"),
                 row(
                     "more rows and no names", [](World& w) { w.attention.cache_batch_idx = {}; },
                     "q is of 2 sequences, k of 4"),
             });
}

TEST(BadCache, Contents) {
  expect_all_refused(
      paged,
      {
          row(
              "negative length", [](World& w) { set_index(w.attention.seqlens_k, 0, -1); },
              "seqlens_k says -1 for sequence 0; its cache has room for 12"),
          row(
              "longer than the table", [](World& w) { set_index(w.attention.seqlens_k, 1, 13); },
              "seqlens_k says 13 for sequence 1; its cache has room for 12"),
          row(
              "no room for the new", [](World& w) { set_index(w.attention.seqlens_k, 1, 11); },
              "sequence 1 has 11 rows and 2 new ones; its cache has room for 12"),
          row(
              "negative padding", [](World& w) { set_index(w.attention.cache_leftpad, 1, -1); },
              "cache_leftpad says -1 for sequence 1; expected 0 to 4"),
          row(
              "more padding than rows",
              [](World& w) { set_index(w.attention.cache_leftpad, 0, 6); },
              "cache_leftpad says 6 for sequence 0; expected 0 to 5"),
          row(
              "page beyond", [](World& w) { set_index(w.attention.block_table, 0, 6); },
              "block_table names page 6 for rows from 1 of sequence 0; there are 6"),
          row(
              "negative page of new rows",
              [](World& w) { set_index(w.attention.block_table, 4, -1); },
              "block_table names page -1 for rows from 4 of sequence 1"),
          row(
              "a page written by both", [](World& w) { set_index(w.attention.block_table, 4, 0); },
              "sequences 0 and 1 both append to page 0"),
          row(
              "a page twice in one sequence",
              [](World& w) {
                set_index(w.attention.seqlens_k, 0, 3);
                set_index(w.attention.block_table, 1, 5);
              },
              "sequences 0 and 0 both append to page 5"),
          row(
              "longer than promised", [](World& w) { w.attention.max_seqlen_k = 5; },
              "sequence 0 of k has length 6; max_seqlen_k promised at most 5"),
          row(
              "short tables",
              [](World& w) {
                w.attention.rotary_cos.shape[0] = w.attention.rotary_sin.shape[0] = 6;
              },
              "rotary_cos has 6 positions; sequence 0 needs 7"),
          row(
              "short tables for more queries than new keys",
              [](World& w) {
                tilewise_attention& a = w.attention;
                a.k_new.shape[1] = a.v_new.shape[1] = 1;
                a.rotary_cos.shape[0] = a.rotary_sin.shape[0] = 6;
              },
              "rotary_cos has 6 positions; sequence 0 needs 7"),
      });
  expect_all_refused(
      slots,
      {
          row(
              "longer than a row", [](World& w) { set_index(w.attention.seqlens_k, 0, 9); },
              "seqlens_k says 9 for sequence 0; its cache has room for 8"),
          row(
              "no room", [](World& w) { set_index(w.attention.seqlens_k, 0, 7); },
              "sequence 0 has 7 rows and 2 new ones; its cache has room for 8"),
          row(
              "cache row beyond", [](World& w) { set_index(w.attention.cache_batch_idx, 1, 4); },
              "cache_batch_idx names cache row 4 for sequence 1; there are 4"),
          row(
              "negative cache row", [](World& w) { set_index(w.attention.cache_batch_idx, 0, -1); },
              "cache_batch_idx names cache row -1 for sequence 0"),
          row(
              "a cache row twice", [](World& w) { set_index(w.attention.cache_batch_idx, 0, 1); },
              "sequences 0 and 1 both append to cache row 1"),
      });
}

TEST(BadCache, CachesThatShareMemory) {
  expect_all_refused(
      paged,
      {
          row(
              "v in k", [](World& w) { w.attention.v.data = w.attention.k.data; },
              "k shares memory with v"),
          row(
              "k is k_new", [](World& w) { w.attention.k_new.data = w.attention.k.data; },
              "k shares memory with k_new"),
          row(
              "q in v", [](World& w) { w.attention.q.data = w.attention.v.data; },
              "v shares memory with q"),
          row(
              "the table in k",
              [](World& w) {
                // Where page 5, that the table has to name, is the first word.
                w.attention.block_table.data = w.attention.k.data;
                const std::int32_t table[] = {5, 0, -9, 2, 3, 77};
                std::memcpy(w.attention.k.data, table, sizeof table);
              },
              "k shares memory with block_table"),
          row(
              "o in k", [](World& w) { w.attention.o.data = w.attention.k.data; },
              "k shares memory with o"),
          row(
              "the angles in o", [](World& w) { w.attention.rotary_cos.data = w.attention.o.data; },
              "o shares memory with rotary_cos"),
          row(
              "pages on each other", [](World& w) { w.attention.k.strides[0] = 0; },
              "k has stride 0 in dimension 0"),
          row(
              "rows on rows", [](World& w) { w.attention.v.strides[1] = 4; },
              "v has strides by which its elements share memory"),
      });
  World world = paged();
  const Context context = serial();
  const std::size_t bytes = workspace_bytes(context, world.attention, TILEWISE_FORWARD);
  const Workspace workspace(bytes + 4096);
  world.attention.cache_leftpad.data = workspace.data + 64;
  std::memset(world.attention.cache_leftpad.data, 0, 8);
  tilewise_error error = TILEWISE_ERROR_INIT;
  EXPECT_EQ(compute(context, world.attention, TILEWISE_FORWARD, workspace, error), bad_argument);
  EXPECT_STREQ(error.message, "cache_leftpad lies in the workspace; expected memory of its own");
}

TEST(BadQuantised, Inputs) {
  expect_all_refused(
      quantised,
      {
          row(
              "no scales", [](World& w) { w.attention.k_scales = {}; },
              "k has dtype i8 and k_scales is absent"),
          row(
              "scales of blocks",
              [](World& w) {
                w.attention.v_scales = w.input(TILEWISE_F32, {2, 5, 2});
              },
              "v_scales is given and v has dtype q8_0"),
          row(
              "scales' shape", [](World& w) { w.attention.k_scales.shape[1] = 4; },
              "k_scales has shape [2, 4, 2]; expected [2, 5, 2], one for each row and head"),
          row(
              "scales of each number",
              [](World& w) {
                w.attention.k_scales = w.input(TILEWISE_F32, {2, 5, 2, 32});
              },
              "k_scales has shape [2, 5, 2, 32]"),
          row(
              "scales of f16", [](World& w) { w.attention.k_scales.dtype = TILEWISE_F16; },
              "k_scales has dtype f16; expected f32"),
          row(
              "v of f16", [](World& w) { w.attention.v.dtype = TILEWISE_F16; },
              "v has dtype f16, q has f32"),
          row(
              "queries of i8", [](World& w) { w.attention.q.dtype = TILEWISE_I8; },
              "q has dtype i8; expected a floating-point one"),
          row(
              "queries in blocks", [](World& w) { w.attention.q.dtype = TILEWISE_Q8_0; },
              "q has dtype q8_0; expected a floating-point one"),
          row(
              "half blocks",
              [](World& w) {
                tilewise_attention& a = w.attention;
                a.q.shape[3] = 24;
                a.k = a.v;
                a.k.shape[3] = 1;
                a.k_scales = {};
              },
              "head_dim is 24; expected a multiple of 32 beside keys in q8_0"),
          row(
              "blocks counted as numbers",
              [](World& w) {
                w.attention.k = w.input(TILEWISE_Q8_0, {2, 5, 2, 32});
                w.attention.k_scales = {};
              },
              "k has shape [2, 5, 2, 32]; expected [2, 5, 2, 1]"),
          row(
              "o counts numbers", [](World& w) { w.attention.o.shape[3] = 2; },
              "o has shape [2, 3, 4, 2]; expected [2, 3, 4, 64]"),
          row(
              "misaligned blocks", [](World& w) { shift(w.attention.v, 1); },
              "v is misaligned: its address is no multiple of the 2 bytes of q8_0"),
          row(
              "wide blocks", [](World& w) { w.attention.v.shape[3] = 17; }, "head_dim_v is 544",
              unsupported),
          row(
              "a dtype beyond the last", [](World& w) { w.attention.k.dtype = 12; },
              "k has dtype number 12"),
      });
  World world = quantised();
  tilewise_attention& a = world.attention;
  a.dout = world.input(TILEWISE_F32, {2, 3, 4, 64});
  a.dq = world.output(TILEWISE_F32, {2, 3, 4, 32});
  a.dk = world.output(TILEWISE_F32, {2, 5, 2, 32});
  a.dv = world.output(TILEWISE_F32, {2, 5, 2, 64});
  expect_refused(std::move(world),
                 {"backward", [](World&) {}, unsupported,
                  "k has dtype i8 beside f32 of q; quantised keys and values have no backward pass",
                  TILEWISE_BACKWARD});
}

/// Blocks need 2-byte alignment and no more: 34 is no power of two.
TEST(Quantised, BlocksMayBeginAtAnyEvenAddress) {
  World world = quantised();
  tilewise_attention& a = world.attention;
  forward(a);
  const std::string expected = world.output_bytes();
  Buffer moved(TILEWISE_Q8_0, {3, 5, 2, 2});
  std::memcpy(reinterpret_cast<char*>(moved.memory.data()) + 2, a.v.data, 2 * 5 * 2 * 2 * 34);
  a.v.data = reinterpret_cast<char*>(moved.memory.data()) + 2;
  world.clear_outputs();
  forward(a);
  EXPECT_EQ(world.output_bytes(), expected);
}

// --------------------------------------------------------------------- structs of other versions

TEST(StructSize, AStructFromBeforeTheCacheIsWhatItWas) {
  World world = dense();
  run_both(serial(), world.attention);
  const std::string expected = world.output_bytes();
  tilewise_attention& a = world.attention;
  world.clear_outputs();
  std::memset(reinterpret_cast<char*>(&a) + offsetof(tilewise_attention, block_table), 0xcc,
              sizeof a - offsetof(tilewise_attention, block_table));
  a.struct_size = offsetof(tilewise_attention, block_table);
  run_both(serial(), a);
  EXPECT_EQ(world.output_bytes(), expected);
}

TEST(StructSize, WithoutRotaryInterleavedPairsAreInterleaved) {
  const auto computed = [](std::int32_t interleaved, std::uint32_t size) {
    World world = paged();
    tilewise_attention& a = world.attention;
    EXPECT_EQ(a.rotary_interleaved, 1);
    a.q_descale = a.k_descale = a.v_descale = {};
    a.rotary_interleaved = interleaved;
    a.struct_size = size;
    forward(a);
    return world.output_bytes();
  };
  constexpr auto older =
      static_cast<std::uint32_t>(offsetof(tilewise_attention, rotary_interleaved));
  const std::string expected = computed(1, sizeof(tilewise_attention));
  EXPECT_NE(computed(0, sizeof(tilewise_attention)), expected);
  EXPECT_EQ(computed(0, older), expected);
}

TEST(Query, ACacheNeedsNoMemoryToBeAskedAbout) {
  World world = paged();
  tilewise_attention& a = world.attention;
  for (tilewise_tensor* view :
       {&a.q, &a.k, &a.v, &a.o, &a.lse, &a.block_table, &a.seqlens_k, &a.cache_leftpad, &a.k_new,
        &a.v_new, &a.rotary_cos, &a.rotary_sin, &a.k_descale})
    view->data = nullptr;
  tilewise_answer answer = TILEWISE_ANSWER_INIT;
  ASSERT_EQ(tilewise_query(serial().get(), &a, TILEWISE_FORWARD, &answer, nullptr), TILEWISE_OK);
  EXPECT_EQ(answer.code, TILEWISE_OK) << answer.reason;
  ASSERT_EQ(tilewise_query(serial().get(), &a, TILEWISE_BACKWARD, &answer, nullptr), TILEWISE_OK);
  EXPECT_NE(answer.code, TILEWISE_OK);
}

// --------------------------------------------------------------------------- results by other ways

const float* floats(const tilewise_tensor& view) {
  return static_cast<const float*>(view.data);
}

std::size_t offset(const tilewise_tensor& view, std::int64_t block, std::int64_t row,
                   std::int64_t head) {
  return static_cast<std::size_t>(block * view.strides[0] + row * view.strides[1] +
                                  head * view.strides[2]);
}

/// Page (or cache row) and row in it of row r of sequence b.
std::pair<std::int64_t, std::int64_t> place(const tilewise_attention& a, std::int64_t b,
                                            std::int64_t r) {
  const auto entry = [](const tilewise_tensor& view, std::int64_t i) {
    return std::int64_t{static_cast<const std::int32_t*>(view.data)[i]};
  };
  if (a.block_table.data == nullptr) return {entry(a.cache_batch_idx, b), r};
  const std::int64_t size = a.k.shape[1];
  return {entry(a.block_table, b * a.block_table.shape[1] + r / size), r % size};
}

/// One sequence's queries and the keys that it sees, gathered from the cache: row by row.
World gathered(const tilewise_attention& a, std::int64_t b, std::int64_t first, std::int64_t end) {
  World world;
  tilewise_attention& plain = world.attention;
  plain = a;
  plain.block_table = plain.cache_batch_idx = plain.cache_leftpad = {};
  plain.k_new = plain.v_new = plain.rotary_cos = plain.rotary_sin = plain.seqlens_k = {};
  plain.q = world.input(TILEWISE_F32, {1, a.q.shape[1], a.q.shape[2], a.q.shape[3]});
  std::memcpy(plain.q.data, floats(a.q) + b * a.q.strides[0],
              static_cast<std::size_t>(a.q.strides[0]) * sizeof(float));
  for (const auto& [from, to] : {std::pair{&a.k, &plain.k}, std::pair{&a.v, &plain.v}}) {
    *to = world.input(TILEWISE_F32, {1, end - first, from->shape[2], from->shape[3]});
    for (std::int64_t r = first; r < end; ++r)
      for (std::int64_t h = 0; h < from->shape[2]; ++h) {
        const auto [block, place_in_block] = place(a, b, r);
        std::memcpy(static_cast<float*>(to->data) + offset(*to, 0, r - first, h),
                    floats(*from) + offset(*from, block, place_in_block, h),
                    static_cast<std::size_t>(from->shape[3]) * sizeof(float));
      }
  }
  plain.bias = world.input(TILEWISE_F32, {1, 4, 2, end - first});
  for (std::int64_t h = 0; h < 4; ++h)
    for (std::int64_t i = 0; i < 2; ++i)
      for (std::int64_t j = 0; j < end - first; ++j)
        static_cast<float*>(plain.bias.data)[(h * 2 + i) * (end - first) + j] =
            floats(a.bias)[offset(a.bias, 0, h, i) + static_cast<std::size_t>(j)];
  plain.o = world.output(TILEWISE_F32, {1, 2, 4, 4});
  plain.lse = world.output(TILEWISE_F32, {1, 4, 2});
  return world;
}

/// o and lse of sequence b as one string of bytes.
std::string results_of(const tilewise_attention& a, std::int64_t b) {
  const auto bytes = [&](const tilewise_tensor& view) {
    return std::string(reinterpret_cast<const char*>(floats(view) + b * view.strides[0]),
                       static_cast<std::size_t>(view.strides[0]) * sizeof(float));
  };
  return bytes(a.o) + bytes(a.lse);
}

TEST(Cache, IsAPlainCallOnTheRowsGathered) {
  for (const auto make : {paged, slots}) {
    World world = make();
    tilewise_attention& a = world.attention;
    a.rotary_cos = a.rotary_sin = {};
    a.q_descale = a.k_descale = a.v_descale = {};
    // What is not in use is never looked at: a NaN in it would show.
    const std::vector<float> old_k(floats(a.k), floats(a.k) + a.k.shape[0] * a.k.strides[0]);
    forward(a);
    const std::int64_t first[] = {1, 0}, held[] = {5, 4};
    std::vector<bool> appended(old_k.size());
    for (std::int64_t b = 0; b < 2; ++b) {
      for (std::int64_t n = 0; n < 2; ++n)
        for (std::int64_t h = 0; h < 2; ++h) {
          const auto [block, r] = place(a, b, held[b] + n);
          const std::size_t at = offset(a.k, block, r, h);
          // NOLINTNEXTLINE(bugprone-suspicious-memory-comparison): the same bits
          EXPECT_EQ(std::memcmp(floats(a.k) + at, floats(a.k_new) + offset(a.k_new, b, n, h),
                                8 * sizeof(float)),
                    0);
          // NOLINTNEXTLINE(bugprone-suspicious-memory-comparison): the same bits
          EXPECT_EQ(std::memcmp(floats(a.v) + offset(a.v, block, r, h),
                                floats(a.v_new) + offset(a.v_new, b, n, h), 4 * sizeof(float)),
                    0);
          for (std::size_t x = 0; x < 8; ++x) appended[at + x] = true;
        }
      World plain = gathered(a, b, first[b], held[b] + 2);
      forward(plain.attention);
      EXPECT_EQ(results_of(plain.attention, 0), results_of(a, b));
    }
    // And nothing else of the cache has changed.
    for (std::size_t i = 0; i < old_k.size(); ++i)
      EXPECT_TRUE(appended[i] || floats(a.k)[i] == old_k[i]) << i;
  }
}

TEST(Cache, PaddingAndUnusedRowsMayBeNan) {
  World world = paged();
  tilewise_attention& a = world.attention;
  forward(a);
  const std::string expected = world.output_bytes();
  const auto spoil = [&](std::int64_t page, std::int64_t r) {
    for (const tilewise_tensor* view : {&a.k, &a.v})
      for (std::int64_t h = 0; h < 2; ++h)
        std::fill_n(static_cast<float*>(view->data) + offset(*view, page, r, h), view->shape[3],
                    static_cast<float>(nan));
  };
  World again = paged();
  tilewise_attention& b = again.attention;
  std::swap(a, b);  // `spoil` works on the fresh one
  spoil(5, 0);      // sequence 0's padding
  for (std::int64_t r = 0; r < 4; ++r) {
    spoil(1, r);  // pages that nobody has
    spoil(4, r);
  }
  spoil(0, 3);  // rows behind the new ones
  spoil(3, 2);
  again.clear_outputs();
  forward(a);
  std::swap(a, b);
  EXPECT_EQ(again.output_bytes(), expected);
}

/// Pairs (2p, 2p + 1), or (p, p + pairs), turned by the angles of `position`.
void turn(const tilewise_attention& a, std::int64_t position, float* row) {
  const std::int64_t pairs = a.rotary_cos.shape[1];
  for (std::int64_t p = 0; p < pairs; ++p) {
    const auto at = static_cast<std::size_t>(position * pairs + p);
    const float c = floats(a.rotary_cos)[at], s = floats(a.rotary_sin)[at];
    float& x1 = row[a.rotary_interleaved ? 2 * p : p];
    float& x2 = row[a.rotary_interleaved ? 2 * p + 1 : p + pairs];
    const float turned = x1 * c - x2 * s;
    x2 = x1 * s + x2 * c;
    x1 = turned;
  }
}

TEST(Cache, RotaryTurnsByRowsOfTheCache) {
  enum class Order { none, causal, window };
  for (const std::int32_t interleaved : {0, 1})
    for (const Order order : {Order::none, Order::causal, Order::window}) {
      World world = paged();
      World by_hand = paged();
      for (World* each : {&world, &by_hand}) {
        tilewise_attention& a = each->attention;
        a.rotary_interleaved = interleaved;
        a.causal = order == Order::causal;
        // Longer than any sequence, it hides nothing; and it is a window all the same.
        a.window_left = order == Order::window ? std::int64_t{1} << 60 : -1;
      }
      tilewise_attention& turned = by_hand.attention;
      const std::int64_t held[] = {5, 4};
      for (std::int64_t b = 0; b < 2; ++b)
        for (std::int64_t i = 0; i < 2; ++i) {
          for (std::int64_t h = 0; h < 4; ++h)
            turn(turned, held[b] + (order == Order::none ? 0 : i),
                 static_cast<float*>(turned.q.data) + offset(turned.q, b, i, h));
          for (std::int64_t h = 0; h < 2; ++h)
            turn(turned, held[b] + i,
                 static_cast<float*>(turned.k_new.data) + offset(turned.k_new, b, i, h));
        }
      turned.rotary_cos = turned.rotary_sin = {};
      forward(world.attention);
      forward(turned);
      for (int x = 0; x < 2 * 2 * 4 * 4; ++x)
        EXPECT_NEAR(floats(world.attention.o)[x], floats(turned.o)[x], 1e-5);
      for (int x = 0; x < 6 * 4 * 2 * 8; ++x)
        EXPECT_NEAR(floats(world.attention.k)[x], floats(turned.k)[x], 1e-6);
    }
}

TEST(Cache, ARowIsItsOwnWithoutNewKeysOrLengths) {
  // Padding alone: the whole cache but its first row or two.
  World world = slots();
  tilewise_attention& a = world.attention;
  a.seqlens_k = a.k_new = a.v_new = a.rotary_cos = a.rotary_sin = {};
  a.q_descale = a.k_descale = a.v_descale = {};
  a.bias = world.input(TILEWISE_F32, {1, 4, 2, 8});
  forward(a);
  for (const std::int64_t b : {0, 1}) {
    World plain = gathered(a, b, b == 0 ? 1 : 0, 8);
    forward(plain.attention);
    EXPECT_EQ(results_of(plain.attention, 0), results_of(a, b));
  }
}

TEST(Cache, ManyPagesAppendedTo) {
  // More pages than are ticked off at once, in reverse, one row each; then one of them twice.
  constexpr std::int64_t pages = 70000, batch = 7, each = 10000;
  World world;
  tilewise_attention& a = world.attention;
  ASSERT_EQ(tilewise_attention_init(&a, nullptr), TILEWISE_OK);
  a.q = world.input(TILEWISE_F32, {batch, 1, 1, 1});
  a.k = world.input(TILEWISE_F32, {pages, 1, 1, 1});
  a.v = world.input(TILEWISE_F32, {pages, 1, 1, 1});
  a.k_new = world.input(TILEWISE_F32, {batch, each, 1, 1});
  a.v_new = world.input(TILEWISE_F32, {batch, each, 1, 1});
  a.seqlens_k = world.indices({batch}, std::vector<std::int32_t>(batch, 0));
  std::vector<std::int32_t> table(pages);
  for (std::size_t i = 0; i < table.size(); ++i)
    table[i] = static_cast<std::int32_t>(table.size() - 1 - i);
  a.block_table = world.indices({batch, each}, table);
  a.o = world.output(TILEWISE_F32, {batch, 1, 1, 1});
  forward(a);
  EXPECT_EQ(floats(a.k)[0], floats(a.k_new)[pages - 1]);
  world.clear_outputs();
  expect_refused(
      std::move(world),
      row(
          "the last page twice", [](World& w) { set_index(w.attention.block_table, 12345, 69999); },
          "sequences 0 and 1 both append to page 69999"));
}

TEST(Quantised, IsAPlainCallOnTheValues) {
  World world = quantised();
  tilewise_attention& a = world.attention;
  for (const bool descaled : {false, true}) {
    if (descaled) {
      a.q_descale = world.input(TILEWISE_F32, {2, 2});
      a.k_descale = world.input(TILEWISE_F32, {2, 2});
      a.v_descale = world.input(TILEWISE_F32, {2, 2});
    }
    const auto factor = [&](const tilewise_tensor& descale, std::int64_t b, std::int64_t head) {
      return descaled ? floats(descale)[b * 2 + head] : 1.0F;
    };
    World values;
    tilewise_attention& plain = values.attention;
    ASSERT_EQ(tilewise_attention_init(&plain, nullptr), TILEWISE_OK);
    plain.q = values.input(TILEWISE_F32, {2, 3, 4, 32});
    plain.k = values.input(TILEWISE_F32, {2, 5, 2, 32});
    plain.v = values.input(TILEWISE_F32, {2, 5, 2, 64});
    plain.o = values.output(TILEWISE_F32, {2, 3, 4, 64});
    plain.lse = values.output(TILEWISE_F32, {2, 4, 3});
    for (std::int64_t b = 0; b < 2; ++b) {
      for (std::int64_t i = 0; i < 3; ++i)
        for (std::int64_t h = 0; h < 4; ++h)
          for (std::size_t x = 0; x < 32; ++x) {
            const std::size_t at = offset(a.q, b, i, h) + x;
            static_cast<float*>(plain.q.data)[at] = floats(a.q)[at] * factor(a.q_descale, b, h / 2);
          }
      for (std::int64_t j = 0; j < 5; ++j)
        for (std::int64_t h = 0; h < 2; ++h) {
          const float scale = floats(a.k_scales)[(b * 5 + j) * 2 + h] * factor(a.k_descale, b, h);
          for (std::size_t x = 0; x < 32; ++x) {
            const std::size_t at = offset(a.k, b, j, h) + x;
            static_cast<float*>(plain.k.data)[at] =
                scale * static_cast<float>(static_cast<const std::int8_t*>(a.k.data)[at]);
          }
          for (std::size_t x = 0; x < 64; ++x) {
            BlockQ8 block;
            std::memcpy(
                &block,
                static_cast<const char*>(a.v.data) + (offset(a.v, b, j, h) + x / 32) * sizeof block,
                sizeof block);
            static_cast<float*>(plain.v.data)[offset(plain.v, b, j, h) + x] =
                static_cast<float>(block.x[x % 32]) / 64 * factor(a.v_descale, b, h);
          }
        }
    }
    forward(a);
    forward(plain);
    for (int x = 0; x < 2 * 3 * 4 * 64; ++x) EXPECT_NEAR(floats(a.o)[x], floats(plain.o)[x], 2e-5);
    for (int x = 0; x < 2 * 4 * 3; ++x) EXPECT_NEAR(floats(a.lse)[x], floats(plain.lse)[x], 2e-5);
  }
}

TEST(Descale, GradientsAreThoseOfTheValues) {
  World world;
  tilewise_attention& a = world.attention;
  ASSERT_EQ(tilewise_attention_init(&a, nullptr), TILEWISE_OK);
  a.q = world.input(TILEWISE_F32, {1, 3, 2, 8});
  a.k = world.input(TILEWISE_F32, {1, 5, 1, 8});
  a.v = world.input(TILEWISE_F32, {1, 5, 1, 8});
  a.dout = world.input(TILEWISE_F32, {1, 3, 2, 8});
  a.q_descale = world.input(TILEWISE_F32, {1, 1});
  a.k_descale = world.input(TILEWISE_F32, {1, 1});
  a.v_descale = world.input(TILEWISE_F32, {1, 1});
  a.o = world.output(TILEWISE_F32, {1, 3, 2, 8});
  a.lse = world.output(TILEWISE_F32, {1, 2, 3});
  a.dq = world.output(TILEWISE_F32, {1, 3, 2, 8});
  a.dk = world.output(TILEWISE_F32, {1, 5, 1, 8});
  a.dv = world.output(TILEWISE_F32, {1, 5, 1, 8});
  // Powers of two: multiplying by them rounds nothing.
  const std::pair<tilewise_tensor*, tilewise_tensor*> scaled[] = {
      {&a.q_descale, &a.q}, {&a.k_descale, &a.k}, {&a.v_descale, &a.v}};
  float factor = 0.25F;
  for (const auto& [descale, values] : scaled) {
    *static_cast<float*>(descale->data) = factor;
    factor *= 4;
  }
  run_both(serial(), a);
  const std::string expected = world.output_bytes();
  for (const auto& [descale, values] : scaled) {
    for (int x = 0; x < values->shape[1] * values->strides[1]; ++x)
      static_cast<float*>(values->data)[x] *= *floats(*descale);
    *descale = {};
  }
  world.clear_outputs();
  run_both(serial(), a);
  EXPECT_EQ(world.output_bytes(), expected);
}

TEST(Splits, AreMergedIntoTheWhole) {
  World world;
  tilewise_attention& a = world.attention;
  ASSERT_EQ(tilewise_attention_init(&a, nullptr), TILEWISE_OK);
  a.q = world.input(TILEWISE_F32, {1, 3, 2, 8});
  a.k = world.input(TILEWISE_F32, {1, 500, 2, 8});
  a.v = world.input(TILEWISE_F32, {1, 500, 2, 8});
  a.o = world.output(TILEWISE_F32, {1, 3, 2, 8});
  a.lse = world.output(TILEWISE_F32, {1, 2, 3});
  forward(a);
  const std::string whole = world.output_bytes();
  const std::vector<float> o(floats(a.o), floats(a.o) + 48), lse(floats(a.lse), floats(a.lse) + 6);
  for (const std::int32_t splits : {1, 3, std::numeric_limits<std::int32_t>::max()}) {
    a.num_splits = splits;
    world.clear_outputs();
    forward(a);
    for (std::size_t x = 0; x < o.size(); ++x) EXPECT_NEAR(floats(a.o)[x], o[x], 1e-6);
    for (std::size_t x = 0; x < lse.size(); ++x) EXPECT_NEAR(floats(a.lse)[x], lse[x], 1e-5);
    EXPECT_EQ(world.output_bytes() == whole, splits == 1) << splits;
  }
}

}  // namespace
}  // namespace tilewise::tests
