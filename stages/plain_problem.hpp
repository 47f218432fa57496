// What the course's steps take for granted of a problem and its tensors, and the reason where one
// asks for more: the CPU's steps and the CUDA ones alike.
#pragma once

#include "oracle/harness/implementation.hpp"
#include "stages/stage.hpp"

namespace tilewise::stages {

/// What of the problem a step with these features does not do; null when it does all of it. Of the
/// dtype and of head_dim's size nothing is said.
const char* reason_against(const Problem& problem, const Features& can);

/// Whether a view is [batch, seqlen, nheads, width] of this dtype, without gaps. Strides of
/// dimensions of size 1 mean nothing.
bool plain(const TensorView& view, DType dtype, std::int64_t batch, std::int64_t seqlen,
           std::int64_t nheads, std::int64_t width);

/// The same of LSE: float, [batch, nheads_q, seqlen_q].
bool plain_lse(const TensorView& lse, std::int64_t batch, std::int64_t nheads_q,
               std::int64_t seqlen_q);

}  // namespace tilewise::stages
