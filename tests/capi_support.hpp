// What the tests of the C interface share: tensors with memory, problems that have everything, and
// a table of ways to spoil them.
#pragma once

#include "include/tilewise/tilewise.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace tilewise::tests {

using Shape = std::vector<std::int64_t>;

inline constexpr double infinity = std::numeric_limits<double>::infinity();
inline constexpr double nan = std::numeric_limits<double>::quiet_NaN();

inline std::size_t size_of(std::int32_t dtype) {
  switch (dtype) {
    case TILEWISE_F64:
    case TILEWISE_I64: return 8;
    case TILEWISE_F32:
    case TILEWISE_I32: return 4;
    case TILEWISE_F16:
    case TILEWISE_BF16: return 2;
    case TILEWISE_Q8_0: return 34;
    default: return 1;
  }
}

/// Memory with a tensor in it; outputs begin as a pattern.
struct Buffer {
  static constexpr unsigned char pattern = 0xab;

  std::vector<std::uint64_t> memory;  // 64-bit words: aligned for every dtype
  std::size_t bytes = 0;
  tilewise_tensor tensor{};

  Buffer(std::int32_t dtype, const Shape& shape) {
    std::size_t elements = 1;
    for (const std::int64_t size : shape) elements *= static_cast<std::size_t>(size);
    bytes = elements * size_of(dtype);
    memory.assign(bytes / 8 + 2, 0);
    tensor = tilewise_contiguous(memory.data(), dtype, static_cast<std::int32_t>(shape.size()),
                                 shape.data());
    clear();
  }
  void clear() { std::memset(memory.data(), pattern, memory.size() * 8); }
  bool untouched() const {
    const auto* byte = reinterpret_cast<const unsigned char*>(memory.data());
    for (std::size_t i = 0; i < memory.size() * 8; ++i)
      if (byte[i] != pattern) return false;
    return true;
  }
  template <class Element>
  Element* as() {
    return reinterpret_cast<Element*>(memory.data());
  }
  std::string contents() const { return {reinterpret_cast<const char*>(memory.data()), bytes}; }
};

struct ContextEnd {
  void operator()(tilewise_context* context) const { tilewise_context_destroy(context); }
};
using Context = std::unique_ptr<tilewise_context, ContextEnd>;

inline tilewise_context_options options_with(std::int32_t threading, std::int32_t threads) {
  tilewise_context_options options;
  tilewise_context_options_init(&options);
  options.threading = threading;
  options.threads = threads;
  return options;
}

inline Context context_with(const tilewise_context_options& options) {
  tilewise_context* context = nullptr;
  tilewise_error error = TILEWISE_ERROR_INIT;
  EXPECT_EQ(tilewise_context_create(&options, &context, &error), TILEWISE_OK) << error.message;
  return Context(context);
}

inline Context serial() {
  return context_with(options_with(TILEWISE_THREADING_SERIAL, 0));
}

/// A workspace that a call may use, from `bytes` on untouched.
struct Workspace {
  explicit Workspace(std::size_t size) : bytes(size), memory(size + 128) {
    const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
    data = memory.data() + (64 - address % 64) % 64;
  }
  std::size_t bytes;
  std::vector<unsigned char> memory;
  unsigned char* data;
};

/// A problem with memory for everything that a call may be given. Its buffers are broken one at a
/// time by the tests.
struct World {
  std::deque<Buffer> inputs, outputs;
  tilewise_attention attention{};

  World() = default;
  World(World&&) = default;  // a copy would have tensors in the original's memory

  tilewise_tensor input(std::int32_t dtype, const Shape& shape) {
    inputs.emplace_back(dtype, shape);
    Buffer& buffer = inputs.back();
    std::mt19937 random(static_cast<unsigned>(inputs.size()));
    std::normal_distribution<float> normal;
    std::memset(buffer.memory.data(), 0, buffer.memory.size() * 8);
    for (std::size_t i = 0; dtype == TILEWISE_F32 && i < buffer.bytes / 4; ++i)
      buffer.as<float>()[i] = normal(random);
    for (std::size_t i = 0; dtype == TILEWISE_BOOL && i < buffer.bytes; ++i)
      buffer.as<unsigned char>()[i] = random() % 4 != 0;
    const bool whole = dtype == TILEWISE_I8 || dtype == TILEWISE_Q8_0;
    for (std::size_t i = 0; whole && i < buffer.bytes; ++i)
      buffer.as<unsigned char>()[i] = static_cast<unsigned char>(random() % 256);
    for (std::size_t i = 0; dtype == TILEWISE_Q8_0 && i < buffer.bytes; i += 34) {
      buffer.as<unsigned char>()[i] = 0;  // the scale, little-endian: 2^-6
      buffer.as<unsigned char>()[i + 1] = 0x24;
    }
    return buffer.tensor;
  }
  tilewise_tensor indices(const Shape& shape, const std::vector<std::int32_t>& values) {
    const tilewise_tensor tensor = input(TILEWISE_I32, shape);
    std::memcpy(tensor.data, values.data(), values.size() * sizeof values[0]);
    return tensor;
  }
  tilewise_tensor output(std::int32_t dtype, const Shape& shape) {
    outputs.emplace_back(dtype, shape);
    return outputs.back().tensor;
  }
  void clear_outputs() {
    for (Buffer& buffer : outputs) buffer.clear();
  }
  bool outputs_untouched() const {
    for (const Buffer& buffer : outputs)
      if (!buffer.untouched()) return false;
    return true;
  }
  std::string output_bytes() const { return bytes_of(outputs); }
  std::string input_bytes() const { return bytes_of(inputs); }

 private:
  static std::string bytes_of(const std::deque<Buffer>& buffers) {
    std::string all;
    for (const Buffer& buffer : buffers) all += buffer.contents();
    return all;
  }
};

/// batch 2, 3 queries of 4 heads, 5 keys of 2 heads, head_dim 8 and 4, with everything.
inline World dense() {
  World world;
  tilewise_attention& a = world.attention;
  EXPECT_EQ(tilewise_attention_init(&a, nullptr), TILEWISE_OK);
  a.q = world.input(TILEWISE_F32, {2, 3, 4, 8});
  a.k = world.input(TILEWISE_F32, {2, 5, 2, 8});
  a.v = world.input(TILEWISE_F32, {2, 5, 2, 4});
  a.dout = world.input(TILEWISE_F32, {2, 3, 4, 4});
  a.bias = world.input(TILEWISE_F32, {1, 4, 3, 5});
  a.mask = world.input(TILEWISE_BOOL, {2, 1, 3, 5});
  a.sinks = world.input(TILEWISE_F32, {4});
  a.alibi_slopes = world.input(TILEWISE_F32, {4});
  a.seqlens_q = world.indices({2}, {3, 2});
  a.seqlens_k = world.indices({2}, {4, 5});
  a.block_q = a.block_k = 2;
  a.kv_num_blocks = world.indices({1, 1, 2}, {2, 1});
  a.kv_indices = world.indices({1, 1, 2, 3}, {0, 1, -7, 2, -7, -7});
  a.full_kv_num_blocks = world.indices({1, 1, 2}, {1, 1});
  a.full_kv_indices = world.indices({1, 1, 2, 3}, {2, -7, -7, 0, -7, -7});
  a.o = world.output(TILEWISE_F32, {2, 3, 4, 4});
  a.lse = world.output(TILEWISE_F32, {2, 4, 3});
  a.dq = world.output(TILEWISE_F32, {2, 3, 4, 8});
  a.dk = world.output(TILEWISE_F32, {2, 5, 2, 8});
  a.dv = world.output(TILEWISE_F32, {2, 5, 2, 4});
  a.dbias = world.output(TILEWISE_F32, {1, 4, 3, 5});
  a.dsinks = world.output(TILEWISE_F32, {4});
  return world;
}

/// The same heads, packed: sequences of 2 and 1 queries, of 3 and 2 keys.
inline World packed() {
  World world;
  tilewise_attention& a = world.attention;
  EXPECT_EQ(tilewise_attention_init(&a, nullptr), TILEWISE_OK);
  a.q = world.input(TILEWISE_F32, {3, 4, 8});
  a.k = world.input(TILEWISE_F32, {5, 2, 8});
  a.v = world.input(TILEWISE_F32, {5, 2, 4});
  a.dout = world.input(TILEWISE_F32, {3, 4, 4});
  a.cu_seqlens_q = world.indices({3}, {0, 2, 3});
  a.cu_seqlens_k = world.indices({3}, {0, 3, 5});
  a.max_seqlen_q = 2;
  a.max_seqlen_k = 3;
  a.o = world.output(TILEWISE_F32, {3, 4, 4});
  a.lse = world.output(TILEWISE_F32, {4, 3});
  a.dq = world.output(TILEWISE_F32, {3, 4, 8});
  a.dk = world.output(TILEWISE_F32, {5, 2, 8});
  a.dv = world.output(TILEWISE_F32, {5, 2, 4});
  return world;
}

inline std::size_t workspace_bytes(const Context& context, const tilewise_attention& attention,
                                   std::int32_t pass) {
  std::size_t bytes = 0;
  tilewise_error error = TILEWISE_ERROR_INIT;
  EXPECT_EQ(tilewise_attention_workspace(context.get(), &attention, pass, &bytes, nullptr, &error),
            TILEWISE_OK)
      << error.message;
  return bytes;
}

inline tilewise_status compute(const Context& context, const tilewise_attention& attention,
                               std::int32_t pass, const Workspace& workspace,
                               tilewise_error& error) {
  const auto call =
      pass == TILEWISE_BACKWARD ? tilewise_attention_backward : tilewise_attention_forward;
  return call(context.get(), &attention, workspace.data, workspace.bytes, nullptr, &error);
}

/// Forward, then backward.
inline void run_both(const Context& context, const tilewise_attention& attention) {
  for (const std::int32_t pass : {TILEWISE_FORWARD, TILEWISE_BACKWARD}) {
    const Workspace workspace(workspace_bytes(context, attention, pass));
    tilewise_error error = TILEWISE_ERROR_INIT;
    ASSERT_EQ(compute(context, attention, pass, workspace, error), TILEWISE_OK) << error.message;
  }
}

// ------------------------------------------------------------------------------- bad arguments

struct BadInput {
  const char* name;
  std::function<void(World&)> spoil;
  tilewise_status code;
  const char* says;
  std::int32_t pass = TILEWISE_BACKWARD;
};

inline void expect_refused(World world, const BadInput& bad) {
  SCOPED_TRACE(bad.name);
  const Context context = serial();
  const Workspace workspace(1 << 20);
  bad.spoil(world);
  const std::string inputs = world.input_bytes();
  tilewise_error error = TILEWISE_ERROR_INIT;
  EXPECT_EQ(compute(context, world.attention, bad.pass, workspace, error), bad.code)
      << error.message;
  EXPECT_EQ(error.code, bad.code);
  EXPECT_NE(std::string(error.message).find(bad.says), std::string::npos)
      << "\"" << error.message << "\" does not say \"" << bad.says << "\"";
  EXPECT_TRUE(world.outputs_untouched());
  EXPECT_EQ(world.input_bytes(), inputs);  // caches are among them
}

/// The same of every row, each on a problem made anew.
inline void expect_all_refused(World (*make)(), const std::vector<BadInput>& table) {
  for (const BadInput& bad : table) expect_refused(make(), bad);
}

inline constexpr auto bad_argument = static_cast<tilewise_status>(TILEWISE_BAD_ARGUMENT);
inline constexpr auto unsupported = static_cast<tilewise_status>(TILEWISE_UNSUPPORTED);

inline void set_index(const tilewise_tensor& tensor, int at, std::int32_t value) {
  static_cast<std::int32_t*>(tensor.data)[at] = value;
}

}  // namespace tilewise::tests
