#include "core/attention.hpp"
#include "include/tilewise/attention.hpp"

#include "entry_points.hpp"
#include "tools/capi_implementation.hpp"

#include <functional>
#include <string>
#include <utility>

namespace tilewise::tests {
namespace {

using harness::Implementation;
using harness::Support;

/// What a problem may have beyond dense tensors, causal and a scale.
struct Allowed {
  bool window = false, softcap = false, alibi = false, bias = false, mask = false;
  bool dropout = false, chunk = false, descale = false, splits = false, backward = false;
  bool packed = false, lengths = false, cache = false, head_dim_v = true;
};

/// The problem without what is allowed: nothing special may be left.
bool fits(const Problem& problem, const Allowed& allowed) {
  if (!allowed.backward && problem.pass == Pass::backward) return false;
  if (!allowed.head_dim_v && problem.head_dim_v != problem.head_dim) return false;
  if (!allowed.packed && problem.layout == Layout::packed) return false;
  if (!allowed.lengths && problem.varlen() && problem.layout != Layout::packed) return false;
  if (problem.cached() != allowed.cache) return false;
  if (problem.kv || problem.blocks || problem.sink) return false;
  if (!allowed.window && (problem.window_left >= 0 || problem.window_right >= 0)) return false;
  if (!allowed.softcap && problem.softcap != 0) return false;
  if (!allowed.alibi && problem.alibi) return false;
  if (!allowed.bias && problem.bias) return false;
  if (!allowed.mask && problem.mask) return false;
  if (!allowed.dropout && problem.dropout_p != 0) return false;
  if (!allowed.chunk && problem.attention_chunk != 0) return false;
  if (!allowed.descale && problem.descale) return false;
  return allowed.splits || problem.splits == 0;
}

/// A problem's tensors and numbers, as the functions take them.
struct Given {
  const Problem& problem;
  const tilewise_attention& t;

  std::array<std::int64_t, 2> window() const { return {problem.window_left, problem.window_right}; }
};

using Run = std::function<Result(Context&, const Given&)>;

class EntryPoint final : public Implementation {
 public:
  EntryPoint(std::string name, std::string preset, Allowed allowed,
             std::function<bool(const Problem&)> also, bool writes_lse, Run forward, Run backward)
      : name_(std::move(name)),
        preset_(std::move(preset)),
        allowed_(allowed),
        also_(std::move(also)),
        writes_lse_(writes_lse),
        forward_(std::move(forward)),
        backward_(std::move(backward)) {}

  std::string_view name() const override { return name_; }
  std::string_view idea() const override { return "a function of attention.hpp"; }
  const std::string& preset() const { return preset_; }

  Support supports(const Problem& problem) const override {
    if (!(problem.conventions == *conventions_from_name(preset_)))
      return Support::no("other conventions than " + preset_);
    if (!fits(problem, allowed_) || !also_(problem))
      return Support::no("its arguments cannot say this");
    return Support::yes();
  }

  harness::Outputs writes(const Problem& problem) const override {
    harness::Outputs outputs = Implementation::writes(problem);
    outputs.lse = writes_lse_;
    return outputs;
  }

  Status run(const harness::Call& call) const override {
    ContextOptions options;
    options.threads = call.threads;
    Context context(options);
    const tilewise_attention tensors = tools::c_attention(call.problem, call.tensors);
    const Given given{call.problem, tensors};
    Result result = forward_(context, given);
    if (result && call.problem.pass == Pass::backward) result = backward_(context, given);
    if (result) return {};
    return failure(static_cast<Code>(result.code()), "%s", result.message());
  }

 private:
  std::string name_, preset_;
  Allowed allowed_;
  std::function<bool(const Problem&)> also_;
  bool writes_lse_;
  Run forward_, backward_;
};

bool anything(const Problem&) {
  return true;
}

FlashAttnArgs fa2_args(const Given& given) {
  const Problem& problem = given.problem;
  FlashAttnArgs args;
  args.dropout_p = problem.dropout_p;
  args.softmax_scale = problem.softmax_scale;
  args.causal = problem.causal;
  args.window_size = given.window();
  args.softcap = problem.softcap;
  args.alibi_slopes = given.t.alibi_slopes;
  args.rng_state = {problem.seed, 0};
  return args;
}

fa3::FlashAttnArgs fa3_args(const Given& given) {
  const Problem& problem = given.problem;
  fa3::FlashAttnArgs args;
  args.seqused_q = given.t.seqlens_q;
  args.seqused_k = given.t.seqlens_k;
  args.softmax_scale = problem.softmax_scale;
  args.causal = problem.causal;
  args.q_descale = given.t.q_descale;
  args.k_descale = given.t.k_descale;
  args.v_descale = given.t.v_descale;
  args.window_size = given.window();
  args.attention_chunk = problem.attention_chunk;
  args.softcap = problem.softcap;
  args.num_splits = static_cast<std::int32_t>(problem.splits);
  return args;
}

/// What both functions with a cache are told in the same words.
template <class Args>
Args cache_args(const Given& given) {
  const Problem& problem = given.problem;
  Args args;
  args.k = given.t.k_new;
  args.v = given.t.v_new;
  args.rotary_cos = given.t.rotary_cos;
  args.rotary_sin = given.t.rotary_sin;
  args.cache_seqlens = given.t.seqlens_k;
  args.cache_batch_idx = given.t.cache_batch_idx;
  args.cache_leftpad = given.t.cache_leftpad;
  args.softmax_scale = problem.softmax_scale;
  args.causal = problem.causal;
  args.window_size = given.window();
  args.softcap = problem.softcap;
  if (problem.rotary) args.rotary_interleaved = problem.rotary->interleaved;
  args.num_splits = static_cast<std::int32_t>(problem.splits);
  return args;
}

/// [b, s, h, d] as [b, h, s, d].
Tensor heads_first(const Tensor& view) {
  return transposed(view, 1, 2);
}

void add(harness::Table& table, EntryPoint entry) {
  table.push_back(std::make_unique<EntryPoint>(std::move(entry)));
}

void add_flash_attn_2(harness::Table& table) {
  Allowed allowed;
  allowed.window = allowed.softcap = allowed.alibi = allowed.dropout = allowed.backward = true;
  const auto not_both = [](const Problem& p) { return p.softcap == 0 || p.dropout_p == 0; };
  add(table, EntryPoint(
                 "entry.flash_attn_func", "fa2", allowed, not_both, true,
                 [](Context& context, const Given& g) {
                   return flash_attn_func(context, g.t.q, g.t.k, g.t.v, g.t.o, g.t.lse,
                                          fa2_args(g));
                 },
                 [](Context& context, const Given& g) {
                   return flash_attn_backward(context, g.t.dout, g.t.q, g.t.k, g.t.v, g.t.o,
                                              g.t.lse, g.t.dq, g.t.dk, g.t.dv, fa2_args(g));
                 }));
  allowed.packed = true;
  add(table, EntryPoint(
                 "entry.flash_attn_varlen_func", "fa2", allowed,
                 [=](const Problem& p) { return p.layout == Layout::packed && not_both(p); }, true,
                 [](Context& context, const Given& g) {
                   return flash_attn_varlen_func(context, g.t.q, g.t.k, g.t.v, g.t.cu_seqlens_q,
                                                 g.t.cu_seqlens_k, g.problem.max_seqlen_q(),
                                                 g.problem.max_seqlen_k(), g.t.o, g.t.lse,
                                                 fa2_args(g));
                 },
                 [](Context& context, const Given& g) {
                   return flash_attn_varlen_backward(
                       context, g.t.dout, g.t.q, g.t.k, g.t.v, g.t.o, g.t.lse, g.t.dq, g.t.dk,
                       g.t.dv, g.t.cu_seqlens_q, g.t.cu_seqlens_k, g.problem.max_seqlen_q(),
                       g.problem.max_seqlen_k(), fa2_args(g));
                 }));
  Allowed cached;
  cached.window = cached.softcap = cached.alibi = cached.splits = cached.cache = true;
  const auto one_length_of_queries = [](const Problem& p) { return p.seqlens_q.size() == 1; };
  cached.lengths = true;
  add(table, EntryPoint("entry.flash_attn_with_kvcache", "fa2", cached, one_length_of_queries, true,
                        [](Context& context, const Given& g) {
                          auto args = cache_args<FlashAttnWithKvcacheArgs>(g);
                          args.block_table = g.t.block_table;
                          args.alibi_slopes = g.t.alibi_slopes;
                          return flash_attn_with_kvcache(context, g.t.q, g.t.k, g.t.v, g.t.o,
                                                         g.t.lse, args);
                        },
                        {}));
}

void add_flash_attn_3(harness::Table& table) {
  Allowed allowed;
  allowed.window = allowed.softcap = allowed.chunk = allowed.descale = allowed.splits = true;
  allowed.backward = allowed.lengths = true;
  add(table, EntryPoint(
                 "entry.fa3.flash_attn_func", "fa3", allowed, anything, true,
                 [](Context& context, const Given& g) {
                   return fa3::flash_attn_func(context, g.t.q, g.t.k, g.t.v, g.t.o, g.t.lse,
                                               fa3_args(g));
                 },
                 [](Context& context, const Given& g) {
                   return fa3::flash_attn_backward(context, g.t.dout, g.t.q, g.t.k, g.t.v, g.t.o,
                                                   g.t.lse, g.t.dq, g.t.dk, g.t.dv, fa3_args(g));
                 }));
  allowed.packed = true;
  add(table, EntryPoint(
                 "entry.fa3.flash_attn_varlen_func", "fa3", allowed,
                 [](const Problem& p) { return p.layout == Layout::packed; }, true,
                 [](Context& context, const Given& g) {
                   return fa3::flash_attn_varlen_func(
                       context, g.t.q, g.t.k, g.t.v, g.t.cu_seqlens_q, g.t.cu_seqlens_k,
                       g.problem.max_seqlen_q(), g.problem.max_seqlen_k(), g.t.o, g.t.lse,
                       fa3_args(g));
                 },
                 [](Context& context, const Given& g) {
                   return fa3::flash_attn_varlen_backward(
                       context, g.t.dout, g.t.q, g.t.k, g.t.v, g.t.o, g.t.lse, g.t.dq, g.t.dk,
                       g.t.dv, g.t.cu_seqlens_q, g.t.cu_seqlens_k, g.problem.max_seqlen_q(),
                       g.problem.max_seqlen_k(), fa3_args(g));
                 }));
  Allowed cached = allowed;
  cached.cache = true;
  cached.backward = false;
  add(table,
      EntryPoint(
          "entry.fa3.flash_attn_with_kvcache", "fa3", cached,
          [](const Problem& p) { return p.seqlens_q.size() == 1 || p.layout == Layout::packed; },
          true,
          [](Context& context, const Given& g) {
            auto args = cache_args<fa3::FlashAttnWithKvcacheArgs>(g);
            args.page_table = g.t.block_table;
            args.attention_chunk = g.problem.attention_chunk;
            args.cu_seqlens_q = g.t.cu_seqlens_q;
            args.max_seqlen_q = g.problem.layout == Layout::packed ? g.problem.max_seqlen_q() : 0;
            args.q_descale = g.t.q_descale;
            args.k_descale = g.t.k_descale;
            args.v_descale = g.t.v_descale;
            return fa3::flash_attn_with_kvcache(context, g.t.q, g.t.k, g.t.v, g.t.o, g.t.lse, args);
          },
          {}));
}

void add_frameworks(harness::Table& table) {
  Allowed torch;
  torch.bias = torch.mask = torch.dropout = true;
  add(table,
      EntryPoint(
          "entry.scaled_dot_product_attention", "torch_sdpa", torch,
          [](const Problem& p) { return !(p.bias && p.mask) && !(p.causal && (p.bias || p.mask)); },
          false,
          [](Context& context, const Given& g) {
            ScaledDotProductAttentionArgs args;
            args.attn_mask = g.problem.mask ? g.t.mask : g.t.bias;
            args.dropout_p = g.problem.dropout_p;
            args.is_causal = g.problem.causal;
            args.scale = g.problem.softmax_scale;
            args.enable_gqa = true;
            args.rng_state = {g.problem.seed, 0};
            return scaled_dot_product_attention(context, heads_first(g.t.q), heads_first(g.t.k),
                                                heads_first(g.t.v), heads_first(g.t.o), args);
          },
          {}));
  Allowed xformers;
  xformers.bias = xformers.dropout = true;
  add(table, EntryPoint(
                 "entry.memory_efficient_attention", "xformers", xformers,
                 // Its causal masks are classes of their own alignment: LowerTriangularMask is
                 // top-left.
                 [](const Problem& p) {
                   return !p.causal || p.conventions.alignment == Alignment::top_left;
                 },
                 true,
                 [](Context& context, const Given& g) {
                   MemoryEfficientAttentionArgs args;
                   if (g.problem.causal && g.problem.bias)
                     args.attn_bias = LowerTriangularMaskWithTensorBias(g.t.bias);
                   else if (g.problem.causal)
                     args.attn_bias = LowerTriangularMask();
                   else if (g.problem.bias)
                     args.attn_bias = g.t.bias;
                   args.p = g.problem.dropout_p;
                   args.scale = g.problem.softmax_scale;
                   args.lse = g.t.lse;
                   args.rng_state = {g.problem.seed, 0};
                   return memory_efficient_attention(context, g.t.q, g.t.k, g.t.v, g.t.o, args);
                 },
                 {}));
}

}  // namespace

harness::Table entry_points() {
  harness::Table table;
  add_flash_attn_2(table);
  add_flash_attn_3(table);
  add_frameworks(table);
  return table;
}

std::string preset_of(const Implementation& entry_point) {
  return static_cast<const EntryPoint&>(entry_point).preset();
}

}  // namespace tilewise::tests
