// Which line of the source an instruction is.
#pragma once

#include "report.hpp"
#include "site.hpp"

namespace tilewise::emulator {

/// Looked up in the program's debug information, once for each place. Without any, "0x1234" stands
/// for the file.
Line line_of(Where where);

/// An optimiser may copy code: one line can have several instructions.
bool same_line(Where a, Where b);

}  // namespace tilewise::emulator
