// New keys and values, written into the cache before any is read from it.
#pragma once

#include "cpu/call.hpp"

namespace tilewise::cpu::portable {

/// Uses no more of the workspace than forward() does.
template <class Real>
void append(const Call& call, const Workers& workers, void* workspace);

}  // namespace tilewise::cpu::portable
