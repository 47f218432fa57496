// The C interface on a context whose device is not the CPU: what is checked, what is handed to the
// backend, and that device memory is never looked at. The backend is a fake that takes notes; the
// tensors' addresses are no memory at all. With kernels behind it: capi_cuda_test.cpp.
#include "core/device_backend.hpp"
#include "include/tilewise/attention.hpp"
#include "include/tilewise/cuda.h"
#include "tests/capi_support.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

namespace tilewise::tests {
namespace {

/// What the fake was asked for last. (Function pointers have nowhere else to leave it.)
struct Notes {
  int opened = 0, computed = 0, merged = 0, validated = 0, allocated = 0, released = 0;
  DeviceCall call;
  DeviceMerge merge;
  DeviceLimits limits;
  TensorView part;
  const void* workspace = nullptr;
  void* stream = nullptr;
};
Notes notes;

constexpr std::size_t wanted = 4096;
alignas(256) char device_memory[256];

DeviceBackend fake() {
  notes = {};
  DeviceBackend backend;
  backend.name = "CUDA";
  backend.open = [](int id, DeviceLimits& limits) {
    ++notes.opened;
    if (id > 1) return failure(Code::unsupported, "there is no CUDA device %d", id);
    limits = {86, 80, 82, 99 * 1024};
    return Status{};
  };
  backend.choose = [](const DeviceCall& call, const DeviceLimits&) {
    DeviceChoice choice;
    if (call.params.softcap > 0) {
      choice.status = failure(Code::unsupported, "softcap: the fake does not compute it");
      return choice;
    }
    choice.implementation = "cuda.fake";
    choice.fast = call.params.causal;
    if (!choice.fast) choice.slow = failure(Code::unsupported, "not causal");
    return choice;
  };
  backend.workspace = [](const DeviceCall& call, const DeviceLimits&) {
    return call.params.softcap > 0 ? std::size_t{0} : wanted;
  };
  backend.compute = [](const DeviceCall& call, const DeviceLimits& limits, void* workspace,
                       void* stream) {
    ++notes.computed;
    notes.call = call;
    notes.limits = limits;
    notes.workspace = workspace;
    notes.stream = stream;
    return call.params.softcap > 0 ? failure(Code::unsupported, "softcap: no") : Status{};
  };
  backend.validate = [](int id, const void* workspace, void* stream) {
    ++notes.validated;
    notes.workspace = workspace;
    notes.stream = stream;
    return id == 1 ? status_of(DeviceError::page) : Status{};
  };
  backend.allocate = [](int, std::size_t) {
    ++notes.allocated;
    return static_cast<void*>(device_memory);
  };
  backend.release = [](int, void*) { ++notes.released; };
  return backend;
}

tilewise_context_options on_cuda(const DeviceBackend& backend, int device_id = 0) {
  tilewise_context_options options;
  tilewise_context_options_init(&options);
  options.device_type = TILEWISE_CUDA;
  options.device_id = device_id;
  options.backend = reinterpret_cast<const tilewise_backend*>(&backend);
  return options;
}

tilewise_device_choice device_of(const Context& context) {
  tilewise_device_choice choice = TILEWISE_DEVICE_CHOICE_INIT;
  EXPECT_EQ(tilewise_context_device(context.get(), &choice, nullptr), TILEWISE_OK);
  return choice;
}

bool says(const char* text, const char* part) {
  return std::string(text).find(part) != std::string::npos;
}

/// Addresses at which there is nothing: whoever looks there ends the test.
void* nowhere(int place) {
  return reinterpret_cast<void*>(std::uintptr_t{0x10000000} +
                                 static_cast<std::uintptr_t>(place) * 0x1000000);
}

/// Every tensor of such a problem where there is nothing.
tilewise_attention elsewhere(tilewise_attention a, int device_id = 0) {
  int place = 1;
  for (tilewise_tensor* const view : {&a.q,
                                      &a.k,
                                      &a.v,
                                      &a.o,
                                      &a.lse,
                                      &a.dout,
                                      &a.dq,
                                      &a.dk,
                                      &a.dv,
                                      &a.dbias,
                                      &a.dsinks,
                                      &a.bias,
                                      &a.mask,
                                      &a.sinks,
                                      &a.alibi_slopes,
                                      &a.cu_seqlens_q,
                                      &a.cu_seqlens_k,
                                      &a.seqlens_q,
                                      &a.seqlens_k,
                                      &a.kv_num_blocks,
                                      &a.kv_indices,
                                      &a.full_kv_num_blocks,
                                      &a.full_kv_indices})
    if (view->ndim != 0) {
      *view = tilewise_on_cuda(*view, device_id);
      view->data = nowhere(place++);
    }
  return a;
}

const Workspace& somewhere() {
  static const Workspace workspace(2 * wanted);
  return workspace;
}

tilewise_status run(const Context& context, const tilewise_attention& attention, std::int32_t pass,
                    tilewise_error& error, void* stream = nullptr) {
  const auto call =
      pass == TILEWISE_BACKWARD ? tilewise_attention_backward : tilewise_attention_forward;
  return call(context.get(), &attention, somewhere().data, wanted, stream, &error);
}

TEST(DeviceContext, SaysWhereItComputesAndWhy) {
  const DeviceBackend backend = fake();
  tilewise_device_choice choice = device_of(context_with(on_cuda(backend, 1)));
  EXPECT_EQ(choice.device_type, TILEWISE_CUDA);
  EXPECT_EQ(choice.device_id, 1);
  EXPECT_EQ(choice.compute_capability, 86);
  EXPECT_STREQ(choice.reason,
               "CUDA device 1 has compute capability 8.6, and the options ask for it");

  tilewise_context_options options = on_cuda(backend);
  options.device_type = TILEWISE_BEST_DEVICE;
  EXPECT_EQ(device_of(context_with(options)).device_type, TILEWISE_CUDA);

  options.device_id = 2;
  choice = device_of(context_with(options));
  EXPECT_EQ(choice.device_type, TILEWISE_CPU);
  EXPECT_EQ(choice.device_id, 0);
  EXPECT_EQ(choice.compute_capability, 0);
  EXPECT_STREQ(choice.reason, "there is no CUDA device 2");

  options.backend = nullptr;
  choice = device_of(context_with(options));
  EXPECT_EQ(choice.device_type, TILEWISE_CPU);
  EXPECT_TRUE(says(choice.reason, "options.backend is null")) << choice.reason;
  run_both(context_with(options), dense().attention);

  choice = device_of(serial());
  EXPECT_EQ(choice.device_type, TILEWISE_CPU);
  EXPECT_STREQ(choice.reason, "the options ask for the CPU");

  EXPECT_EQ(tilewise_context_device(nullptr, &choice, nullptr), bad_argument);
  EXPECT_EQ(tilewise_context_device(serial().get(), nullptr, nullptr), bad_argument);
  choice.struct_size = 8;
  EXPECT_EQ(tilewise_context_device(serial().get(), &choice, nullptr), bad_argument);
}

TEST(DeviceContext, IsRefusedWithAReason) {
  DeviceBackend backend = fake();
  tilewise_error error = TILEWISE_ERROR_INIT;
  tilewise_context* context = nullptr;
  tilewise_context_options options = on_cuda(backend, 7);
  EXPECT_EQ(tilewise_context_create(&options, &context, &error), unsupported);
  EXPECT_STREQ(error.message, "there is no CUDA device 7");
  options.device_id = -1;
  EXPECT_EQ(tilewise_context_create(&options, &context, &error), bad_argument);
  options = on_cuda(backend);
  options.backend = nullptr;
  EXPECT_EQ(tilewise_context_create(&options, &context, &error), unsupported);
  EXPECT_TRUE(says(error.message, "link tilewise::cuda")) << error.message;
  ++backend.layout;
  for (const std::int32_t type : {2, 0}) {  // CUDA, and the best device
    options = on_cuda(backend);
    options.device_type = type;
    EXPECT_EQ(tilewise_context_create(&options, &context, &error), unsupported);
    EXPECT_TRUE(says(error.message, "another version of Tilewise")) << error.message;
  }
  EXPECT_EQ(context, nullptr);
  EXPECT_EQ(notes.opened, 1);
}

// Options of a header that had no backend.
TEST(DeviceContext, OlderOptionsAreTheCpus) {
  const DeviceBackend backend = fake();
  tilewise_context_options options = on_cuda(backend);
  options.struct_size = offsetof(tilewise_context_options, backend);
  tilewise_error error = TILEWISE_ERROR_INIT;
  tilewise_context* context = nullptr;
  EXPECT_EQ(tilewise_context_create(&options, &context, &error), unsupported);
  EXPECT_TRUE(says(error.message, "options.backend is null")) << error.message;
  options.device_type = TILEWISE_CPU;
  EXPECT_EQ(device_of(context_with(options)).device_type, TILEWISE_CPU);
  EXPECT_EQ(notes.opened, 0);
}

TEST(DeviceCalls, AreHandedOverWithAllThatTheySay) {
  const DeviceBackend backend = fake();
  const Context context = context_with(on_cuda(backend, 1));
  World world = packed();
  tilewise_attention a = elsewhere(world.attention, 1);
  a.causal = a.deterministic = 1;
  a.num_splits = 3;
  a.dropout_p = 0.5;
  a.philox_seed_pointer = static_cast<const std::uint64_t*>(nowhere(100));
  a.philox_offset_pointer = static_cast<const std::uint64_t*>(nowhere(101));
  tilewise_error error = TILEWISE_ERROR_INIT;
  for (const std::int32_t pass : {TILEWISE_FORWARD, TILEWISE_BACKWARD}) {
    std::size_t bytes = 0, fast = 0;
    ASSERT_EQ(tilewise_attention_workspace(context.get(), &a, pass, &bytes, &fast, &error),
              TILEWISE_OK)
        << error.message;
    EXPECT_EQ(bytes, wanted);
    EXPECT_EQ(fast, wanted);
    ASSERT_EQ(run(context, a, pass, error, nowhere(102)), TILEWISE_OK) << error.message;
    EXPECT_EQ(notes.call.backward, pass == TILEWISE_BACKWARD);
    EXPECT_EQ(notes.call.tensors.dq.exists(), pass == TILEWISE_BACKWARD);
  }
  EXPECT_EQ(notes.computed, 2);
  EXPECT_EQ(notes.stream, nowhere(102));
  EXPECT_EQ(notes.workspace, somewhere().data);
  EXPECT_EQ(notes.limits.multiprocessors, 82);
  const DeviceCall& call = notes.call;
  EXPECT_TRUE(call.params.causal);
  EXPECT_TRUE(call.deterministic);
  EXPECT_EQ(call.num_splits, 3);
  EXPECT_EQ(call.max_seqlen_q, 2);
  EXPECT_EQ(call.max_seqlen_k, 3);
  EXPECT_EQ(call.philox_seed, nowhere(100));
  EXPECT_EQ(call.philox_offset, nowhere(101));
  EXPECT_DOUBLE_EQ(call.params.softmax_scale, 1 / std::sqrt(8.0));
  EXPECT_EQ(call.tensors.q.data, a.q.data);
  EXPECT_EQ(call.tensors.cu_seqlens_k.data, a.cu_seqlens_k.data);
  EXPECT_EQ(call.tensors.q.device.type, DeviceType::cuda);
  EXPECT_EQ(call.tensors.q.device.id, 1);
}

TEST(DeviceCalls, KnowTheLongestSequenceThatThereCanBe) {
  const DeviceBackend backend = fake();
  const Context context = context_with(on_cuda(backend));
  tilewise_error error = TILEWISE_ERROR_INIT;
  World world = dense();
  tilewise_attention a = elsewhere(world.attention);
  ASSERT_EQ(run(context, a, TILEWISE_FORWARD, error), TILEWISE_OK) << error.message;
  EXPECT_EQ(notes.call.max_seqlen_q, 3);
  EXPECT_EQ(notes.call.max_seqlen_k, 5);
  EXPECT_EQ(notes.call.num_splits, 0);

  // Five rows to a page, three pages to a sequence; which, only the device knows.
  a.bias = a.mask = a.kv_num_blocks = a.kv_indices = a.full_kv_num_blocks = a.full_kv_indices = {};
  a.block_q = a.block_k = 0;
  const std::int64_t pages[] = {2, 3};
  a.block_table = tilewise_on_cuda(tilewise_contiguous(nowhere(50), TILEWISE_I32, 2, pages), 0);
  ASSERT_EQ(run(context, a, TILEWISE_FORWARD, error), TILEWISE_OK) << error.message;
  EXPECT_EQ(notes.call.max_seqlen_k, 15);
  a.max_seqlen_k = 9;
  ASSERT_EQ(run(context, a, TILEWISE_FORWARD, error), TILEWISE_OK) << error.message;
  EXPECT_EQ(notes.call.max_seqlen_k, 9);
}

TEST(DeviceCalls, AreCheckedAsFarAsTheHostSees) {
  const DeviceBackend backend = fake();
  const Context context = context_with(on_cuda(backend));
  const World world = dense();
  const struct {
    void (*spoil)(tilewise_attention& a);
    tilewise_status code;
    const char* says;
  } table[] = {
      {[](auto& a) { a.k.device_type = TILEWISE_CPU; }, unsupported,
       "k is on the CPU; this context computes on CUDA device 0"},
      {[](auto& a) { a.seqlens_k.device_type = TILEWISE_CPU; }, unsupported,
       "seqlens_k is on the CPU"},
      {[](auto& a) { a.dv.device_id = 1; }, unsupported,
       "dv is on CUDA device 1; this context computes on CUDA device 0"},
      {[](auto& a) { a.q.device_type = 9; }, bad_argument, "q has device type 9; expected 2"},
      {[](auto& a) { a.v.data = nullptr; }, bad_argument, "v has elements and its data is null"},
      {[](auto& a) { a.o.data = static_cast<char*>(a.o.data) + 2; }, bad_argument,
       "o is misaligned"},
      {[](auto& a) { a.dk.data = a.dv.data; }, bad_argument, "dk shares memory with dv"},
      {[](auto& a) { a.dq.data = a.q.data; }, bad_argument, "dq shares memory with q"},
      {[](auto& a) { a.q.shape[2] = 3; }, bad_argument, "3 query heads do not divide"},
      {[](auto& a) { a.lse_base = 7; }, bad_argument, "lse_base is 7"},
      {[](auto& a) { a.kv_indices = {}; }, bad_argument, "kv_num_blocks is given without"},
      {[](auto& a) { a.dq.data = somewhere().data; }, bad_argument, "dq lies in the workspace"},
      {[](auto& a) { a.softcap = 1; }, unsupported, "softcap: no"},
  };
  for (const auto& row : table) {
    notes.computed = 0;
    tilewise_attention a = elsewhere(world.attention);
    row.spoil(a);
    tilewise_error error = TILEWISE_ERROR_INIT;
    EXPECT_EQ(run(context, a, TILEWISE_BACKWARD, error), row.code);
    EXPECT_TRUE(says(error.message, row.says)) << error.message;
    EXPECT_EQ(notes.computed, a.softcap > 0 ? 1 : 0) << row.says;
  }
}

TEST(DeviceCalls, WantTheirWorkspace) {
  const DeviceBackend backend = fake();
  const Context context = context_with(on_cuda(backend));
  const World world = dense();
  const tilewise_attention a = elsewhere(world.attention);
  tilewise_error error = TILEWISE_ERROR_INIT;
  EXPECT_EQ(
      tilewise_attention_forward(context.get(), &a, somewhere().data, wanted - 1, nullptr, &error),
      TILEWISE_NO_MEMORY);
  EXPECT_STREQ(error.message, "workspace has 4095 bytes; this call needs 4096");
  EXPECT_EQ(
      tilewise_attention_forward(context.get(), &a, somewhere().data + 32, wanted, nullptr, &error),
      bad_argument);
  EXPECT_EQ(tilewise_attention_forward(context.get(), &a, nullptr, 0, nullptr, &error),
            bad_argument);
  EXPECT_EQ(notes.computed, 0);
}

TEST(DeviceCalls, AreQuestionsToo) {
  const DeviceBackend backend = fake();
  const Context context = context_with(on_cuda(backend));
  const World world = dense();
  tilewise_attention a = elsewhere(world.attention);
  for (tilewise_tensor* view : {&a.q, &a.k, &a.v, &a.o, &a.lse}) view->data = nullptr;
  a.causal = 1;
  tilewise_answer answer = TILEWISE_ANSWER_INIT;
  ASSERT_EQ(tilewise_query(context.get(), &a, TILEWISE_FORWARD, &answer, nullptr), TILEWISE_OK);
  EXPECT_EQ(answer.code, TILEWISE_OK);
  EXPECT_STREQ(answer.implementation, "cuda.fake");
  EXPECT_EQ(answer.fast, 1);
  a.causal = 0;
  ASSERT_EQ(tilewise_query(context.get(), &a, TILEWISE_FORWARD, &answer, nullptr), TILEWISE_OK);
  EXPECT_EQ(answer.fast, 0);
  EXPECT_STREQ(answer.reason, "not causal");
  a.softcap = 1;
  ASSERT_EQ(tilewise_query(context.get(), &a, TILEWISE_FORWARD, &answer, nullptr), TILEWISE_OK);
  EXPECT_EQ(answer.code, TILEWISE_UNSUPPORTED);
  EXPECT_STREQ(answer.implementation, "");
  EXPECT_STREQ(answer.reason, "softcap: the fake does not compute it");
  tilewise_error error = TILEWISE_ERROR_INIT;
  std::size_t bytes = 7;
  EXPECT_EQ(
      tilewise_attention_workspace(context.get(), &a, TILEWISE_FORWARD, &bytes, nullptr, &error),
      unsupported);
  EXPECT_EQ(bytes, 0u);
  a.q.device_type = TILEWISE_CPU;
  ASSERT_EQ(tilewise_query(context.get(), &a, TILEWISE_FORWARD, &answer, nullptr), TILEWISE_OK);
  EXPECT_TRUE(says(answer.reason, "q is on the CPU")) << answer.reason;
}

TEST(DeviceCalls, ValidateAsksTheDevice) {
  const DeviceBackend backend = fake();
  tilewise_error error = TILEWISE_ERROR_INIT;
  const Context first = context_with(on_cuda(backend));
  EXPECT_EQ(tilewise_validate(first.get(), nullptr, nowhere(7), &error), TILEWISE_OK);
  EXPECT_EQ(notes.stream, nowhere(7));
  EXPECT_EQ(notes.workspace, nullptr);
  const Context second = context_with(on_cuda(backend, 1));
  EXPECT_EQ(tilewise_validate(second.get(), nowhere(8), nullptr, &error), bad_argument);
  EXPECT_TRUE(says(error.message, "block_table")) << error.message;
  EXPECT_EQ(notes.workspace, nowhere(8));
  const void* const odd = static_cast<char*>(nowhere(8)) + 4;
  EXPECT_EQ(tilewise_validate(first.get(), odd, nullptr, &error), bad_argument);
  EXPECT_EQ(notes.validated, 2);
}

TEST(DeviceCalls, MergeIsTheBackendsToo) {
  DeviceBackend backend = fake();
  const Shape o_shape{1, 3, 2, 8}, lse_shape{1, 2, 3};
  const auto make = [](int place, std::int32_t dtype, const Shape& shape) {
    return tilewise_on_cuda(
        tilewise_contiguous(nowhere(place), dtype, static_cast<std::int32_t>(shape.size()),
                            shape.data()),
        0);
  };
  const tilewise_tensor o_parts[] = {make(1, TILEWISE_F16, o_shape),
                                     make(2, TILEWISE_F32, o_shape)};
  tilewise_tensor lse_parts[] = {make(3, TILEWISE_F32, lse_shape),
                                 make(4, TILEWISE_F32, lse_shape)};
  const tilewise_tensor o = make(5, TILEWISE_F16, o_shape), lse = make(6, TILEWISE_F32, lse_shape);
  tilewise_error error = TILEWISE_ERROR_INIT;
  const auto merge = [&] {
    const Context context = context_with(on_cuda(backend));
    return tilewise_merge_states(context.get(), 2, o_parts, lse_parts, &o, &lse,
                                 TILEWISE_LSE_BASE_2, TILEWISE_EMPTY_LSE_PLUS_INF, nowhere(9),
                                 &error);
  };
  EXPECT_EQ(merge(), unsupported);
  EXPECT_TRUE(says(error.message, "tilewise_merge_states")) << error.message;
  backend.merge = [](const DeviceMerge& given, const DeviceLimits&, void* stream) {
    ++notes.merged;
    notes.merge = given;
    notes.part = given.o_part(given, 1);
    notes.stream = stream;
    return Status{};
  };
  ASSERT_EQ(merge(), TILEWISE_OK) << error.message;
  EXPECT_EQ(notes.merged, 1);
  EXPECT_EQ(notes.merge.n, 2);
  EXPECT_EQ(notes.merge.lse_base, LseBase::two);
  EXPECT_EQ(notes.merge.empty_row_lse, EmptyRowLse::plus_inf);
  EXPECT_EQ(notes.merge.lse_part(notes.merge, 0).data, lse_parts[0].data);
  EXPECT_EQ(notes.part.data, o_parts[1].data);
  EXPECT_EQ(notes.part.dtype, DType::f32);
  EXPECT_EQ(notes.part.strides[0], 48);
  EXPECT_EQ(notes.stream, nowhere(9));
  lse_parts[1].device_type = TILEWISE_CPU;
  EXPECT_EQ(merge(), unsupported);
  EXPECT_TRUE(says(error.message, "lse_parts[1] is on the CPU")) << error.message;
}

TEST(DeviceMemory, IsTheBackends) {
  const DeviceBackend backend = fake();
  const Context context = context_with(on_cuda(backend));
  void* const memory = tilewise_allocate(context.get(), 10);
  EXPECT_EQ(memory, device_memory);
  tilewise_free(context.get(), memory);
  tilewise_free(context.get(), nullptr);
  EXPECT_EQ(notes.allocated, 1);
  EXPECT_EQ(notes.released, 1);
}

// attention.hpp takes its workspace from the context, which is then the device's memory.
TEST(DeviceWrappers, RunOnADevice) {
  const DeviceBackend backend = fake();
  tilewise::Context context(on_cuda(backend));
  ASSERT_TRUE(context) << context.result().message();
  const auto view = [](int place, std::initializer_list<std::int64_t> shape) {
    return tilewise_on_cuda(tilewise::tensor(nowhere(place), TILEWISE_F16, shape), 0);
  };
  const tilewise::Tensor q = view(1, {1, 2, 8, 64}), k = view(2, {1, 100, 2, 64}),
                         v = view(3, {1, 100, 2, 64}), o = view(4, {1, 2, 8, 64});
  const tilewise::Result done = tilewise::flash_attn_func(context, q, k, v, o, {}, {});
  EXPECT_TRUE(done) << done.message();
  EXPECT_EQ(notes.workspace, device_memory);
  EXPECT_EQ(notes.released, 1);
  const tilewise::Description described = tilewise::describe::flash_attn_func(q, k, v, o, {}, {});
  EXPECT_TRUE(tilewise::run(context, described, nowhere(9)));
  EXPECT_EQ(notes.stream, nowhere(9));
  // A number is no memory of the device.
  const tilewise::Result refused =
      tilewise::flash_attn_with_kvcache(context, q, k, v, o, {}, {.cache_seqlens = 50});
  EXPECT_FALSE(refused);
  EXPECT_TRUE(says(refused.message(), "seqlens_k is on the CPU")) << refused.message();
}

}  // namespace
}  // namespace tilewise::tests
