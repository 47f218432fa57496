// Their kernel before the judge: the right one passes, one that looks a key too far does not.
#include "their_kernel.hpp"

#include <tilewise/gtest.hpp>

namespace {

using tilewise::harness::Call;

/// What it takes to plug a kernel in: its arguments, taken from a call.
auto their_implementation(int first_future_key = 1) {
  return tilewise::harness::make_implementation(
      "their.attention", [=](const Call& call) -> tilewise::Status {
        const auto floats = [](const tilewise::TensorView& view) {
          return static_cast<float*>(view.data);
        };
        const auto& problem = call.problem;
        const auto& tensors = call.tensors;
        const Shape shape{static_cast<int>(problem.batch), static_cast<int>(problem.seqlen_q(0)),
                          static_cast<int>(problem.seqlen_k(0)), static_cast<int>(problem.nheads_q),
                          static_cast<int>(problem.head_dim)};
        their_attention(floats(tensors.q), floats(tensors.k), floats(tensors.v), floats(tensors.o),
                        floats(tensors.lse), shape, static_cast<float>(call.params.softmax_scale),
                        call.params.causal, first_future_key);
        return {};
      });
}

// [snippet check]
TEST(TheirKernel, Passes) {
  const auto kernel = their_implementation();
  EXPECT_TRUE(tilewise::harness::passes(kernel, "fwd b2 sq100 sk100 h3 d64"));
  EXPECT_TRUE(tilewise::harness::passes(kernel, "fwd b1 sq61 sk129 h2 d32 causal"));
}
// [end check]

TEST(TheirKernel, IsRejectedWhenItLooksOneKeyTooFar) {
  const auto verdict =
      tilewise::harness::check(their_implementation(2), "fwd b1 sq100 sk100 h2 d64 causal");
  EXPECT_EQ(verdict.state, tilewise::harness::State::fail);
  EXPECT_FALSE(verdict.reasons.empty());
  EXPECT_FALSE(verdict.outputs.empty());
}

TEST(TheirKernel, ALineThatDoesNotParseIsAnErrorNotAPass) {
  EXPECT_FALSE(tilewise::harness::passes(their_implementation(), "fwd b1 sq100 sk100 d64 casual"));
}

TEST(TheirKernel, IsRejectedWhenItStoresNothing) {
  const auto lazy = tilewise::harness::make_implementation(
      "their.lazy", [](const Call&) -> tilewise::Status { return {}; });
  EXPECT_FALSE(tilewise::harness::passes(lazy, "fwd b1 sq16 sk16 h1 d32"));
}

TEST(TheirKernel, HasItsMemoryMeasured) {
  tilewise::harness::Options options;
  options.measure_memory = true;
  const auto verdict =
      tilewise::harness::check(their_implementation(), "fwd b1 sq16 sk4096 h1 d32", options);
  EXPECT_TRUE(verdict.passed()) << to_text(verdict);
  if (!verdict.memory.measured) GTEST_SKIP() << verdict.memory.why;
  EXPECT_GE(verdict.memory.heap_peak, 4096 * sizeof(float)) << "one row of scores";
  EXPECT_LE(verdict.memory.heap_peak, 2 * 4096 * sizeof(float));
}

}  // namespace
