// The C++ functions of attention.hpp as implementations, so that the judge can run each on every
// problem that its system can say.
#pragma once

#include "oracle/harness/implementation.hpp"

namespace tilewise::tests {

/// One for each function; supports() says no to a problem that its arguments cannot express, or
/// whose conventions are another system's.
harness::Table entry_points();

/// The preset of the system whose function it is: "fa2" for "entry.flash_attn_func".
std::string preset_of(const harness::Implementation& entry_point);

}  // namespace tilewise::tests
