// From a step of the course to an Implementation that the harness can judge.
//
// A step knows one plain form: float32, [batch, seqlen, nheads, head_dim], one length for all
// sequences, the conventions of core/conventions.hpp's default. The adapter refuses the rest with
// the reason, and hands the tensors over.
#pragma once

#include "oracle/harness/implementation.hpp"
#include "stages/stage.hpp"

namespace tilewise::stages {

/// Every step, in the course's order.
harness::Table implementations();

/// One step, for a test or a program of one's own.
std::unique_ptr<harness::Implementation> implementation_of(const Step& step);

}  // namespace tilewise::stages
