// The judge judged where keys come from a cache: the portable kernel with something wrong done to
// its call, each rejected for a stated reason; and untouched, accepted.
#include "core/attention.hpp"
#include "oracle/harness/harness.hpp"
#include "tools/capi_implementation.hpp"

#include <gtest/gtest.h>

#include <cstdio>
#include <functional>
#include <string>

namespace tilewise {
namespace {

using harness::Call;
using harness::State;
using harness::Verdict;

/// The portable kernel, told something else than it was asked, or followed by something else.
class Misled final : public harness::Implementation {
 public:
  using Change = std::function<void(AttentionTensors&)>;

  Misled(Change before, Change after)
      : portable_(tools::portable_implementation()),
        before_(std::move(before)),
        after_(std::move(after)) {}

  std::string_view name() const override { return "misled"; }
  std::string_view idea() const override { return "the portable kernel with its call changed"; }
  harness::Support supports(const Problem& problem) const override {
    return portable_->supports(problem);
  }
  std::size_t workspace_bytes(const Problem& problem) const override {
    return portable_->workspace_bytes(problem);
  }
  Status run(const Call& call) const override {
    Call changed = call;
    if (before_) before_(changed.tensors);
    Status status = portable_->run(changed);
    AttentionTensors tensors = call.tensors;
    if (status.ok() && after_) after_(tensors);
    return status;
  }

 private:
  std::unique_ptr<harness::Implementation> portable_;
  Change before_, after_;
};

/// Element (block, row, head, x) of a cache.
void* at(const TensorView& cache, std::int64_t block, std::int64_t row, std::int64_t head,
         std::int64_t x) {
  return cache.at(block * cache.strides[0] + row * cache.strides[1] + head * cache.strides[2] +
                  x * cache.strides[3]);
}

std::int64_t length(const AttentionTensors& tensors, std::int64_t b) {
  return static_cast<std::int64_t>(load(DType::i32, tensors.seqlens_k.at(b)));
}

struct Bug {
  const char* name;
  const char* problem;
  Misled::Change before, after;
  const char* reason;  ///< stands in one of the verdict's reasons
};

const Bug bugs[] = {
    {"the other rotary pairing",
     "fwd b2 sq3 sk40 h2 d32 causal new=3 rotary=32",
     [](AttentionTensors& t) { t.cache.rotary_interleaved = !t.cache.rotary_interleaved; },
     {},
     "k: "},
    {"rotary one position on",
     "fwd b2 sq3 sk40 h2 d32 causal new=3 rotary=32",
     [](AttentionTensors& t) {
       for (TensorView* table : {&t.cache.rotary_cos, &t.cache.rotary_sin}) {
         table->data = table->at(table->strides[0]);
         --table->shape[0];
       }
     },
     {},
     "k: "},
    {"sine for cosine",
     "fwd b2 sq3 sk40 h2 d32 causal rotary=32",
     [](AttentionTensors& t) { std::swap(t.cache.rotary_cos, t.cache.rotary_sin); },
     {},
     "o: "},
    {"padding attended to",
     "fwd b3 sq3 sk40 h2 d32 leftpad=5",
     [](AttentionTensors& t) { t.cache.leftpad = {}; },
     {},
     "o: "},
    {"every sequence on the first one's pages",
     "fwd b3 sq3 sk40 h2 d32 page=16",
     [](AttentionTensors& t) { t.cache.block_table.strides[0] = 0; },
     {},
     "o: "},
    {"cache rows in order",
     "fwd b3 sq3 sk40 h2 d32 slots=5",
     [](AttentionTensors& t) {
       t.cache.cache_batch_idx = {};
       t.k.shape[0] = t.v.shape[0] = t.q.shape[0];
     },
     {},
     "o: "},
    {"keys without their factor",
     "fwd b2 sq9 sk40 h2 d32 e4m3 descale",
     [](AttentionTensors& t) { t.scales.k_descale = {}; },
     {},
     "lse: "},
    {"values without their factor",
     "fwd b2 sq9 sk40 h2 d32 f16 kv=e4m3 descale",
     [](AttentionTensors& t) { t.scales.v_descale = {}; },
     {},
     "o: "},
    {"the values' scales for the keys",
     "fwd b2 sq9 sk40 h2 d32 kv=i8",
     [](AttentionTensors& t) { t.scales.k_scales = t.scales.v_scales; },
     {},
     "lse: "},
    {"one block's scale too large by two percent",
     "fwd b1 sq9 sk40 h1 d32 kv=q8_0",
     {},
     [](AttentionTensors& t) {
       for (std::int64_t i = 0; i < 9; ++i) {
         void* const lse = t.lse.at(i);
         store(DType::f32, lse, load(DType::f32, lse) + 0.02 / 40);
       }
     },
     "lse: "},
    {"a new key not written",
     "fwd b2 sq3 sk40 h2 d32 new=3",
     {},
     [](AttentionTensors& t) {
       void* const element = at(t.k, 1, length(t, 1), 1, 7);
       store(DType::f32, element, load(DType::f32, element) + 1);
     },
     "k: "},
    {"a new value off by one bit",
     "fwd b2 sq3 sk40 h2 d32 new=3 rotary=16",
     {},
     [](AttentionTensors& t) {
       auto* const element = static_cast<unsigned char*>(at(t.v, 0, length(t, 0), 0, 0));
       *element = static_cast<unsigned char>(*element ^ 1U);
     },
     "v: "},
    {"written one row too far",
     "fwd b2 sq3 sk40 h2 d32 new=3",
     {},
     [](AttentionTensors& t) { store(DType::f32, at(t.k, 0, length(t, 0) + 3, 0, 0), 1); },
     "cache: "},
    {"an old value written over",
     "fwd b2 sq3 sk40 h2 d32 page=16 new=3",
     {},
     [](AttentionTensors& t) {
       const auto page = static_cast<std::int64_t>(load(DType::i32, t.cache.block_table.at(0)));
       store(DType::f32, at(t.v, page, 0, 0, 0), 1);
     },
     "cache: "},
};

harness::Options quick() {
  harness::Options options;
  options.repeats = 1;
  return options;
}

TEST(CacheBugs, AreAllRejectedForTheirReason) {
  std::size_t rejected = 0;
  for (const Bug& bug : bugs) {
    const Verdict right = harness::check(Misled({}, {}), bug.problem, quick());
    EXPECT_EQ(right.state, State::pass) << bug.problem;
    const Verdict verdict = harness::check(Misled(bug.before, bug.after), bug.problem, quick());
    EXPECT_EQ(verdict.state, State::fail) << bug.name;
    bool stated = false;
    for (const std::string& reason : verdict.reasons)
      stated = stated || reason.starts_with(bug.reason);
    EXPECT_TRUE(stated) << bug.name << ": "
                        << (verdict.reasons.empty() ? "" : verdict.reasons.front());
    rejected += verdict.state == State::fail ? 1 : 0;
  }
  std::printf("%zu planted bugs around the cache rejected\n", rejected);
}

}  // namespace
}  // namespace tilewise
