// Structs that open with their size: read from callers with older and newer headers, and statuses
// handed back to them.
#pragma once

#include "core/status.hpp"
#include "include/tilewise/tilewise.h"

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace tilewise::cpu {

/// No struct of ours will ever be this large: a larger struct_size was never set.
inline constexpr std::uint32_t largest_struct = 1u << 16;

/// Copies as much of `given` as both sides know onto `full`, which holds the defaults. Refuses what
/// is smaller than `smallest`, and what says something beyond the fields that are known here.
template <class Struct>
Status read_sized(const char* name, const Struct* given, std::size_t smallest, Struct& full) {
  if (given == nullptr) return failure(Code::bad_argument, "%s is null", name);
  const std::uint32_t size = given->struct_size;
  if (size < smallest || size > largest_struct)
    return failure(Code::bad_argument,
                   "%s has struct_size %u, expected %zu, or at least %zu from an older header: its "
                   "_init function sets it",
                   name, size, sizeof(Struct), smallest);
  const auto* const bytes = reinterpret_cast<const unsigned char*>(given);
  for (std::size_t i = sizeof(Struct); i < size; ++i)
    if (bytes[i] != 0)
      return failure(Code::unsupported,
                     "%s sets a field at byte %zu, which this library (ABI version %d, %zu bytes) "
                     "does not know",
                     name, i, TILEWISE_ABI_VERSION, sizeof(Struct));
  std::memcpy(&full, given, size < sizeof(Struct) ? size : sizeof(Struct));
  full.struct_size = sizeof(Struct);
  return {};
}

/// Writes as much of `full` as the caller's struct has room for. The rest of it becomes zero.
template <class Struct>
void write_sized(Struct* to, std::uint32_t size, Struct full) {
  full.struct_size = size;
  std::memset(to, 0, size);
  std::memcpy(to, &full, size < sizeof(Struct) ? size : sizeof(Struct));
}

/// Of a struct that is to be filled in, and was not begun by `initialiser`: why not.
Status check_room(const char* name, std::uint32_t size, std::size_t expected,
                  const char* initialiser);

/// Leaves a status with the caller.
tilewise_status report(tilewise_error* error, const Status& status);

}  // namespace tilewise::cpu
