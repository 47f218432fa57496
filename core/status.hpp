// What a call answers: a code and, unless it is `ok`, one sentence a person can act on.
#pragma once

#include <cstdarg>
#include <cstdio>

namespace tilewise {

enum class Code {
  ok = 0,
  bad_argument,  ///< the caller's mistake: shapes, pointers, values out of range
  unsupported,   ///< a correct request that this implementation does not serve
  no_memory,     ///< an allocation or the given workspace did not suffice
  io,            ///< a file could not be read or written
  failed,        ///< the computation itself went wrong
};

/// A code and a reason. Carries its text inside: no allocation, copyable, safe to return anywhere.
struct [[nodiscard]] Status {
  Code code = Code::ok;
  char reason[248] = {};

  constexpr bool ok() const { return code == Code::ok; }
};

/// Builds a failure; `format` is printf's. Text beyond the fixed length is cut, never overrun.
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
inline Status
failure(Code code, const char* format, ...) {
  Status status{code, {}};
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(status.reason, sizeof status.reason, format, arguments);
  va_end(arguments);
  return status;
}

constexpr const char* name_of(Code code) {
  switch (code) {
    case Code::ok: return "ok";
    case Code::bad_argument: return "bad argument";
    case Code::unsupported: return "unsupported";
    case Code::no_memory: return "no memory";
    case Code::io: return "input/output";
    case Code::failed: return "failed";
  }
  return "unknown";
}

}  // namespace tilewise
