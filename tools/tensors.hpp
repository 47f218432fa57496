// Tensors in files: their names, and the way between files and views.
#pragma once

#include "core/attention.hpp"
#include "oracle/formats/formats.hpp"
#include "oracle/problem.hpp"

#include <deque>
#include <filesystem>
#include <string>
#include <vector>

namespace tilewise::tools {

/// A tensor by the name it has in files.
struct TensorName {
  const char* name;
  TensorView AttentionTensors::*view;
  bool input;
  bool sequence;      ///< has batch, seqlen and nheads dimensions that the layout orders
  const char* shape;  ///< what its dimensions mean, for messages
};

inline constexpr TensorName tensor_names[] = {
    {"q", &AttentionTensors::q, true, true, "batch, seqlen_q, nheads_q, head_dim"},
    {"k", &AttentionTensors::k, true, true, "batch, seqlen_k, nheads_k, head_dim"},
    {"v", &AttentionTensors::v, true, true, "batch, seqlen_k, nheads_k, head_dim_v"},
    {"dout", &AttentionTensors::dout, true, true, "batch, seqlen_q, nheads_q, head_dim_v"},
    {"bias", &AttentionTensors::bias, true, false, "batch, nheads_q, seqlen_q, seqlen_k"},
    {"mask", &AttentionTensors::mask, true, false, "batch, nheads_q, seqlen_q, seqlen_k"},
    {"alibi_slopes", &AttentionTensors::alibi_slopes, true, false, "nheads_q"},
    {"cu_seqlens_q", &AttentionTensors::cu_seqlens_q, true, false, "batch + 1"},
    {"cu_seqlens_k", &AttentionTensors::cu_seqlens_k, true, false, "batch + 1"},
    {"seqlens_q", &AttentionTensors::seqlens_q, true, false, "batch"},
    {"seqlens_k", &AttentionTensors::seqlens_k, true, false, "batch"},
    {"o", &AttentionTensors::o, false, true, "batch, seqlen_q, nheads_q, head_dim_v"},
    {"lse", &AttentionTensors::lse, false, false, "batch, nheads_q, seqlen_q"},
    {"dq", &AttentionTensors::dq, false, true, "batch, seqlen_q, nheads_q, head_dim"},
    {"dk", &AttentionTensors::dk, false, true, "batch, seqlen_k, nheads_k, head_dim"},
    {"dv", &AttentionTensors::dv, false, true, "batch, seqlen_k, nheads_k, head_dim_v"},
};

/// Copies element by element between views of one shape, whatever their strides; floating-point
/// formats are converted.
void copy_elements(const TensorView& from, const TensorView& to);
/// The same for every input that both have.
void copy_inputs(const AttentionTensors& from, const AttentionTensors& to);

/// The tensors that exist, as arrays in the order of the problem's layout: inputs or outputs.
formats::Arrays to_arrays(const Problem& problem, const AttentionTensors& tensors, bool inputs);

/// Tensors that somebody brought in files, and the problem that they are.
struct Given {
  Problem problem;
  AttentionTensors tensors;
  std::deque<formats::Array> owned;  ///< the views' memory
};

/// Reads q, k, v and their like from `in` and, where it is not empty, o, lse, dq, dk, dv from
/// `outputs`. Shapes and dtypes say everything but causal, window, scale, softcap and conventions:
/// those come from `line` (empty: from in/problem.txt, or their defaults). `layout` is how 4-D
/// tensors lie (empty: as the line says). Throws BadInput where files and line contradict each
/// other.
Given read_given(const std::string& in, const std::string& outputs, std::string line,
                 const std::string& layout);

}  // namespace tilewise::tools
