// Debug information is read by elfutils' libdwfl; how inlined functions lie in it: DWARF 5, 3.3.8.
#include "cuda/emulator/lines.hpp"

#include <fmt/format.h>

#include <cstdlib>
#include <mutex>
#include <unordered_map>

#if defined(TILEWISE_HAVE_DW)
#include <dwarf.h>
#include <elfutils/libdw.h>
#include <elfutils/libdwfl.h>
#include <unistd.h>
#endif

namespace tilewise::emulator {
namespace {

std::string without_folders(const std::string& path) {
  return path.substr(path.rfind('/') + 1);
}

#if defined(TILEWISE_HAVE_DW)

/// The modules of this process, reported anew when an address is in none of them.
class Modules {
 public:
  Modules() : dwfl_(dwfl_begin(&callbacks)) { report(); }
  ~Modules() { dwfl_end(dwfl_); }
  Modules(const Modules&) = delete;
  Modules& operator=(const Modules&) = delete;

  Line line(Dwarf_Addr address) {
    Dwfl_Module* module = dwfl_addrmodule(dwfl_, address);
    if (module == nullptr) {
      report();
      module = dwfl_addrmodule(dwfl_, address);
    }
    Line result;
    result.file = fmt::format("{:#x}", address);
    if (module == nullptr) return result;
    if (Dwfl_Line* const line = dwfl_module_getsrc(module, address)) {
      int number = 0;
      if (const char* const file =
              dwfl_lineinfo(line, nullptr, &number, nullptr, nullptr, nullptr)) {
        result.file = without_folders(file);
        result.line = number;
      }
    }
    result.inlined_at = outermost_call(module, address);
    if (result.inlined_at == result.file + ":" + std::to_string(result.line))
      result.inlined_at.clear();
    return result;
  }

 private:
  void report() {
    dwfl_report_begin_add(dwfl_);
    dwfl_linux_proc_report(dwfl_, getpid());
    dwfl_report_end(dwfl_, nullptr, nullptr);
  }

  /// Where the function that is not inlined calls what the address is in.
  static std::string outermost_call(Dwfl_Module* module, Dwarf_Addr address) {
    Dwarf_Addr bias = 0;
    Dwarf_Die* const unit = dwfl_module_addrdie(module, address, &bias);
    if (unit == nullptr) return {};
    Dwarf_Die* scopes = nullptr;
    const int count = dwarf_getscopes(unit, address - bias, &scopes);
    std::string call;
    for (int n = 0; n < count; ++n) {
      if (dwarf_tag(&scopes[n]) == DW_TAG_subprogram) break;
      if (dwarf_tag(&scopes[n]) != DW_TAG_inlined_subroutine) continue;
      Dwarf_Attribute attribute;
      Dwarf_Word line = 0, file = 0;
      Dwarf_Files* files = nullptr;
      if (dwarf_formudata(dwarf_attr(&scopes[n], DW_AT_call_line, &attribute), &line) != 0 ||
          dwarf_formudata(dwarf_attr(&scopes[n], DW_AT_call_file, &attribute), &file) != 0 ||
          dwarf_getsrcfiles(unit, &files, nullptr) != 0)
        continue;
      if (const char* const name = dwarf_filesrc(files, file, nullptr, nullptr))
        call = fmt::format("{}:{}", without_folders(name), line);
    }
    std::free(scopes);
    return call;
  }

  static char* debug_path;
  static const Dwfl_Callbacks callbacks;
  Dwfl* dwfl_;
};
char* Modules::debug_path = nullptr;
const Dwfl_Callbacks Modules::callbacks = {dwfl_linux_proc_find_elf, dwfl_standard_find_debuginfo,
                                           nullptr, &Modules::debug_path};

#else

class Modules {
 public:
  static Line line(std::uint64_t address) { return {fmt::format("{:#x}", address), 0, {}}; }
};

#endif

}  // namespace

Line line_of(Where where) {
  if (!where.known()) return {};
  static std::mutex mutex;
  static std::unordered_map<std::uint64_t, Line> known;
  const std::lock_guard<std::mutex> guard(mutex);
  const auto found = known.find(where.bits());
  if (found != known.end()) return found->second;
  Line line;
  if (where.has_site()) {
    line.file = without_folders(where.site().file);
    line.line = where.site().line;
  } else {
    static Modules modules;
    // A return address is behind the call; one byte before is in it.
    line = modules.line(reinterpret_cast<std::uintptr_t>(where.instruction()) - 1);
  }
  return known.emplace(where.bits(), line).first->second;
}

bool same_line(Where a, Where b) {
  if (a == b) return true;
  const Line left = line_of(a), right = line_of(b);
  return left.line > 0 && left == right;
}

}  // namespace tilewise::emulator
