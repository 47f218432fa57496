// The C interface: every kind of bad input (a code, a sentence, and nothing written), structs of
// other sizes, threads, allocators, merging, and what it says of itself. Caches and quantised keys:
// capi_cache_test.cpp.
#include "tests/capi_support.hpp"

#include "cpu/api/overlap.hpp"
#include "cpu/workers.hpp"

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <set>
#include <thread>
#include <utility>

namespace tilewise::tests {
namespace {

TEST(BadInput, TheUnspoiltProblemsRun) {
  for (const auto make : {dense, packed}) {
    const World world = make();
    run_both(serial(), world.attention);
    for (const Buffer& buffer : world.outputs) EXPECT_FALSE(buffer.untouched());
  }
}

TEST(BadInput, Tensors) {
  const BadInput table[] = {
      {"q absent", [](World& w) { w.attention.q = {}; }, bad_argument, "q is absent"},
      {"o absent", [](World& w) { w.attention.o = {}; }, bad_argument, "o is absent; the forward",
       TILEWISE_FORWARD},
      {"lse absent", [](World& w) { w.attention.lse = {}; }, bad_argument, "lse is absent"},
      {"dout absent", [](World& w) { w.attention.dout = {}; }, bad_argument, "dout is absent"},
      {"dq absent", [](World& w) { w.attention.dq = {}; }, bad_argument, "dq is absent"},
      {"null data", [](World& w) { w.attention.v.data = nullptr; }, bad_argument,
       "v has elements and its data is null"},
      {"ndim 0", [](World& w) { w.attention.k.ndim = 0; }, bad_argument, "k has 0 dimensions"},
      {"ndim 6", [](World& w) { w.attention.k.ndim = 6; }, bad_argument, "k has 6 dimensions"},
      {"ndim -1", [](World& w) { w.attention.mask.ndim = -1; }, bad_argument,
       "mask has -1 dimensions"},
      {"q of 3", [](World& w) { w.attention.q.ndim = 3; }, bad_argument, "q has 3 dimensions"},
      {"v of 3", [](World& w) { w.attention.v.ndim = 3; }, bad_argument, "v has 3 dimensions"},
      {"negative", [](World& w) { w.attention.q.shape[1] = -3; }, bad_argument,
       "q has size -3 in dimension 1"},
      {"dtype 0", [](World& w) { w.attention.q.dtype = 0; }, bad_argument, "dtype number 0"},
      {"dtype 77", [](World& w) { w.attention.o.dtype = 77; }, bad_argument, "dtype number 77"},
      {"cuda", [](World& w) { w.attention.k.device_type = TILEWISE_CUDA; }, unsupported,
       "k is on CUDA device 0; this context computes on the CPU"},
      {"device 9", [](World& w) { w.attention.k.device_type = 9; }, bad_argument,
       "k has device type 9"},
      {"misaligned",
       [](World& w) { w.attention.q.data = static_cast<char*>(w.attention.q.data) + 1; },
       bad_argument, "q is misaligned"},
      {"misaligned output",
       [](World& w) { w.attention.dq.data = static_cast<char*>(w.attention.dq.data) + 2; },
       bad_argument, "dq is misaligned"},
      {"beyond memory", [](World& w) { w.attention.k.shape[1] = std::int64_t{1} << 50; },
       bad_argument, "k has size 1125899906842624 in dimension 1"},
      {"product",
       [](World& w) {
         for (std::int64_t& size : w.attention.k.shape) size = std::int64_t{1} << 40;
         for (std::int64_t& stride : w.attention.k.strides) stride = 0;
       },
       bad_argument, "k has sizes and strides that reach beyond"},
      {"stride",
       [](World& w) { w.attention.k.strides[0] = std::numeric_limits<std::int64_t>::max(); },
       bad_argument, "k has sizes and strides that reach beyond"},
      {"negative stride",
       [](World& w) { w.attention.k.strides[0] = std::numeric_limits<std::int64_t>::min(); },
       bad_argument, "k has sizes and strides that reach beyond"},
  };
  for (const BadInput& bad : table) expect_refused(dense(), bad);
}

TEST(BadInput, Shapes) {
  const BadInput table[] = {
      {"k head_dim", [](World& w) { w.attention.k.shape[3] = 7; }, bad_argument,
       "k has shape [2, 5, 2, 7]; expected [2, 5, 2, 8]"},
      {"k batch", [](World& w) { w.attention.k.shape[0] = 1; }, bad_argument,
       "q is of 2 sequences, k of 1"},
      {"v seqlen", [](World& w) { w.attention.v.shape[1] = 4; }, bad_argument,
       "v has shape [2, 4, 2, 4]; expected [2, 5, 2, 4]"},
      {"heads", [](World& w) { w.attention.k.shape[2] = w.attention.v.shape[2] = 3; }, bad_argument,
       "4 query heads do not divide among 3"},
      {"more key heads", [](World& w) { w.attention.q.shape[2] = 1; }, bad_argument,
       "1 query heads do not divide among 2"},
      {"no heads", [](World& w) { w.attention.k.shape[2] = 0; }, bad_argument, "k has no heads"},
      {"no head_dim", [](World& w) { w.attention.q.shape[3] = 0; }, bad_argument, "head_dim is 0"},
      {"head_dim 513",
       [](World& w) {
         w.attention.q.shape[3] = w.attention.k.shape[3] = 513;
         w.attention.q.strides[3] = w.attention.k.strides[3] = 0;
       },
       unsupported, "head_dim is 513"},
      {"o", [](World& w) { w.attention.o.shape[3] = 3; }, bad_argument, "o has shape [2, 3, 4, 3]"},
      {"lse", [](World& w) { w.attention.lse.shape[2] = 2; }, bad_argument,
       "lse has shape [2, 4, 2]; expected [2, 4, 3], [batch, nheads_q, seqlen_q]"},
      {"dout", [](World& w) { w.attention.dout.shape[1] = 2; }, bad_argument, "dout has shape"},
      {"dq", [](World& w) { w.attention.dq.shape[3] = 7; }, bad_argument, "dq has shape"},
      {"dk", [](World& w) { w.attention.dk.shape[2] = 1; }, bad_argument, "dk has shape"},
      {"dv", [](World& w) { w.attention.dv.shape[1] = 1; }, bad_argument, "dv has shape"},
      {"bias", [](World& w) { w.attention.bias.shape[3] = 4; }, bad_argument,
       "bias has shape [1, 4, 3, 4]; expected [2, 4, 3, 5], each of which may be 1"},
      {"bias of 3", [](World& w) { w.attention.bias.ndim = 3; }, bad_argument,
       "bias has 3 dimensions"},
      {"mask", [](World& w) { w.attention.mask.shape[1] = 3; }, bad_argument, "mask has shape"},
      {"sinks", [](World& w) { w.attention.sinks.shape[0] = 2; }, bad_argument,
       "sinks has shape [2]; expected [4], [nheads_q]"},
      {"slopes", [](World& w) { w.attention.alibi_slopes.shape[0] = 3; }, bad_argument,
       "alibi_slopes has shape [3]"},
      {"dbias", [](World& w) { w.attention.dbias.shape[1] = 1; }, bad_argument, "dbias has shape"},
      {"dsinks", [](World& w) { w.attention.dsinks.shape[0] = 3; }, bad_argument,
       "dsinks has shape"},
      {"dbias alone", [](World& w) { w.attention.bias = {}; }, bad_argument,
       "dbias is given without bias"},
      {"dsinks alone", [](World& w) { w.attention.sinks = {}; }, bad_argument,
       "dsinks is given without sinks"},
      {"seqlens", [](World& w) { w.attention.seqlens_k.shape[0] = 1; }, bad_argument,
       "seqlens_k has shape [1]; expected [2], [batch]"},
  };
  for (const BadInput& bad : table) expect_refused(dense(), bad);
}

TEST(BadInput, DTypes) {
  const BadInput table[] = {
      {"q", [](World& w) { w.attention.q.dtype = TILEWISE_I32; }, bad_argument,
       "q has dtype i32; expected a floating-point one"},
      {"k", [](World& w) { w.attention.k.dtype = TILEWISE_F16; }, bad_argument,
       "k has dtype f16, q has f32; expected q's, e4m3, e5m2, i8 or q8_0"},
      {"v", [](World& w) { w.attention.v.dtype = TILEWISE_BF16; }, bad_argument,
       "v has dtype bf16, q has f32"},
      {"o", [](World& w) { w.attention.o.dtype = TILEWISE_BF16; }, bad_argument,
       "o has dtype bf16; expected f32"},
      {"o of fp8",
       [](World& w) {
         w.attention.q.dtype = w.attention.k.dtype = w.attention.v.dtype = TILEWISE_E4M3;
         w.attention.o.dtype = TILEWISE_F16;
       },
       bad_argument, "o has dtype f16; expected bf16 or f32 beside e4m3 inputs"},
      {"lse", [](World& w) { w.attention.lse.dtype = TILEWISE_F16; }, bad_argument,
       "lse has dtype f16; expected f32"},
      {"dout", [](World& w) { w.attention.dout.dtype = TILEWISE_F16; }, bad_argument,
       "dout has dtype f16"},
      {"dv", [](World& w) { w.attention.dv.dtype = TILEWISE_F16; }, bad_argument,
       "dv has dtype f16"},
      {"bias", [](World& w) { w.attention.bias.dtype = TILEWISE_I32; }, bad_argument,
       "bias has dtype i32"},
      {"dbias", [](World& w) { w.attention.dbias.dtype = TILEWISE_F16; }, bad_argument,
       "dbias has dtype f16"},
      {"mask", [](World& w) { w.attention.mask.dtype = TILEWISE_E4M3; }, bad_argument,
       "mask has dtype e4m3; expected bool"},
      {"sinks", [](World& w) { w.attention.sinks.dtype = TILEWISE_F16; }, bad_argument,
       "sinks has dtype f16; expected f32"},
      {"slopes", [](World& w) { w.attention.alibi_slopes.dtype = TILEWISE_BF16; }, bad_argument,
       "alibi_slopes has dtype bf16"},
      {"seqlens", [](World& w) { w.attention.seqlens_q.dtype = TILEWISE_F32; }, bad_argument,
       "seqlens_q has dtype f32; expected i32"},
      {"blocks", [](World& w) { w.attention.kv_indices.dtype = TILEWISE_F32; }, bad_argument,
       "kv_indices has dtype f32; expected i32"},
  };
  for (const BadInput& bad : table) expect_refused(dense(), bad);
}

TEST(BadInput, Numbers) {
  const BadInput table[] = {
      {"scale", [](World& w) { w.attention.softmax_scale = infinity; }, bad_argument,
       "softmax_scale is infinite"},
      {"scale required", [](World& w) { w.attention.default_scale = TILEWISE_SCALE_REQUIRED; },
       bad_argument, "softmax_scale is not set"},
      {"softcap NaN", [](World& w) { w.attention.softcap = nan; }, bad_argument, "softcap is nan"},
      {"softcap -1", [](World& w) { w.attention.softcap = -1; }, bad_argument, "softcap is -1"},
      {"softcap inf", [](World& w) { w.attention.softcap = infinity; }, bad_argument,
       "softcap is inf"},
      {"dropout -", [](World& w) { w.attention.dropout_p = -0.25; }, bad_argument,
       "dropout_p is -0.25"},
      {"dropout 1", [](World& w) { w.attention.dropout_p = 1; }, bad_argument, "dropout_p is 1"},
      {"dropout NaN", [](World& w) { w.attention.dropout_p = nan; }, bad_argument,
       "dropout_p is nan"},
      {"dropout, 1 as a float", [](World& w) { w.attention.dropout_p = std::nextafter(1.0, 0.0); },
       bad_argument, "dropout_p is 1"},
      {"window_left", [](World& w) { w.attention.window_left = -2; }, bad_argument,
       "window_left is -2"},
      {"window_right", [](World& w) { w.attention.window_right = -9; }, bad_argument,
       "window_right is -9"},
      {"chunk", [](World& w) { w.attention.attention_chunk = -1; }, bad_argument,
       "attention_chunk is -1"},
      {"splits", [](World& w) { w.attention.num_splits = -1; }, bad_argument, "num_splits is -1"},
      {"reserved", [](World& w) { w.attention.reserved = 7; }, bad_argument,
       "reserved is 7; expected 0"},
      {"max_seqlen", [](World& w) { w.attention.max_seqlen_q = -1; }, bad_argument,
       "max_seqlen_q is -1; expected a length"},
      {"another max_seqlen", [](World& w) { w.attention.max_seqlen_k = 4; }, bad_argument,
       "max_seqlen_k is 4 and k has seqlen 5"},
      {"mask and causal",
       [](World& w) {
         w.attention.causal = 1;
         w.attention.mask_and_causal = TILEWISE_MASK_AND_CAUSAL_REFUSE;
       },
       bad_argument, "mask and causal are both given"},
      {"softcap and dropout",
       [](World& w) {
         w.attention.softcap = 5;
         w.attention.dropout_p = 0.5;
         w.attention.softcap_and_dropout = TILEWISE_SOFTCAP_AND_DROPOUT_REFUSE;
       },
       bad_argument, "softcap and dropout_p are both set"},
  };
  for (const BadInput& bad : table) expect_refused(dense(), bad);
}

TEST(BadInput, UnknownEnums) {
  using Field = std::int32_t tilewise_attention::*;
  const std::pair<const char*, Field> fields[] = {
      {"causal", &tilewise_attention::causal},
      {"deterministic", &tilewise_attention::deterministic},
      {"alignment", &tilewise_attention::alignment},
      {"empty_row_output", &tilewise_attention::empty_row_output},
      {"empty_row_lse", &tilewise_attention::empty_row_lse},
      {"lse_base", &tilewise_attention::lse_base},
      {"window_left_counts", &tilewise_attention::window_left_counts},
      {"default_scale", &tilewise_attention::default_scale},
      {"score_order", &tilewise_attention::score_order},
      {"alibi", &tilewise_attention::alibi},
      {"mask_and_causal", &tilewise_attention::mask_and_causal},
      {"softcap_and_dropout", &tilewise_attention::softcap_and_dropout},
      {"rotary_interleaved", &tilewise_attention::rotary_interleaved},
  };
  for (const auto& [name, field] : fields)
    for (const std::int32_t value : {-1, 4, 99}) {
      const std::string says = std::string(name) + " is " + std::to_string(value);
      expect_refused(dense(), {name, [&, field = field](World& w) { w.attention.*field = value; },
                               bad_argument, says.c_str()});
    }
}

TEST(BadInput, OutputsThatShareMemory) {
  const BadInput table[] = {
      {"stride 0", [](World& w) { w.attention.dq.strides[2] = 0; }, bad_argument,
       "dq has stride 0 in dimension 2"},
      {"rows on rows", [](World& w) { w.attention.dk.strides[1] = 8; }, bad_argument,
       "dk has strides by which its elements share memory"},
      {"o is q", [](World& w) { w.attention.o.data = w.attention.q.data; }, bad_argument,
       "o shares memory with q", TILEWISE_FORWARD},
      {"lse in o",
       [](World& w) { w.attention.lse.data = static_cast<float*>(w.attention.o.data) + 7; },
       bad_argument, "o shares memory with lse", TILEWISE_FORWARD},
      {"dq is dout's end",
       [](World& w) { w.attention.dq.data = static_cast<float*>(w.attention.dout.data) + 95; },
       bad_argument, "dq shares memory with "},
      {"dv before dk's start",
       [](World& w) { w.attention.dv.data = static_cast<float*>(w.attention.dk.data) - 39; },
       bad_argument, "shares memory with "},
      {"dbias is bias", [](World& w) { w.attention.dbias.data = w.attention.bias.data; },
       bad_argument, "dbias shares memory with bias"},
      {"dsinks in lengths", [](World& w) { w.attention.dsinks.data = w.attention.seqlens_q.data; },
       bad_argument, "dsinks shares memory with seqlens_q"},
      {"dv on a reversed k",
       [](World& w) {
         w.attention.dv.data = static_cast<float*>(w.attention.k.data) + 2 * 5 * 2 * 8 - 1;
         w.attention.dv.strides[0] *= -1;
         w.attention.dv.strides[1] *= -1;
         w.attention.dv.strides[2] *= -1;
         w.attention.dv.strides[3] *= -1;
       },
       bad_argument, "dv shares memory with k"},
  };
  for (const BadInput& bad : table) expect_refused(dense(), bad);
}

TEST(BadInput, Lengths) {
  const BadInput table[] = {
      {"negative", [](World& w) { set_index(w.attention.seqlens_q, 1, -1); }, bad_argument,
       "seqlens_q says -1 for sequence 1; expected 0 to 3"},
      {"too long", [](World& w) { set_index(w.attention.seqlens_k, 0, 6); }, bad_argument,
       "seqlens_k says 6 for sequence 0; expected 0 to 5"},
  };
  for (const BadInput& bad : table) expect_refused(dense(), bad);
  const BadInput packed_table[] = {
      {"four dimensions",
       [](World& w) {
         w.attention.q = w.input(TILEWISE_F32, {1, 3, 4, 8});
       },
       bad_argument, "q has 4 dimensions; expected 3 beside cu_seqlens"},
      {"start", [](World& w) { set_index(w.attention.cu_seqlens_q, 0, 1); }, bad_argument,
       "cu_seqlens_q starts with 1; expected 0"},
      {"falls", [](World& w) { set_index(w.attention.cu_seqlens_k, 1, 6); }, bad_argument,
       "cu_seqlens_k ends sequence 0 at row 6; k has 5 rows"},
      {"beyond", [](World& w) { set_index(w.attention.cu_seqlens_k, 2, 2); }, bad_argument,
       "cu_seqlens_k falls from 3 to 2 at sequence 1"},
      {"negative", [](World& w) { set_index(w.attention.cu_seqlens_q, 1, -2); }, bad_argument,
       "cu_seqlens_q falls from 0 to -2"},
      {"longer than promised", [](World& w) { w.attention.max_seqlen_k = 2; }, bad_argument,
       "sequence 0 of k has length 3; max_seqlen_k promised at most 2"},
      {"batches", [](World& w) { w.attention.cu_seqlens_k.shape[0] = 2; }, bad_argument,
       "q is of 2 sequences, k of 1"},
      {"no batch", [](World& w) { w.attention.cu_seqlens_k.shape[0] = 0; }, bad_argument,
       "cu_seqlens_k has shape [0]; expected [batch + 1]"},
      {"i64", [](World& w) { w.attention.cu_seqlens_q = w.input(TILEWISE_I64, {3}); }, bad_argument,
       "cu_seqlens_q has dtype i64; expected i32"},
      {"lse", [](World& w) { w.attention.lse.shape[1] = 2; }, bad_argument,
       "expected [4, 3], [nheads_q, total_q]"},
      {"in use",
       [](World& w) {
         w.attention.seqlens_k = w.indices({2}, {3, 3});
       },
       bad_argument, "seqlens_k says 3 for sequence 1; expected 0 to 2"},
      {"bias too short",
       [](World& w) {
         w.attention.bias = w.input(TILEWISE_F32, {1, 1, 2, 2});
       },
       bad_argument, "bias has shape [1, 1, 2, 2]; expected [2, 4, 2, 3]"},
  };
  for (const BadInput& bad : packed_table) expect_refused(packed(), bad);
}

TEST(BadInput, BlockLists) {
  const BadInput table[] = {
      {"block 0", [](World& w) { w.attention.block_k = 0; }, bad_argument,
       "blocks are 2 queries by 0 keys"},
      {"no indices", [](World& w) { w.attention.kv_indices = {}; }, bad_argument,
       "kv_num_blocks is given without kv_indices"},
      {"half of full", [](World& w) { w.attention.full_kv_indices = {}; }, bad_argument,
       "of full_kv_num_blocks and full_kv_indices one is given"},
      {"full alone", [](World& w) { w.attention.kv_num_blocks = {}; }, bad_argument,
       "kv_indices is given without kv_num_blocks"},
      {"sizes alone",
       [](World& w) {
         w.attention.kv_num_blocks = w.attention.kv_indices = {};
         w.attention.full_kv_num_blocks = w.attention.full_kv_indices = {};
       },
       bad_argument, "block_q is set without kv_num_blocks"},
      {"rows", [](World& w) { w.attention.block_q = 1; }, bad_argument,
       "kv_num_blocks has shape [1, 1, 2]; expected [2 or 1, 4 or 1, 3]"},
      {"count", [](World& w) { set_index(w.attention.kv_num_blocks, 0, 4); }, bad_argument,
       "kv_num_blocks says 4 in row 0; expected 0 to 3"},
      {"negative count", [](World& w) { set_index(w.attention.full_kv_num_blocks, 1, -1); },
       bad_argument, "full_kv_num_blocks says -1 in row 1"},
      {"index", [](World& w) { set_index(w.attention.kv_indices, 3, 3); }, bad_argument,
       "kv_indices names key block 3 in row 1; there are 3"},
      {"negative index", [](World& w) { set_index(w.attention.full_kv_indices, 0, -1); },
       bad_argument, "full_kv_indices names key block -1 in row 0"},
      {"twice", [](World& w) { set_index(w.attention.kv_indices, 1, 0); }, bad_argument,
       "kv_indices has key block 0 after 0 in row 0"},
      {"in both", [](World& w) { set_index(w.attention.full_kv_indices, 0, 1); }, bad_argument,
       "key block 1 of row 0 is in kv_indices and full_kv_indices"},
  };
  for (const BadInput& bad : table) expect_refused(dense(), bad);
}

TEST(BadInput, NullsWorkspaceAndStream) {
  World world = dense();
  const tilewise_attention& attention = world.attention;
  const Context context = serial();
  const std::size_t bytes = workspace_bytes(context, attention, TILEWISE_FORWARD);
  ASSERT_GT(bytes, 64u);
  const Workspace workspace(bytes);
  int stream = 0;
  const struct {
    const char* says;
    tilewise_status code;
    tilewise_context* context;
    const tilewise_attention* attention;
    void* workspace;
    std::size_t bytes;
    void* stream;
  } table[] = {
      {"context is null", bad_argument, nullptr, &attention, workspace.data, bytes, nullptr},
      {"attention is null", bad_argument, context.get(), nullptr, workspace.data, bytes, nullptr},
      {"workspace is null", bad_argument, context.get(), &attention, nullptr, bytes, nullptr},
      {"workspace is misaligned", bad_argument, context.get(), &attention, workspace.data + 8,
       bytes, nullptr},
      {"bytes; this call needs", TILEWISE_NO_MEMORY, context.get(), &attention, workspace.data,
       bytes - 1, nullptr},
      {"stream is not null", bad_argument, context.get(), &attention, workspace.data, bytes,
       &stream},
  };
  for (const auto& row : table) {
    tilewise_error error = TILEWISE_ERROR_INIT;
    EXPECT_EQ(tilewise_attention_forward(row.context, row.attention, row.workspace, row.bytes,
                                         row.stream, &error),
              row.code);
    EXPECT_NE(std::string(error.message).find(row.says), std::string::npos) << error.message;
    EXPECT_TRUE(world.outputs_untouched());
    // Without an error to write to, the same code.
    EXPECT_EQ(tilewise_attention_forward(row.context, row.attention, row.workspace, row.bytes,
                                         row.stream, nullptr),
              row.code);
  }
  tilewise_error error = TILEWISE_ERROR_INIT;
  EXPECT_EQ(
      tilewise_attention_forward(context.get(), &attention, workspace.data, bytes, nullptr, &error),
      TILEWISE_OK)
      << error.message;
  EXPECT_STREQ(error.message, "");
}

TEST(BadInput, AWorkspaceOverATensor) {
  World world = dense();
  const Context context = serial();
  const std::size_t bytes = workspace_bytes(context, world.attention, TILEWISE_FORWARD);
  const Workspace workspace(bytes + 4096);
  world.attention.v.data = workspace.data + 32;
  tilewise_error error = TILEWISE_ERROR_INIT;
  EXPECT_EQ(compute(context, world.attention, TILEWISE_FORWARD, workspace, error), bad_argument);
  EXPECT_STREQ(error.message, "v lies in the workspace; expected memory of its own");
  EXPECT_TRUE(world.outputs_untouched());
}

TEST(BadInput, Passes) {
  const World world = dense();
  const Context context = serial();
  for (const std::int32_t pass : {-1, 2}) {
    tilewise_error error = TILEWISE_ERROR_INIT;
    std::size_t bytes = 7;
    EXPECT_EQ(tilewise_attention_workspace(context.get(), &world.attention, pass, &bytes, nullptr,
                                           &error),
              bad_argument);
    EXPECT_EQ(bytes, 0u);
    EXPECT_NE(std::string(error.message).find("pass is"), std::string::npos);
  }
}

// ------------------------------------------------------------------- structs of other versions

TEST(StructSize, AnOlderStructHasTheDefaults) {
  World world = dense();
  run_both(serial(), world.attention);
  tilewise_attention& a = world.attention;
  a.block_q = a.block_k = 0;
  a.kv_num_blocks = a.kv_indices = a.full_kv_num_blocks = a.full_kv_indices = {};
  world.clear_outputs();
  run_both(serial(), a);
  const std::string without_blocks = world.output_bytes();
  // What is beyond the size is never looked at.
  world.clear_outputs();
  std::memset(reinterpret_cast<char*>(&a) + offsetof(tilewise_attention, block_q), 0xcc,
              sizeof a - offsetof(tilewise_attention, block_q));
  a.struct_size = offsetof(tilewise_attention, block_q);
  run_both(serial(), a);
  EXPECT_EQ(world.output_bytes(), without_blocks);
}

TEST(StructSize, ANewerStructIsTakenIfTheUnknownIsZero) {
  const World world = dense();
  const Context context = serial();
  struct Newer {
    tilewise_attention attention;
    std::int64_t fields[3];
  } newer = {world.attention, {}};
  newer.attention.struct_size = sizeof newer;
  run_both(context, newer.attention);
  newer.fields[2] = 1;
  const Workspace workspace(1 << 20);
  tilewise_error error = TILEWISE_ERROR_INIT;
  EXPECT_EQ(compute(context, newer.attention, TILEWISE_FORWARD, workspace, error), unsupported);
  EXPECT_NE(std::string(error.message).find("attention sets a field at byte"), std::string::npos)
      << error.message;
}

TEST(StructSize, NonsenseIsRefused) {
  const Context context = serial();
  const Workspace workspace(1 << 20);
  for (const std::uint32_t size : {0u, 8u, 1u << 20, 0xffffffffu}) {
    World world = dense();
    world.attention.struct_size = size;
    tilewise_error error = TILEWISE_ERROR_INIT;
    EXPECT_EQ(compute(context, world.attention, TILEWISE_FORWARD, workspace, error), bad_argument);
    EXPECT_NE(std::string(error.message).find("attention has struct_size"), std::string::npos);
    EXPECT_TRUE(world.outputs_untouched());
    tilewise_context_options options = options_with(TILEWISE_THREADING_SERIAL, 1);
    options.struct_size = size;
    tilewise_context* made = context.get();
    EXPECT_EQ(tilewise_context_create(&options, &made, &error), bad_argument);
    EXPECT_EQ(made, nullptr);
    EXPECT_EQ(tilewise_attention_init_sized(&world.attention, size, nullptr, &error), bad_argument);
    EXPECT_EQ(tilewise_context_options_init_sized(&options, size, &error), bad_argument);
  }
}

TEST(StructSize, InitWritesNoMoreThanItsCallerHas) {
  std::vector<unsigned char> memory(sizeof(tilewise_attention) + 64, 0xee);
  auto* const attention = reinterpret_cast<tilewise_attention*>(memory.data());
  const std::size_t older = offsetof(tilewise_attention, bias);
  ASSERT_EQ(tilewise_attention_init_sized(attention, older, "fa2", nullptr), TILEWISE_OK);
  EXPECT_EQ(attention->struct_size, older);
  EXPECT_EQ(attention->empty_row_lse, TILEWISE_EMPTY_LSE_PLUS_INF);
  EXPECT_EQ(memory[older], 0xee);
  const std::size_t newer = sizeof(tilewise_attention) + 32;
  ASSERT_EQ(tilewise_attention_init_sized(attention, newer, "fa2", nullptr), TILEWISE_OK);
  EXPECT_EQ(memory[newer - 1], 0);
  EXPECT_EQ(memory[newer], 0xee);
}

TEST(StructSize, AShortErrorIsNotOverrun) {
  tilewise_error error = TILEWISE_ERROR_INIT;
  std::memset(error.message, '#', sizeof error.message);
  error.struct_size = offsetof(tilewise_error, message) + 6;
  EXPECT_EQ(tilewise_attention_forward(nullptr, nullptr, nullptr, 0, nullptr, &error),
            bad_argument);
  EXPECT_STREQ(error.message, "conte");
  EXPECT_EQ(error.message[6], '#');
  error.struct_size = 0;
  error.code = 77;
  EXPECT_EQ(tilewise_attention_forward(nullptr, nullptr, nullptr, 0, nullptr, &error),
            bad_argument);
  EXPECT_EQ(error.code, 77);
}

TEST(Presets, AreThoseOfTheTable) {
  tilewise_attention a;
  ASSERT_EQ(tilewise_attention_init(&a, "fa3"), TILEWISE_OK);
  EXPECT_TRUE(std::isnan(a.softmax_scale));
  EXPECT_EQ(a.window_left, -1);
  EXPECT_EQ(a.window_right, -1);
  EXPECT_EQ(a.alignment, TILEWISE_ALIGN_BOTTOM_RIGHT);
  EXPECT_EQ(a.softcap_and_dropout, TILEWISE_SOFTCAP_AND_DROPOUT_COMBINE);
  ASSERT_EQ(tilewise_attention_init(&a, "fa2"), TILEWISE_OK);
  EXPECT_EQ(a.alibi, TILEWISE_ALIBI_FA2);
  EXPECT_EQ(a.softcap_and_dropout, TILEWISE_SOFTCAP_AND_DROPOUT_REFUSE);
  ASSERT_EQ(tilewise_attention_init(&a, "torch_sdpa"), TILEWISE_OK);
  EXPECT_EQ(a.alignment, TILEWISE_ALIGN_TOP_LEFT);
  EXPECT_EQ(a.mask_and_causal, TILEWISE_MASK_AND_CAUSAL_REFUSE);
  ASSERT_EQ(tilewise_attention_init(&a, "flashinfer"), TILEWISE_OK);
  EXPECT_EQ(a.lse_base, TILEWISE_LSE_BASE_2);
  ASSERT_EQ(tilewise_attention_init(&a, "cudnn"), TILEWISE_OK);
  EXPECT_EQ(a.default_scale, TILEWISE_SCALE_ONE);
  ASSERT_EQ(tilewise_attention_init(&a, "hf_eager"), TILEWISE_OK);
  EXPECT_EQ(a.empty_row_output, TILEWISE_EMPTY_OUTPUT_MEAN_V);
  tilewise_error error = TILEWISE_ERROR_INIT;
  EXPECT_EQ(tilewise_attention_init_sized(&a, sizeof a, "fa9", &error), bad_argument);
  EXPECT_NE(std::string(error.message).find("no preset is called \"fa9\""), std::string::npos);
  EXPECT_EQ(tilewise_attention_init(nullptr, "fa2"), bad_argument);
}

// ------------------------------------------------------------------------------------- contexts

void* failing(void*, std::size_t) {
  return nullptr;
}
void ignoring(void*, void*) {}
void one_by_one(void*, std::int32_t, std::int64_t n, tilewise_task fn, void* arg) {
  for (std::int64_t task = n - 1; task >= 0; --task) fn(arg, task, 0);
}

TEST(ContextOptions, BadOnes) {
  const struct {
    std::function<void(tilewise_context_options&)> spoil;
    tilewise_status code;
    const char* says;
  } table[] = {
      {[](auto& o) { o.isa = 99; }, bad_argument, "isa is 99"},
      {[](auto& o) { o.isa = TILEWISE_ISA_SVE; }, unsupported, "isa is 5"},
      {[](auto& o) { o.threading = 4; }, bad_argument, "threading is 4"},
      {[](auto& o) { o.threads = -1; }, bad_argument, "threads is -1"},
      {[](auto& o) { o.threads = 100000; }, bad_argument, "threads is 100000"},
      {[](auto& o) { o.threading = TILEWISE_THREADING_CALLER; }, bad_argument,
       "parallel_for is null"},
      {[](auto& o) { o.parallel_for = one_by_one; }, bad_argument, "parallel_for is set"},
      {[](auto& o) { o.pool = &o; }, bad_argument, "pool is set"},
      {[](auto& o) {
         o.threading = TILEWISE_THREADING_CALLER;
         o.parallel_for = one_by_one;
       },
       bad_argument, "threads is 0; beside parallel_for"},
      {[](auto& o) { o.allocate = failing; }, bad_argument, "of allocate and free_memory one"},
      {[](auto& o) {
         o.allocate = failing;
         o.free_memory = ignoring;
       },
       TILEWISE_NO_MEMORY, "a context needs"},
      {[](auto& o) { o.device_type = TILEWISE_CUDA; }, unsupported, "the device is CUDA"},
      {[](auto& o) { o.device_type = 3; }, bad_argument, "device_type is 3"},
      {[](auto& o) { o.device_id = 1; }, bad_argument, "device_id is 1"},
  };
  for (const auto& row : table) {
    tilewise_context_options options = options_with(TILEWISE_THREADING_THREADS, 0);
    row.spoil(options);
    tilewise_error error = TILEWISE_ERROR_INIT;
    tilewise_context* context = nullptr;
    EXPECT_EQ(tilewise_context_create(&options, &context, &error), row.code);
    EXPECT_NE(std::string(error.message).find(row.says), std::string::npos) << error.message;
    EXPECT_EQ(context, nullptr);
  }
  EXPECT_EQ(tilewise_context_create(nullptr, nullptr, nullptr), bad_argument);
}

TEST(ContextOptions, TheDefaultsWork) {
  tilewise_context* context = nullptr;
  ASSERT_EQ(tilewise_context_create(nullptr, &context, nullptr), TILEWISE_OK);
  run_both(Context(context), dense().attention);
  tilewise_context_destroy(nullptr);
}

struct Counting {
  std::atomic<int> allocations{0}, live{0};
  static void* allocate(void* user, std::size_t bytes) {
    auto& self = *static_cast<Counting*>(user);
    ++self.allocations;
    ++self.live;
    return std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  }
  static void free_memory(void* user, void* memory) {
    --static_cast<Counting*>(user)->live;
    std::free(memory);
  }
};

TEST(Allocator, OnlyContextsAndTheHelpersUseIt) {
  Counting counting;
  tilewise_context_options options = options_with(TILEWISE_THREADING_THREADS, 3);
  options.allocate = Counting::allocate;
  options.free_memory = Counting::free_memory;
  options.allocator_user = &counting;
  {
    const Context context = context_with(options);
    const int of_the_context = counting.allocations;
    EXPECT_GT(of_the_context, 0);
    run_both(context, dense().attention);
    EXPECT_EQ(counting.allocations, of_the_context);
    void* const memory = tilewise_allocate(context.get(), 100);
    ASSERT_NE(memory, nullptr);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory) % 64, 0u);
    EXPECT_EQ(counting.allocations, of_the_context + 1);
    tilewise_free(context.get(), memory);
    tilewise_free(context.get(), nullptr);
  }
  EXPECT_EQ(counting.live, 0);
  EXPECT_EQ(tilewise_allocate(nullptr, 1), nullptr);
}

// -------------------------------------------------------------------------------------- threads

/// Threads of a caller, made anew for each call; notes what it is asked.
struct CallersThreads {
  std::atomic<int> calls{0}, wrong{0};

  static void run(void* pool, std::int32_t max_workers, std::int64_t n, tilewise_task fn,
                  void* arg) {
    auto& self = *static_cast<CallersThreads*>(pool);
    ++self.calls;
    if (max_workers != 3 || n < 0 || fn == nullptr) ++self.wrong;
    std::atomic<std::int64_t> next{0};
    std::vector<std::thread> threads;
    for (std::int32_t worker = 0; worker < max_workers; ++worker)
      threads.emplace_back([&, worker] {
        for (std::int64_t task = next++; task < n; task = next++) fn(arg, task, worker);
      });
    for (std::thread& thread : threads) thread.join();
  }
};

/// Larger than a tile in every way, with causal, a window and dropout.
World larger() {
  World world;
  tilewise_attention& a = world.attention;
  EXPECT_EQ(tilewise_attention_init(&a, nullptr), TILEWISE_OK);
  a.causal = 1;
  a.window_left = 100;
  a.dropout_p = 0.25;
  a.philox_seed = 42;
  a.q = world.input(TILEWISE_F32, {2, 150, 4, 16});
  a.k = world.input(TILEWISE_F32, {2, 190, 2, 16});
  a.v = world.input(TILEWISE_F32, {2, 190, 2, 24});
  a.dout = world.input(TILEWISE_F32, {2, 150, 4, 24});
  a.bias = world.input(TILEWISE_F32, {1, 4, 150, 190});
  a.sinks = world.input(TILEWISE_F32, {4});
  a.o = world.output(TILEWISE_F32, {2, 150, 4, 24});
  a.lse = world.output(TILEWISE_F32, {2, 4, 150});
  a.dq = world.output(TILEWISE_F32, {2, 150, 4, 16});
  a.dk = world.output(TILEWISE_F32, {2, 190, 2, 16});
  a.dv = world.output(TILEWISE_F32, {2, 190, 2, 24});
  a.dbias = world.output(TILEWISE_F32, {1, 4, 150, 190});
  a.dsinks = world.output(TILEWISE_F32, {4});
  return world;
}

TEST(Threads, AllKindsGiveTheSameBits) {
  World world = larger();
  run_both(serial(), world.attention);
  const std::string expected = world.output_bytes();
  const auto expect_the_same = [&](const Context& context) {
    world.clear_outputs();
    run_both(context, world.attention);
    EXPECT_EQ(world.output_bytes(), expected);
  };
  for (const std::int32_t threads : {1, 2, 5})
    expect_the_same(context_with(options_with(TILEWISE_THREADING_THREADS, threads)));

  CallersThreads callers;
  tilewise_context_options options = options_with(TILEWISE_THREADING_CALLER, 3);
  options.parallel_for = CallersThreads::run;
  options.pool = &callers;
  expect_the_same(context_with(options));
  EXPECT_GE(callers.calls, 2);
  EXPECT_EQ(callers.wrong, 0);

  options = options_with(TILEWISE_THREADING_OPENMP, 3);
  if (tilewise::cpu::openmp_compiled_in()) {
    expect_the_same(context_with(options));
  } else {
    tilewise_context* context = nullptr;
    tilewise_error error = TILEWISE_ERROR_INIT;
    EXPECT_EQ(tilewise_context_create(&options, &context, &error), unsupported);
    EXPECT_NE(std::string(error.message).find("OpenMP"), std::string::npos);
  }
}

TEST(Threads, SeveralMayUseOneContext) {
  World first = larger();
  World second = larger();
  run_both(serial(), first.attention);
  const std::string expected = first.output_bytes();
  const Context context = context_with(options_with(TILEWISE_THREADING_THREADS, 3));
  for (int round = 0; round < 5; ++round) {
    first.clear_outputs();
    second.clear_outputs();
    std::thread other([&] { run_both(context, second.attention); });
    run_both(context, first.attention);
    other.join();
    EXPECT_EQ(first.output_bytes(), expected);
    EXPECT_EQ(second.output_bytes(), expected);
  }
}

/// Counts how often each task ran, and whether a worker was ever used twice at once.
struct Ledger {
  explicit Ledger(std::int64_t n) : runs(static_cast<std::size_t>(n)) {}

  std::vector<std::atomic<int>> runs;
  std::atomic<bool> busy[8] = {};
  std::atomic<int> wrong{0};
  int max_workers = 0;

  static void task(void* arg, std::int64_t task, int worker) {
    auto& self = *static_cast<Ledger*>(arg);
    if (worker < 0 || worker >= self.max_workers || self.busy[worker].exchange(true)) {
      ++self.wrong;
      return;
    }
    ++self.runs[static_cast<std::size_t>(task)];
    std::this_thread::yield();
    self.busy[worker] = false;
  }
  void expect_each_once() const {
    EXPECT_EQ(wrong, 0);
    for (const std::atomic<int>& count : runs) EXPECT_EQ(count, 1);
  }
};

using tilewise::cpu::start_thread_pool;
using tilewise::cpu::stop_thread_pool;
using tilewise::cpu::thread_pool_bytes;
using tilewise::cpu::thread_pool_for;
using tilewise::cpu::ThreadPool;

struct Pool {
  explicit Pool(int threads) : memory(thread_pool_bytes(threads) / 8 + 1) {
    pool = start_thread_pool(memory.data(), threads);
  }
  ~Pool() { stop_thread_pool(pool); }
  std::vector<std::uint64_t> memory;
  ThreadPool* pool;
};

TEST(ThreadPool, RunsEachTaskOnceUnderAWorkersNumber) {
  const Pool pool(3);
  ASSERT_NE(pool.pool, nullptr);
  for (const int max_workers : {1, 2, 4, 8})
    for (const std::int64_t n : {0, 1, 2, 300}) {
      Ledger ledger(n);
      ledger.max_workers = max_workers;
      thread_pool_for(pool.pool, max_workers, n, Ledger::task, &ledger);
      ledger.expect_each_once();
    }
}

TEST(ThreadPool, ServesManyCallersAtOnceAndTasksThatCallAgain) {
  const Pool pool(2);
  struct Outer {
    ThreadPool* pool;
    std::atomic<int> failures{0};
    static void task(void* arg, std::int64_t, int) {
      auto& self = *static_cast<Outer*>(arg);
      Ledger inner(20);
      inner.max_workers = 3;
      thread_pool_for(self.pool, 3, 20, Ledger::task, &inner);
      for (const std::atomic<int>& count : inner.runs)
        if (count != 1 || inner.wrong != 0) ++self.failures;
    }
  };
  Outer outer{pool.pool};
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i)
    callers.emplace_back([&] { thread_pool_for(pool.pool, 3, 25, Outer::task, &outer); });
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(outer.failures, 0);
}

// ---------------------------------------------------------------------------- memory and layouts

TEST(Layout, GradientsMayBeSlicesOfOneAllocation) {
  World world = dense();
  tilewise_attention& a = world.attention;
  // dq, dk and dv as rows of [batch, seqlen, 4 + 2 + 2 heads, 8], as flash-attn packs qkv; equal
  // lengths and head dimensions, which that takes.
  a = tilewise_attention{};
  ASSERT_EQ(tilewise_attention_init(&a, nullptr), TILEWISE_OK);
  a.q = world.input(TILEWISE_F32, {2, 5, 4, 8});
  a.k = world.input(TILEWISE_F32, {2, 5, 2, 8});
  a.v = world.input(TILEWISE_F32, {2, 5, 2, 8});
  a.dout = world.input(TILEWISE_F32, {2, 5, 4, 8});
  a.o = world.output(TILEWISE_F32, {2, 5, 4, 8});
  a.lse = world.output(TILEWISE_F32, {2, 4, 5});
  a.dq = world.output(TILEWISE_F32, {2, 5, 4, 8});
  a.dk = world.output(TILEWISE_F32, {2, 5, 2, 8});
  a.dv = world.output(TILEWISE_F32, {2, 5, 2, 8});
  run_both(serial(), a);

  tilewise_attention sliced = a;
  Buffer together(TILEWISE_F32, {2, 5, 8, 8});
  const auto slice = [&](tilewise_tensor& view, int head) {
    view.data = together.as<float>() + head * 8;
    view.strides[0] = 5 * 8 * 8;
    view.strides[1] = 8 * 8;
  };
  slice(sliced.dq, 0);
  slice(sliced.dk, 4);
  slice(sliced.dv, 6);
  run_both(serial(), sliced);
  for (const auto& [apart, within] :
       {std::pair{&a.dq, &sliced.dq}, {&a.dk, &sliced.dk}, {&a.dv, &sliced.dv}})
    for (int b = 0; b < 2; ++b)
      for (int s = 0; s < 5; ++s)
        for (int h = 0; h < apart->shape[2]; ++h)
          for (int x = 0; x < 8; ++x) {
            const auto at = [&](const tilewise_tensor& view) {
              return static_cast<const float*>(
                  view.data)[b * view.strides[0] + s * view.strides[1] + h * view.strides[2] + x];
            };
            ASSERT_EQ(at(*apart), at(*within));
          }

  // One head further, and they do overlap.
  slice(sliced.dv, 5);
  const Workspace workspace(workspace_bytes(serial(), sliced, TILEWISE_BACKWARD));
  tilewise_error error = TILEWISE_ERROR_INIT;
  EXPECT_EQ(compute(serial(), sliced, TILEWISE_BACKWARD, workspace, error), bad_argument);
  EXPECT_STREQ(error.message, "dk shares memory with dv; expected an output that overlaps nothing");
}

/// The address of each byte of a view, one by one.
std::multiset<std::uintptr_t> bytes_of(const tilewise::TensorView& view) {
  std::multiset<std::uintptr_t> all;
  for (std::int64_t index = 0; index < view.elements(); ++index) {
    std::int64_t rest = index, offset = 0;
    for (int dim = 0; dim < view.ndim; ++dim) {
      offset += rest % view.shape[dim] * view.strides[dim];
      rest /= view.shape[dim];
    }
    const auto first = reinterpret_cast<std::uintptr_t>(view.at(offset));
    for (std::size_t byte = 0; byte < tilewise::size_of(view.dtype); ++byte)
      all.insert(first + byte);
  }
  return all;
}

TEST(Overlap, AgreesWithCountingBytes) {
  std::mt19937 random(11);
  const auto up_to = [&](std::int64_t n) {
    return static_cast<std::int64_t>(random() % static_cast<unsigned>(n));
  };
  alignas(8) static char memory[1 << 16];
  // A slice of a [4, 5, 6] allocation: some indices of each dimension, by steps, backwards or not;
  // or any strides at all.
  const auto view = [&](bool slice) {
    tilewise::TensorView made;
    made.dtype = random() % 2 != 0 ? tilewise::DType::f32 : tilewise::DType::f16;
    made.ndim = 3;
    std::int64_t first = 30000, stride = 30;
    for (int dim = 0; dim < 3; ++dim) {
      const std::int64_t size = 4 + dim, begin = up_to(size), step = 1 + up_to(2);
      made.shape[dim] = (size - begin + step - 1) / step;
      made.strides[dim] = slice ? stride * step : up_to(40) - 10;
      first += (slice ? begin * stride : up_to(40)) * 4;
      if (random() % 3 == 0) {
        first += (made.shape[dim] - 1) * made.strides[dim] * 4;
        made.strides[dim] *= -1;
      }
      stride /= dim == 0 ? 5 : 6;
    }
    if (made.dtype == tilewise::DType::f16)  // the same places, of which it has the first halves
      for (std::int64_t& each : made.strides) each *= 2;
    made.data = memory + first;
    return made;
  };
  int shared = 0;
  for (int round = 0; round < 3000; ++round) {
    const bool slices = round % 2 == 0;
    const tilewise::TensorView a = view(slices), b = view(slices);
    const auto bytes_a = bytes_of(a), bytes_b = bytes_of(b);
    bool meet = false, itself = false;
    for (const std::uintptr_t byte : bytes_a) {
      meet = meet || bytes_b.count(byte) != 0;
      itself = itself || bytes_a.count(byte) > 1;
    }
    shared += meet;
    if (slices) {
      EXPECT_EQ(tilewise::cpu::share_memory(a, b), meet) << round;
      EXPECT_EQ(tilewise::cpu::shares_with_itself(a), itself) << round;
    }
    EXPECT_TRUE(!meet || tilewise::cpu::share_memory(a, b)) << round;
    EXPECT_TRUE(!itself || tilewise::cpu::shares_with_itself(a)) << round;
    tilewise::cpu::ByteRange range;
    ASSERT_TRUE(tilewise::cpu::byte_range(a, range));
    const auto base = reinterpret_cast<std::uintptr_t>(a.data);
    EXPECT_EQ(base + static_cast<std::uintptr_t>(range.begin), *bytes_a.begin());
    EXPECT_EQ(base + static_cast<std::uintptr_t>(range.end), *bytes_a.rbegin() + 1);
  }
  EXPECT_GT(shared, 300);
  EXPECT_LT(shared, 2700);
}

TEST(Layout, NothingNeedsNoMemory) {
  World world = dense();
  tilewise_attention& a = world.attention;
  // No keys: k, v and what has their size are empty, at null.
  a.bias = a.mask = a.dbias = a.seqlens_q = a.seqlens_k = {};
  a.block_q = a.block_k = 0;
  a.kv_num_blocks = a.kv_indices = a.full_kv_num_blocks = a.full_kv_indices = {};
  a.sinks = a.dsinks = {};
  for (tilewise_tensor* view : {&a.k, &a.v, &a.dk, &a.dv}) {
    view->shape[1] = 0;
    view->data = nullptr;
  }
  run_both(serial(), a);
  for (std::int64_t i = 0; i < 2 * 3 * 4 * 4; ++i) EXPECT_EQ(static_cast<float*>(a.o.data)[i], 0);
  for (std::int64_t i = 0; i < 2 * 4 * 3; ++i)
    EXPECT_EQ(static_cast<float*>(a.lse.data)[i], -infinity);
  for (std::int64_t i = 0; i < 2 * 3 * 4 * 8; ++i) EXPECT_EQ(static_cast<float*>(a.dq.data)[i], 0);
}

TEST(Layout, LongWindowsAndChunksAreNone) {
  World world = dense();
  tilewise_attention& a = world.attention;
  run_both(serial(), a);
  const std::string expected = world.output_bytes();
  for (const std::int64_t large : {std::int64_t{1000}, std::numeric_limits<std::int64_t>::max()})
    for (const std::int32_t counts :
         {TILEWISE_WINDOW_KEYS_BEFORE, TILEWISE_WINDOW_KEYS_INCLUDING_SELF}) {
      a.window_left = a.window_right = a.attention_chunk = large;
      a.window_left_counts = counts;
      world.clear_outputs();
      run_both(serial(), a);
      EXPECT_EQ(world.output_bytes(), expected);
    }
}

TEST(Dropout, TakesItsSeedByPointer) {
  World world = larger();
  tilewise_attention& a = world.attention;
  run_both(serial(), a);
  const std::string expected = world.output_bytes();
  const std::uint64_t seed = a.philox_seed, offset = 0;
  a.philox_seed = a.philox_offset = 99;
  a.philox_seed_pointer = &seed;
  a.philox_offset_pointer = &offset;
  world.clear_outputs();
  run_both(serial(), a);
  EXPECT_EQ(world.output_bytes(), expected);
  a.philox_seed_pointer = nullptr;
  run_both(serial(), a);
  EXPECT_NE(world.output_bytes(), expected);
}

TEST(Workspace, ForwardIsConstantInTheLengths) {
  const Context context = serial();
  World world = dense();
  tilewise_attention a;
  ASSERT_EQ(tilewise_attention_init(&a, nullptr), TILEWISE_OK);
  const auto bytes_for = [&](std::int64_t seqlen_q, std::int64_t seqlen_k) {
    const auto view = [](const Shape& shape) {
      return tilewise_contiguous(nullptr, TILEWISE_F32, static_cast<std::int32_t>(shape.size()),
                                 shape.data());
    };
    a.q = view({1, seqlen_q, 2, 64});
    a.k = a.v = view({1, seqlen_k, 2, 64});
    a.o = view({1, seqlen_q, 2, 64});
    a.lse = view({1, 2, seqlen_q});
    std::size_t least = 0, fast = 0;
    tilewise_error error = TILEWISE_ERROR_INIT;
    EXPECT_EQ(
        tilewise_attention_workspace(context.get(), &a, TILEWISE_FORWARD, &least, &fast, &error),
        TILEWISE_OK)
        << error.message;
    EXPECT_GE(fast, least);
    return least;
  };
  EXPECT_EQ(bytes_for(1, 1), bytes_for(1 << 20, 1 << 20));
}

// ---------------------------------------------------------------------------------------- query

TEST(Query, SaysWhoServes) {
  tilewise_context_options options = options_with(TILEWISE_THREADING_SERIAL, 0);
  options.isa = TILEWISE_ISA_PORTABLE;
  const Context context = context_with(options);
  World world = dense();
  tilewise_attention& a = world.attention;
  for (tilewise_tensor* view : {&a.q, &a.k, &a.v, &a.o, &a.lse}) view->data = nullptr;
  tilewise_answer answer = TILEWISE_ANSWER_INIT;
  ASSERT_EQ(tilewise_query(context.get(), &a, TILEWISE_FORWARD, &answer, nullptr), TILEWISE_OK);
  EXPECT_EQ(answer.code, TILEWISE_OK);
  EXPECT_STREQ(answer.implementation, "cpu.portable");
  EXPECT_EQ(answer.fast, 0);
  EXPECT_NE(std::string(answer.reason).find("portable"), std::string::npos);

  // The best there is says that it is fast, or why this call is not for it.
  options.isa = TILEWISE_ISA_AUTO;
  const Context best = context_with(options);
  for (const std::int32_t pass : {TILEWISE_FORWARD, TILEWISE_BACKWARD}) {
    World other = dense();
    ASSERT_EQ(tilewise_query(best.get(), &other.attention, pass, &answer, nullptr), TILEWISE_OK);
    EXPECT_EQ(answer.fast, std::string(answer.implementation) != "cpu.portable") << answer.reason;
    EXPECT_STRNE(answer.reason, "");
  }

  a.q.device_type = TILEWISE_CUDA;
  ASSERT_EQ(tilewise_query(context.get(), &a, TILEWISE_FORWARD, &answer, nullptr), TILEWISE_OK);
  EXPECT_EQ(answer.code, TILEWISE_UNSUPPORTED);
  EXPECT_STREQ(answer.implementation, "");
  EXPECT_STREQ(answer.reason, "q is on CUDA device 0; this context computes on the CPU");

  a.q.device_type = TILEWISE_CPU;
  a.k.shape[2] = a.v.shape[2] = 3;
  ASSERT_EQ(tilewise_query(context.get(), &a, TILEWISE_FORWARD, &answer, nullptr), TILEWISE_OK);
  EXPECT_EQ(answer.code, TILEWISE_BAD_ARGUMENT);

  EXPECT_EQ(tilewise_query(context.get(), &a, TILEWISE_FORWARD, nullptr, nullptr), bad_argument);
  answer.struct_size = 4;
  EXPECT_EQ(tilewise_query(context.get(), &a, TILEWISE_FORWARD, &answer, nullptr), bad_argument);
}

TEST(Query, StatusNamesAndVersion) {
  EXPECT_EQ(tilewise_abi_version(), TILEWISE_ABI_VERSION);
  EXPECT_STREQ(tilewise_status_name(TILEWISE_OK), "ok");
  EXPECT_STREQ(tilewise_status_name(TILEWISE_UNSUPPORTED), "unsupported");
  std::set<std::string> names;
  for (const tilewise_status code : {0, 1, 2, 3, 5, 4711}) names.insert(tilewise_status_name(code));
  EXPECT_EQ(names.size(), 6u);
  EXPECT_STREQ(tilewise_status_name(4711), "unknown");
}

TEST(Query, ValidateHasNothingToSayOnTheCpu) {
  const Context context = serial();
  EXPECT_EQ(tilewise_validate(context.get(), nullptr, nullptr, nullptr), TILEWISE_OK);
  EXPECT_EQ(tilewise_validate(nullptr, nullptr, nullptr, nullptr), bad_argument);
}

// ---------------------------------------------------------------------------------------- merge

struct Parts {
  std::deque<Buffer> o, lse;
  std::vector<tilewise_tensor> o_views, lse_views;

  Parts(int n, std::int32_t dtype, const Shape& o_shape, const Shape& lse_shape) {
    for (int i = 0; i < n; ++i) {
      o_views.push_back(o.emplace_back(dtype, o_shape).tensor);
      lse_views.push_back(lse.emplace_back(TILEWISE_F32, lse_shape).tensor);
    }
  }
};

class MergeTest : public testing::TestWithParam<std::int32_t> {};

TEST_P(MergeTest, AgreesWithDoubles) {
  const std::int32_t base = GetParam();
  constexpr std::size_t B = 2, S = 3, H = 2, D = 70, n = 4;
  Parts parts(n, TILEWISE_F32, {B, S, H, D}, {B, H, S});
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t x = 0; x < B * S * H * D; ++x) parts.o[i].as<float>()[x] = normal(random);
    for (std::size_t x = 0; x < B * H * S; ++x) parts.lse[i].as<float>()[x] = 20 * normal(random);
  }
  // Parts that have seen nothing, in either spelling, and a row that nobody has.
  parts.lse[1].as<float>()[0] = -std::numeric_limits<float>::infinity();
  parts.lse[2].as<float>()[0] = std::numeric_limits<float>::infinity();
  parts.o[1].as<float>()[0] = std::numeric_limits<float>::quiet_NaN();
  for (std::size_t i = 0; i < n; ++i)
    parts.lse[i].as<float>()[B * H * S - 1] = i % 2 != 0 ? std::numeric_limits<float>::infinity()
                                                         : -std::numeric_limits<float>::infinity();

  Buffer o(TILEWISE_F32, {B, S, H, D}), lse(TILEWISE_F32, {B, H, S});
  tilewise_error error = TILEWISE_ERROR_INIT;
  ASSERT_EQ(tilewise_merge_states(serial().get(), n, parts.o_views.data(), parts.lse_views.data(),
                                  &o.tensor, &lse.tensor, base, TILEWISE_EMPTY_LSE_PLUS_INF,
                                  nullptr, &error),
            TILEWISE_OK)
      << error.message;
  const double unit = base == TILEWISE_LSE_BASE_2 ? std::log(2.0) : 1.0;
  for (std::size_t b = 0; b < B; ++b)
    for (std::size_t h = 0; h < H; ++h)
      for (std::size_t s = 0; s < S; ++s) {
        const std::size_t row = (b * H + h) * S + s, first = ((b * S + s) * H + h) * D;
        double sum = 0;
        std::vector<double> expected(D);
        for (std::size_t i = 0; i < n; ++i) {
          const double part = parts.lse[i].as<float>()[row];
          if (std::isinf(part)) continue;
          sum += std::exp(unit * part);
          for (std::size_t x = 0; x < D; ++x)
            expected[x] += std::exp(unit * part) * parts.o[i].as<float>()[first + x];
        }
        const float merged = lse.as<float>()[row];
        if (sum == 0)
          EXPECT_EQ(merged, infinity);
        else
          EXPECT_NEAR(merged, std::log(sum) / unit, 1e-5 * std::max(1.0, std::abs(std::log(sum))));
        for (std::size_t x = 0; x < D; ++x)
          EXPECT_NEAR(o.as<float>()[first + x], sum == 0 ? 0 : expected[x] / sum, 1e-6 * 4);
      }
}

INSTANTIATE_TEST_SUITE_P(Bases, MergeTest,
                         testing::Values(TILEWISE_LSE_BASE_E, TILEWISE_LSE_BASE_2));

TEST(Merge, HalvesOfTheKeysMakeTheWhole) {
  const Context context = serial();
  World world;
  tilewise_attention a;
  ASSERT_EQ(tilewise_attention_init(&a, nullptr), TILEWISE_OK);
  a.q = world.input(TILEWISE_F32, {1, 9, 2, 16});
  a.k = world.input(TILEWISE_F32, {1, 40, 2, 16});
  a.v = world.input(TILEWISE_F32, {1, 40, 2, 16});
  a.o = world.output(TILEWISE_F32, {1, 9, 2, 16});
  a.lse = world.output(TILEWISE_F32, {1, 2, 9});
  const auto forward = [&](const tilewise_attention& attention) {
    const Workspace workspace(workspace_bytes(context, attention, TILEWISE_FORWARD));
    tilewise_error error = TILEWISE_ERROR_INIT;
    ASSERT_EQ(compute(context, attention, TILEWISE_FORWARD, workspace, error), TILEWISE_OK);
  };
  forward(a);
  Parts parts(2, TILEWISE_F32, {1, 9, 2, 16}, {1, 2, 9});
  for (std::size_t half = 0; half < 2; ++half) {
    tilewise_attention part = a;
    const std::int64_t first = half == 0 ? 0 : 13, count = half == 0 ? 13 : 27;
    for (tilewise_tensor* view : {&part.k, &part.v}) {
      view->data = static_cast<float*>(view->data) + first * view->strides[1];
      view->shape[1] = count;
    }
    part.o = parts.o_views[half];
    part.lse = parts.lse_views[half];
    forward(part);
  }
  // Into the first part, where it stands.
  ASSERT_EQ(tilewise_merge_states(context.get(), 2, parts.o_views.data(), parts.lse_views.data(),
                                  &parts.o_views[0], &parts.lse_views[0], TILEWISE_LSE_BASE_E,
                                  TILEWISE_EMPTY_LSE_MINUS_INF, nullptr, nullptr),
            TILEWISE_OK);
  for (int x = 0; x < 9 * 2 * 16; ++x)
    EXPECT_NEAR(parts.o[0].as<float>()[x], static_cast<float*>(a.o.data)[x], 2e-6);
  for (int x = 0; x < 2 * 9; ++x)
    EXPECT_NEAR(parts.lse[0].as<float>()[x], static_cast<float*>(a.lse.data)[x], 2e-6);
}

TEST(Merge, PackedWithoutLse) {
  Parts parts(1, TILEWISE_F16, {3, 2, 4}, {2, 3});
  std::memset(parts.o[0].memory.data(), 0, parts.o[0].bytes);
  std::memset(parts.lse[0].memory.data(), 0, parts.lse[0].bytes);
  parts.o[0].as<std::uint16_t>()[5] = 0x3c00;  // 1
  Buffer o(TILEWISE_F64, {3, 2, 4});
  tilewise_error error = TILEWISE_ERROR_INIT;
  ASSERT_EQ(tilewise_merge_states(serial().get(), 1, parts.o_views.data(), parts.lse_views.data(),
                                  &o.tensor, nullptr, TILEWISE_LSE_BASE_E,
                                  TILEWISE_EMPTY_LSE_MINUS_INF, nullptr, &error),
            TILEWISE_OK)
      << error.message;
  for (int x = 0; x < 24; ++x) EXPECT_EQ(o.as<double>()[x], x == 5 ? 1 : 0);
}

TEST(Merge, ANanComesThrough) {
  Parts parts(2, TILEWISE_F32, {1, 1, 1, 1}, {1, 1, 1});
  for (std::size_t i = 0; i < 2; ++i) parts.o[i].as<float>()[0] = parts.lse[i].as<float>()[0] = 1;
  parts.lse[1].as<float>()[0] = std::numeric_limits<float>::quiet_NaN();
  Buffer o(TILEWISE_F32, {1, 1, 1, 1}), lse(TILEWISE_F32, {1, 1, 1});
  ASSERT_EQ(tilewise_merge_states(serial().get(), 2, parts.o_views.data(), parts.lse_views.data(),
                                  &o.tensor, &lse.tensor, TILEWISE_LSE_BASE_E,
                                  TILEWISE_EMPTY_LSE_MINUS_INF, nullptr, nullptr),
            TILEWISE_OK);
  EXPECT_TRUE(std::isnan(o.as<float>()[0]));
  EXPECT_TRUE(std::isnan(lse.as<float>()[0]));
}

TEST(Merge, BadInput) {
  struct Arguments {
    Parts parts{2, TILEWISE_F32, {1, 3, 2, 4}, {1, 2, 3}};
    Buffer o{TILEWISE_F32, {1, 3, 2, 4}}, lse{TILEWISE_F32, {1, 2, 3}};
    std::int64_t n = 2;
    const tilewise_tensor* o_parts = parts.o_views.data();
    const tilewise_tensor* o_given = &o.tensor;
    std::int32_t base = 0, empty = 0;
    void* stream = nullptr;
  };
  const struct {
    const char* says;
    std::function<void(Arguments&)> spoil;
  } table[] = {
      {"n is 0", [](Arguments& a) { a.n = 0; }},
      {"n is -4", [](Arguments& a) { a.n = -4; }},
      {"o_parts is null", [](Arguments& a) { a.o_parts = nullptr; }},
      {"o is null", [](Arguments& a) { a.o_given = nullptr; }},
      {"lse_base is 2", [](Arguments& a) { a.base = 2; }},
      {"empty_row_lse is 3", [](Arguments& a) { a.empty = 3; }},
      {"stream is not null", [](Arguments& a) { a.stream = &a; }},
      {"o has dtype i32", [](Arguments& a) { a.o.tensor.dtype = TILEWISE_I32; }},
      {"o has another shape", [](Arguments& a) { a.o.tensor.ndim = 2; }},
      {"lse does not have the shape", [](Arguments& a) { a.lse.tensor.shape[1] = 3; }},
      {"lse has dtype i32", [](Arguments& a) { a.lse.tensor.dtype = TILEWISE_I32; }},
      {"o_parts[1] has another shape", [](Arguments& a) { a.parts.o_views[1].shape[1] = 2; }},
      {"lse_parts[1] does not have the shape", [](Arguments& a) { a.parts.lse_views[1].ndim = 2; }},
      {"lse_parts[0] has dtype f16",
       [](Arguments& a) { a.parts.lse_views[0].dtype = TILEWISE_F16; }},
      {"o has stride 0", [](Arguments& a) { a.o.tensor.strides[1] = 0; }},
      {"o shares memory with o_parts[1]",
       [](Arguments& a) { a.o.tensor.data = static_cast<float*>(a.parts.o_views[1].data) + 1; }},
      {"lse shares memory with o",
       [](Arguments& a) { a.lse.tensor.data = static_cast<float*>(a.o.tensor.data) + 5; }},
  };
  for (const auto& row : table) {
    SCOPED_TRACE(row.says);
    Arguments a;
    row.spoil(a);
    tilewise_error error = TILEWISE_ERROR_INIT;
    EXPECT_EQ(tilewise_merge_states(serial().get(), a.n, a.o_parts, a.parts.lse_views.data(),
                                    a.o_given, &a.lse.tensor, a.base, a.empty, a.stream, &error),
              bad_argument);
    EXPECT_NE(std::string(error.message).find(row.says), std::string::npos) << error.message;
    EXPECT_TRUE(a.o.untouched());
    EXPECT_TRUE(a.lse.untouched());
  }
  EXPECT_EQ(
      tilewise_merge_states(nullptr, 0, nullptr, nullptr, nullptr, nullptr, 0, 0, nullptr, nullptr),
      bad_argument);
}

}  // namespace
}  // namespace tilewise::tests
