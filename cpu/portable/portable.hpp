// cpu.portable: attention in plain C++, for any architecture. `Real` is what it computes in: double
// where the inputs are f64, else float.
#pragma once

#include "cpu/call.hpp"

#include <cstddef>

namespace tilewise::cpu::portable {

template <class Real>
std::size_t forward_workspace(const Call& call, int max_workers);
template <class Real>
void forward(const Call& call, const Workers& workers, void* workspace);

template <class Real>
std::size_t backward_workspace(const Call& call, int max_workers);
template <class Real>
void backward(const Call& call, const Workers& workers, void* workspace);

}  // namespace tilewise::cpu::portable
