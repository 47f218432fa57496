// Every entry point on every semantic, pairwise: small and odd sizes, judged against float64.
#include "entry_points.hpp"
#include "pairwise.hpp"

#include "oracle/harness/harness.hpp"
#include "tools/capi_implementation.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

namespace tilewise {
namespace {

using harness::State;
using harness::Verdict;

/// Every semantic of a problem, each with its awkward values.
std::vector<tests::Factor> semantics() {
  return {
      {"fwd", "bwd"},
      {"b2 sq17 sk33", "b2 sq1 sk65", "b3 sq5,0,20 sk64,7,0", "sq70 sk64", "b2 sq3 sk129,4"},
      {"hq1 hk1", "hq4 hk2", "hq3 hk1"},
      {"d16", "d64", "d33 dv17", "d1 dv1", "d32 dv64", "d512 dv3"},
      {"f32", "f64", "f16", "bf16", "e4m3", "e5m2"},
      {"", "bhsd", "packed"},
      {"", "causal"},
      {"", "window=9,0", "window=-1,3", "window=2,2"},
      {"", "chunk=13"},
      {"", "scale=0.3"},
      {"", "softcap=2"},
      {"", "alibi"},
      {"", "bias=b,h,q,k", "bias=1,h,1,k", "bias=b,1,q,1"},
      {"", "mask=b,1,q,k", "mask=1,h,1,k"},
      {"", "blocks=16,16,0.5", "blocks=5,7,0.3"},
      {"", "sink"},
      {"", "dropout=0.3"},
      {"", "page=16", "page=5", "slots=5"},
      {"", "leftpad=4"},
      {"", "new=3"},
      {"", "rotary=16", "rotary=8,half"},
      {"", "kv=i8", "kv=q8_0", "kv=e4m3"},
      {"", "descale"},
      {"", "splits=3"},
      {"", "conv=fa2", "conv=torch_sdpa", "conv=xformers", "conv=flashinfer", "conv=vllm",
       "conv=onnx", "conv=cudnn scale=0.1", "conv=ggml scale=0.2", "conv=jax",
       "conv=triton_tutorial scale=0.2", "conv=hf_eager"},
      {"fill=normal", "fill=huge", "fill=ascending", "fill=mixed", "fill=outliers",
       "fill=constant"},
  };
}

harness::Options quick() {
  harness::Options options;
  options.repeats = 1;
  options.measure_memory = false;
  return options;
}

std::string first_reason(const Verdict& verdict) {
  return verdict.reasons.empty() ? "" : verdict.reasons.front();
}

/// How many of the problems pass; each that does not is a failure.
std::size_t passed(const harness::Implementation& implementation,
                   const std::vector<Problem>& problems) {
  std::size_t count = 0;
  for (const Problem& problem : problems) {
    const Verdict verdict = harness::check(implementation, problem, quick());
    EXPECT_EQ(verdict.state, State::pass)
        << implementation.name() << ": " << verdict.problem << ": " << first_reason(verdict);
    count += verdict.state == State::pass ? 1 : 0;
  }
  return count;
}

void expect_conformance(const harness::Implementation& implementation,
                        std::vector<tests::Factor> factors, std::size_t fewest_pairs,
                        std::size_t more) {
  tests::PairwiseProblems generator(std::move(factors), 1, [&](const Problem& problem) {
    return implementation.supports(problem).ok;
  });
  const tests::Covering covering = generator.cover();
  const std::size_t pairwise = passed(implementation, covering.problems);
  const std::vector<Problem> drawn = generator.more(more);
  EXPECT_EQ(drawn.size(), more) << implementation.name();
  const std::size_t random = passed(implementation, drawn);
  std::printf("%s: %zu problems passed in which %zu pairs of semantics meet, and %zu random ones\n",
              std::string(implementation.name()).c_str(), pairwise, covering.pairs, random);
  EXPECT_GE(covering.pairs, fewest_pairs) << implementation.name();
}

TEST(Conformance, ThePortableKernelServesEverySemantic) {
  // Nothing is filtered by supports() here: what a problem can say is served.
  const auto portable = tools::portable_implementation();
  tests::PairwiseProblems generator(semantics(), 2, [](const Problem&) { return true; });
  for (const Problem& problem : generator.more(300))
    EXPECT_TRUE(portable->supports(problem).ok)
        << to_string(problem) << ": " << portable->supports(problem).reason;
}

TEST(Conformance, ThePortableKernelOnEveryPairOfSemantics) {
  expect_conformance(*tools::portable_implementation(), semantics(), 3800, 150);
}

TEST(Conformance, TheTileKernelsOnEveryPairOfSemantics) {
  const Problem simple = std::get<Problem>(parse_problem("fwd s8 d8"));
  std::size_t here = 0;
  for (const auto& implementation : tools::library_implementations()) {
    if (implementation->name() == "cpu.portable" || !implementation->supports(simple).ok) continue;
    expect_conformance(*implementation, semantics(), 3000, 150);
    ++here;
  }
#if defined(__x86_64__) || defined(__aarch64__)
  EXPECT_GE(here, 1u);
#endif
}

class EntryPoints : public testing::TestWithParam<std::size_t> {};

TEST_P(EntryPoints, OnEveryPairOfSemanticsThatTheirArgumentsCanSay) {
  const harness::Table table = tests::entry_points();
  const harness::Implementation& entry = *table[GetParam()];
  std::vector<tests::Factor> factors = semantics();
  // Its system's conventions, in place of all.
  for (tests::Factor& factor : factors)
    if (factor.back().starts_with("conv=")) factor = {"conv=" + tests::preset_of(entry)};
  expect_conformance(entry, std::move(factors), 500, 40);
}

INSTANTIATE_TEST_SUITE_P(Conformance, EntryPoints,
                         testing::Range<std::size_t>(0, tests::entry_points().size()),
                         [](const testing::TestParamInfo<std::size_t>& entry) {
                           std::string name(tests::entry_points()[entry.param]->name().substr(6));
                           std::replace(name.begin(), name.end(), '.', '_');
                           return name;
                         });

}  // namespace
}  // namespace tilewise
