// Where a problem's numbers come from: a counter-based generator, so that a seed and an element's
// place decide its value, whatever the layout and the order in which tensors are filled.
#pragma once

#include "../../core/status.hpp"
#include "../problem.hpp"

#include <string>

namespace tilewise::harness {

/// Writes every input tensor of `tensors` that exists: q, k, v and their like, lengths, and lists.
/// Values are rounded to each tensor's dtype; what is stored is the exact input.
/// `data_directory` is where fill=real finds minilm.safetensors; empty: $TILEWISE_DATA, or else the
/// source tree's tests/data (installed as share/tilewise).
Status fill_inputs(const Problem& problem, const AttentionTensors& tensors,
                   const std::string& data_directory = {});

}  // namespace tilewise::harness
