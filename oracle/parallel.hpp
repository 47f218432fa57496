// A loop over independent tasks on the machine's cores. The judge's own; implementations bring
// theirs.
#pragma once

#include <cstdint>
#include <functional>

namespace tilewise::oracle {

/// Runs task(0) ... task(count - 1), each once, on as many threads as the machine has cores, in any
/// order. Returns when all are done. Tasks must not throw.
void parallel_for(std::int64_t count, const std::function<void(std::int64_t)>& task);

}  // namespace tilewise::oracle
