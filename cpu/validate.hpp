// The caller's struct, checked field by field and turned into a cpu::Call. Every refusal is one
// sentence; nothing has been written by then.
#pragma once

#include "cpu/call.hpp"
#include "include/tilewise/tilewise.h"

#include <cstddef>
#include <cstdint>

namespace tilewise::cpu {

/// What may be looked at: the struct alone, for questions asked before there is memory; also where
/// its pointers point, of tensors on a device; or also the memory that is there.
enum class Depth { shapes, addresses, memory };

/// How far to look, and where all tensors are expected to be.
struct Scope {
  Depth depth;
  Device device{};
};

/// Checks `given`, all of whose fields are set, for one pass. `call` is complete if the answer is
/// ok. Unless it was Depth::memory, its tensors point at memory that must not be read.
Status check_attention(const tilewise_attention& given, std::int32_t pass, const Scope& scope,
                       Call& call);

/// A workspace against what the call needs, and against the call's tensors.
Status check_workspace(const Call& call, const void* workspace, std::size_t bytes,
                       std::size_t needed);

/// One tensor by itself, turned into a view; `name` is for the sentence.
Status check_tensor(const char* name, const tilewise_tensor& given, const Scope& scope,
                    TensorView& view);

/// A tensor that is to be written: no two of its elements may share memory.
Status check_output(const char* name, const TensorView& view);

/// A field that is one of the numbers 0 to count - 1.
Status check_choice(const char* name, std::int32_t value, std::int32_t count);

}  // namespace tilewise::cpu
