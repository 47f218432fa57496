// The C interface with the shipped CUDA kernels behind it, on the emulated machine: an app's calls,
// from its context to tilewise_validate. What the interface checks and hands over, whatever the
// kernels: capi_device_test.cpp. What the kernels compute: kernels_test.cpp, through the same
// calls.
#include "core/dtype.hpp"
#include "cuda/api/backend.hpp"
#include "cuda/emulator/emulator.hpp"
#include "include/tilewise/attention.hpp"
#include "include/tilewise/cuda.h"
#include "tests/capi_support.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace tilewise::tests {
namespace {

tilewise_context_options emulated(int device_id = 0) {
  tilewise_context_options options = options_with(TILEWISE_THREADING_SERIAL, 0);
  options.device_type = TILEWISE_CUDA;
  options.device_id = device_id;
  options.backend = reinterpret_cast<const tilewise_backend*>(&cuda::emulated::backend());
  return options;
}

/// A tensor in the device's memory, and the same numbers on the host.
struct OnDevice {
  OnDevice(tilewise_context* owner, std::int32_t dtype, const Shape& shape)
      : context(owner), host(dtype, shape) {
    device = tilewise_on_cuda(host.tensor, 0);
    device.data = tilewise_allocate(context, host.bytes);
    upload();
  }
  ~OnDevice() { tilewise_free(context, device.data); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  void upload() { std::memcpy(device.data, host.memory.data(), host.bytes); }
  void fill(unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    for (std::size_t i = 0; i < host.bytes / 2; ++i)
      store(DType::f16, host.as<std::uint16_t>() + i, normal(random));
    upload();
  }
  void set(const std::vector<std::int32_t>& values) {
    std::memcpy(host.memory.data(), values.data(), host.bytes);
    upload();
  }
  /// The largest difference from the host's copy.
  double difference() {
    const DType dtype = static_cast<DType>(host.tensor.dtype - 1);
    const std::size_t size = tests::size_of(host.tensor.dtype);
    double most = 0;
    for (std::size_t at = 0; at < host.bytes; at += size) {
      const double there = load(dtype, static_cast<const char*>(device.data) + at);
      const double here = load(dtype, host.as<char>() + at);
      if (there == here) continue;
      if (!(std::fabs(there - here) <= most)) most = std::fabs(there - here);
    }
    return most;
  }

  tilewise_context* context;
  Buffer host;
  tilewise_tensor device;
};

/// f16, two sequences of 40 queries, 4 heads, and of 70 keys, 2 heads; head_dim 64.
struct Problem {
  explicit Problem(tilewise_context* context)
      : q(context, TILEWISE_F16, {2, 40, 4, 64}),
        k(context, TILEWISE_F16, {2, 70, 2, 64}),
        v(context, TILEWISE_F16, {2, 70, 2, 64}),
        o(context, TILEWISE_F16, {2, 40, 4, 64}),
        lse(context, TILEWISE_F32, {2, 4, 40}) {
    q.fill(1);
    k.fill(2);
    v.fill(3);
  }
  tilewise_attention call(tilewise_tensor OnDevice::*where) {
    tilewise_attention a;
    EXPECT_EQ(tilewise_attention_init(&a, nullptr), TILEWISE_OK);
    a.causal = 1;
    a.q = q.*where;
    a.k = k.*where;
    a.v = v.*where;
    a.o = o.*where;
    a.lse = lse.*where;
    return a;
  }
  tilewise_attention there() { return call(&OnDevice::device); }
  tilewise_attention here() {
    tilewise_attention a = there();
    a.q = q.host.tensor;
    a.k = k.host.tensor;
    a.v = v.host.tensor;
    a.o = o.host.tensor;
    a.lse = lse.host.tensor;
    return a;
  }
  OnDevice q, k, v, o, lse;
};

/// One pass with a workspace from the context; then whether the device found anything amiss.
tilewise_status run_there(const Context& context, const tilewise_attention& attention,
                          std::int32_t pass, tilewise_error& error) {
  std::size_t bytes = 0;
  if (tilewise_attention_workspace(context.get(), &attention, pass, &bytes, nullptr, &error) !=
      TILEWISE_OK)
    return error.code;
  void* const workspace = bytes == 0 ? nullptr : tilewise_allocate(context.get(), bytes);
  if (bytes != 0) std::memset(workspace, 0xab, bytes);
  const auto call =
      pass == TILEWISE_BACKWARD ? tilewise_attention_backward : tilewise_attention_forward;
  if (call(context.get(), &attention, workspace, bytes, nullptr, &error) == TILEWISE_OK)
    (void)tilewise_validate(context.get(), workspace, nullptr, &error);
  tilewise_free(context.get(), workspace);
  return error.code;
}

tilewise_answer answer_of(const Context& context, const tilewise_attention& attention,
                          std::int32_t pass) {
  tilewise_answer answer = TILEWISE_ANSWER_INIT;
  EXPECT_EQ(tilewise_query(context.get(), &attention, pass, &answer, nullptr), TILEWISE_OK);
  return answer;
}

TEST(Cuda, ForwardIsTheCpus) {
  emulator::Session session;
  const Context cuda = context_with(emulated());
  Problem problem(cuda.get());
  const tilewise_answer answer = answer_of(cuda, problem.there(), TILEWISE_FORWARD);
  EXPECT_EQ(answer.code, TILEWISE_OK);
  EXPECT_STREQ(answer.implementation, "cuda.sm90");  // device 0 is an H100
  EXPECT_EQ(answer.fast, 1) << answer.reason;
  tilewise_error error = TILEWISE_ERROR_INIT;
  ASSERT_EQ(run_there(cuda, problem.there(), TILEWISE_FORWARD, error), TILEWISE_OK)
      << error.message;
  ASSERT_EQ(run_there(serial(), problem.here(), TILEWISE_FORWARD, error), TILEWISE_OK)
      << error.message;
  EXPECT_LE(problem.o.difference(), 4e-3);
  EXPECT_LE(problem.lse.difference(), 1e-3);
  EXPECT_TRUE(session.report().clean()) << session.report().text();
}

TEST(Cuda, BackwardIsTheCpus) {
  emulator::Session session;
  const Context cuda = context_with(emulated());
  Problem problem(cuda.get());
  tilewise_error error = TILEWISE_ERROR_INIT;
  ASSERT_EQ(run_there(cuda, problem.there(), TILEWISE_FORWARD, error), TILEWISE_OK);
  ASSERT_EQ(run_there(serial(), problem.here(), TILEWISE_FORWARD, error), TILEWISE_OK);
  OnDevice dout(cuda.get(), TILEWISE_F16, {2, 40, 4, 64}),
      dq(cuda.get(), TILEWISE_F16, {2, 40, 4, 64}), dk(cuda.get(), TILEWISE_F16, {2, 70, 2, 64}),
      dv(cuda.get(), TILEWISE_F16, {2, 70, 2, 64});
  dout.fill(4);
  tilewise_attention there = problem.there(), here = problem.here();
  there.dout = dout.device, there.dq = dq.device, there.dk = dk.device, there.dv = dv.device;
  here.dout = dout.host.tensor, here.dq = dq.host.tensor;
  here.dk = dk.host.tensor, here.dv = dv.host.tensor;
  const tilewise_answer answer = answer_of(cuda, there, TILEWISE_BACKWARD);
  ASSERT_EQ(answer.code, TILEWISE_OK) << answer.reason;
  ASSERT_EQ(run_there(cuda, there, TILEWISE_BACKWARD, error), TILEWISE_OK) << error.message;
  ASSERT_EQ(run_there(serial(), here, TILEWISE_BACKWARD, error), TILEWISE_OK) << error.message;
  for (OnDevice* const gradient : {&dq, &dk, &dv}) EXPECT_LE(gradient->difference(), 2e-2);
  EXPECT_TRUE(session.report().clean()) << session.report().text();
}

TEST(Cuda, TheWrappersAreTheSameCalls) {
  emulator::Session session;
  tilewise::Context context(emulated());
  ASSERT_TRUE(context) << context.result().message();
  Problem problem(context.get());
  const tilewise::Result done =
      tilewise::flash_attn_func(context, problem.q.device, problem.k.device, problem.v.device,
                                problem.o.device, problem.lse.device, {.causal = true});
  EXPECT_TRUE(done) << done.message();
  tilewise_error error = TILEWISE_ERROR_INIT;
  ASSERT_EQ(run_there(serial(), problem.here(), TILEWISE_FORWARD, error), TILEWISE_OK);
  EXPECT_LE(problem.o.difference(), 4e-3);
}

// Lengths are the device's: a wrong one is clamped there, and tilewise_validate tells of it.
TEST(Cuda, LengthsAreJudgedOnTheDevice) {
  emulator::Session session;
  const Context cuda = context_with(emulated());
  Problem problem(cuda.get());
  OnDevice lengths(cuda.get(), TILEWISE_I32, {2});
  tilewise_attention there = problem.there(), here = problem.here();
  there.seqlens_k = lengths.device;
  here.seqlens_k = lengths.host.tensor;
  const tilewise_answer answer = answer_of(cuda, there, TILEWISE_FORWARD);
  ASSERT_EQ(answer.code, TILEWISE_OK) << answer.reason;

  tilewise_error error = TILEWISE_ERROR_INIT;
  lengths.set({70, 33});
  EXPECT_EQ(run_there(cuda, there, TILEWISE_FORWARD, error), TILEWISE_OK) << error.message;
  EXPECT_EQ(run_there(serial(), here, TILEWISE_FORWARD, error), TILEWISE_OK) << error.message;
  EXPECT_LE(problem.o.difference(), 4e-3);
  for (const std::vector<std::int32_t>& wrong :
       {std::vector<std::int32_t>{71, 33}, {70, -1}, {70, 1 << 30}}) {
    lengths.set(wrong);
    EXPECT_EQ(run_there(cuda, there, TILEWISE_FORWARD, error), bad_argument);
    EXPECT_NE(std::string(error.message).find("length"), std::string::npos) << error.message;
    EXPECT_EQ(run_there(serial(), here, TILEWISE_FORWARD, error), bad_argument);
  }
  lengths.set({0, 70});
  EXPECT_EQ(run_there(cuda, there, TILEWISE_FORWARD, error), TILEWISE_OK) << error.message;
  EXPECT_TRUE(session.report().clean()) << session.report().text();
}

// Attention over the first 30 keys and over the other 40, joined, is attention over all.
TEST(Cuda, MergeJoinsOnTheDevice) {
  emulator::Session session;
  const Context cuda = context_with(emulated());
  Problem problem(cuda.get());
  tilewise_error error = TILEWISE_ERROR_INIT;
  tilewise_attention whole = problem.here();
  whole.causal = 0;
  ASSERT_EQ(run_there(serial(), whole, TILEWISE_FORWARD, error), TILEWISE_OK);

  const Shape o_shape{2, 40, 4, 64}, lse_shape{2, 4, 40};
  OnDevice first_o(cuda.get(), TILEWISE_F32, o_shape),
      first_lse(cuda.get(), TILEWISE_F32, lse_shape);
  OnDevice other_o(cuda.get(), TILEWISE_F16, o_shape),
      other_lse(cuda.get(), TILEWISE_F32, lse_shape);
  const tilewise_tensor o_parts[] = {first_o.device, other_o.device};
  const tilewise_tensor lse_parts[] = {first_lse.device, other_lse.device};
  for (const int part : {0, 1}) {
    tilewise_attention a = problem.there();
    a.causal = 0;
    for (tilewise_tensor* const keys : {&a.k, &a.v}) {
      keys->shape[1] = part == 0 ? 30 : 40;
      keys->data = static_cast<std::uint16_t*>(keys->data) + (part == 0 ? 0 : 30 * 2 * 64);
    }
    a.o = o_parts[part];
    a.lse = lse_parts[part];
    ASSERT_EQ(run_there(cuda, a, TILEWISE_FORWARD, error), TILEWISE_OK) << error.message;
  }
  const auto merge = [&] {
    return tilewise_merge_states(cuda.get(), 2, o_parts, lse_parts, &problem.o.device,
                                 &problem.lse.device, TILEWISE_LSE_BASE_E,
                                 TILEWISE_EMPTY_LSE_MINUS_INF, nullptr, &error);
  };
  ASSERT_EQ(merge(), TILEWISE_OK) << error.message;
  EXPECT_LE(problem.o.difference(), 4e-3);
  EXPECT_LE(problem.lse.difference(), 1e-3);
  EXPECT_TRUE(session.report().clean()) << session.report().text();
  problem.o.device.device_id = 1;
  EXPECT_EQ(merge(), unsupported);
  EXPECT_STREQ(error.message, "o is on CUDA device 1; this context computes on CUDA device 0");
}

TEST(Cuda, RefusesByName) {
  const Context cuda = context_with(emulated());
  Problem problem(cuda.get());
  tilewise_error error = TILEWISE_ERROR_INIT;
  tilewise_attention a = problem.there();
  a.k = problem.k.host.tensor;
  EXPECT_EQ(run_there(cuda, a, TILEWISE_FORWARD, error), unsupported);
  EXPECT_STREQ(error.message, "k is on the CPU; this context computes on CUDA device 0");
  a = problem.there();
  a.o.device_id = 1;
  EXPECT_EQ(run_there(cuda, a, TILEWISE_FORWARD, error), unsupported);
  EXPECT_STREQ(error.message, "o is on CUDA device 1; this context computes on CUDA device 0");
  EXPECT_EQ(run_there(serial(), problem.there(), TILEWISE_FORWARD, error), unsupported);
  EXPECT_STREQ(error.message, "q is on CUDA device 0; this context computes on the CPU");
  a = problem.there();
  a.q.dtype = a.k.dtype = a.v.dtype = a.o.dtype = TILEWISE_I64;
  EXPECT_EQ(run_there(cuda, a, TILEWISE_FORWARD, error), bad_argument);
}

TEST(Cuda, DevicesAreTheMachines) {
  tilewise_error error = TILEWISE_ERROR_INIT;
  tilewise_context* context = nullptr;
  tilewise_context_options options = emulated(3);
  EXPECT_EQ(tilewise_context_create(&options, &context, &error), unsupported);
  EXPECT_STREQ(error.message,
               "CUDA device 3, T4, has compute capability 7.5; these kernels want 8.0");
  options.device_id = 4;
  EXPECT_EQ(tilewise_context_create(&options, &context, &error), unsupported);
  EXPECT_STREQ(error.message, "there is no CUDA device 4; the emulated machine has 4");

  struct Row {
    int device_id, device_type, compute_capability;
  };
  for (const Row& row : {Row{0, TILEWISE_CUDA, 90}, Row{1, TILEWISE_CUDA, 80},
                         Row{2, TILEWISE_CUDA, 86}, Row{3, TILEWISE_CPU, 0}}) {
    options = emulated(row.device_id);
    options.device_type = TILEWISE_BEST_DEVICE;
    tilewise_device_choice choice = TILEWISE_DEVICE_CHOICE_INIT;
    ASSERT_EQ(tilewise_context_device(context_with(options).get(), &choice, nullptr), TILEWISE_OK);
    EXPECT_EQ(choice.device_type, row.device_type);
    EXPECT_EQ(choice.compute_capability, row.compute_capability);
    EXPECT_STRNE(choice.reason, "");
  }
}

}  // namespace
}  // namespace tilewise::tests
