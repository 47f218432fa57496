// Tensors out of files while they become a problem's: what the files held, what their shapes say,
// and whether that, the line and the call's outputs fit together.
#pragma once

#include "core/attention.hpp"
#include "oracle/formats/formats.hpp"
#include "oracle/problem.hpp"

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

namespace tilewise::tools {

/// What the files held. Views are as in the files until infer() makes them as calls have them.
struct TensorFiles {
  AttentionTensors tensors;
  AttentionTensors updated;  ///< of the outputs: k and v, the cache after the call
  std::deque<formats::Array> owned;
  std::string outputs;  ///< where outputs were read from, or empty
  // How the tensors lie, which infer() finds.
  bool packed = false;
  bool cached = false;
  bool flat = false;  ///< 2-D tensors: one head of one sequence
  bool bhsd = false;

  TensorView& tensor(std::string_view name);
  const TensorView& tensor(std::string_view name) const;
  bool has(std::string_view name) const { return tensor(name).exists(); }

  /// Takes an array as the tensor of that name, in the type that it has in a call.
  void add(AttentionTensors& to, std::string_view name, formats::Array array,
           const std::string& path);

  /// The tensor as [batch, seqlen, nheads, width], or [total, nheads, width] when packed; scales of
  /// rows without the width.
  TensorView logical(std::string_view name, const TensorView& view) const;
  /// The way back: the shape that such a tensor has in files, for messages.
  std::string shape_in_file(std::string_view name, const TensorView& view) const;
  /// The numbers of a tensor of one dimension.
  std::vector<std::int64_t> integers(const char* name) const;
};

// ---- tensors_infer.cpp

/// What shapes, dtypes and lengths say. 4-D tensors lie as `wanted` says.
Problem infer(TensorFiles& files, Layout wanted);

// ---- tensors_check.cpp

/// Every input that the problem has is there, and no other.
void check_presence(const TensorFiles& files, const Problem& problem);

/// The line's problem, unless it says another thing than the shapes do.
Problem agreed(const TensorFiles& files, Problem said, const Problem& shapes);

/// Shapes and dtypes fit each other, lists name what is there.
void check_fit(const TensorFiles& files, const Problem& problem);

/// Puts the rows that the outputs have appended into k and v. A sentence on what else differs
/// there, or empty.
std::string take_appended(TensorFiles& files, const Problem& problem);

}  // namespace tilewise::tools
