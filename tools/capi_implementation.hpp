// The library's C interface as an implementation: what an app calls is what is judged.
#pragma once

#include "include/tilewise/tilewise.h"
#include "oracle/harness/implementation.hpp"

#include <memory>

namespace tilewise::tools {

/// A problem's parameters and tensors as the C struct of one call. The tensors may have no memory
/// behind them: their shapes are enough for tilewise_query and tilewise_attention_workspace.
tilewise_attention c_attention(const AttentionParams& params, const AttentionTensors& tensors);

/// The same with what else a problem says: num_splits, and how long packed sequences are at most.
tilewise_attention c_attention(const Problem& problem, const AttentionTensors& tensors);

/// cpu.portable, called through tilewise_attention_forward and _backward.
std::unique_ptr<harness::Implementation> portable_implementation();

/// That, and the tile kernels of each instruction set of this architecture, slowest first; whether
/// the processor has it, supports() says.
harness::Table library_implementations();

}  // namespace tilewise::tools
