// Tensors in files, by the names that for_each_tensor() gives them, and the way between files and
// views.
//
// In files tensors lie as the problem's layout says: in bhsd, heads come before rows wherever a
// tensor has both. No format here has 8-bit whole numbers: those of an i8 tensor are i32, and so
// are the bytes of q8_0's blocks, 34 in one more dimension.
#pragma once

#include "core/attention.hpp"
#include "oracle/formats/formats.hpp"
#include "oracle/problem.hpp"

#include <deque>
#include <filesystem>
#include <string>
#include <vector>

namespace tilewise::tools {

// ---- tensors_copy.cpp

/// Copies every input that `to` has, element by element, whatever the strides; floating-point
/// formats are converted to f32 and wider ones. Throws BadInput where `from` has none, or one of
/// another shape or dtype.
void copy_inputs(const AttentionTensors& from, const AttentionTensors& to);

/// The tensors that exist, as arrays of files: what a call reads, or what it writes. A cache that
/// it appends to is in both.
formats::Arrays to_arrays(const Problem& problem, const AttentionTensors& tensors, bool inputs);

// ---- tensors_files.cpp

/// Tensors that somebody brought in files, and the problem that they are.
struct Given {
  Problem problem;
  AttentionTensors tensors;          ///< a cache with the rows that the call appended
  std::string changed_cache;         ///< a sentence on what else the call changed there, or empty
  std::deque<formats::Array> owned;  ///< the views' memory
};

/// Reads inputs from `in` and, where it is not empty, outputs from `outputs`. Shapes, dtypes and
/// lengths say everything but the numbers of core's AttentionParams, the size of blocks and which
/// pairs rotary embedding turns: those come from `line` (empty: from in/problem.txt, or their
/// defaults). `layout` is how 4-D tensors lie (empty: as the line says). Throws BadInput where
/// files and line contradict each other.
Given read_given(const std::string& in, const std::string& outputs, std::string line,
                 const std::string& layout);

}  // namespace tilewise::tools
