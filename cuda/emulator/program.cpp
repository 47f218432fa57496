// Symbols: System V ABI, "Symbol Table"; of thread-local ones the value is an offset in the
// module's segment (Drepper, "ELF Handling For Thread-Local Storage", 2).
#include "cuda/emulator/program.hpp"

#include <cxxabi.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace tilewise::emulator {
namespace {

/// of_segment(info, segment) for each segment of each module.
template <class Function>
void for_segments(const Function& of_segment) {
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* function) {
        for (int n = 0; n < info->dlpi_phnum; ++n)
          (*static_cast<const Function*>(function))(*info, info->dlpi_phdr[n]);
        return 0;
      },
      const_cast<Function*>(&of_segment));
}

/// A whole file, to be read.
class File {
 public:
  explicit File(const char* path) {
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return;
    struct stat status {};
    if (fstat(file, &status) == 0 && status.st_size > 0) {
      bytes_ = static_cast<std::size_t>(status.st_size);
      memory_ = mmap(nullptr, bytes_, PROT_READ, MAP_PRIVATE, file, 0);
    }
    close(file);
  }
  ~File() {
    if (memory_ != MAP_FAILED) munmap(memory_, bytes_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  /// `count` of T at the offset; null if the file ends before.
  template <class T>
  const T* at(std::size_t offset, std::size_t count) const {
    if (memory_ == MAP_FAILED || offset > bytes_ || count > (bytes_ - offset) / sizeof(T))
      return nullptr;
    return reinterpret_cast<const T*>(static_cast<const char*>(memory_) + offset);
  }

 private:
  void* memory_ = MAP_FAILED;
  std::size_t bytes_ = 0;
};

std::string without_scopes(const char* mangled) {
  int status = 0;
  char* const readable = abi::__cxa_demangle(mangled, nullptr, nullptr, &status);
  std::string name = readable != nullptr ? readable : mangled;
  std::free(readable);
  const std::size_t scope = name.rfind("::");
  return scope == std::string::npos ? name : name.substr(scope + 2);
}

StaticVariables read_variables(const char* path) {
  StaticVariables variables;
  const File file(path);
  const auto* const header = file.at<ElfW(Ehdr)>(0, 1);
  if (header == nullptr || std::memcmp(header->e_ident, ELFMAG, SELFMAG) != 0) return {};
  const auto* const sections = file.at<ElfW(Shdr)>(header->e_shoff, header->e_shnum);
  for (std::size_t n = 0; sections != nullptr && n < header->e_shnum; ++n) {
    const auto& section = sections[n];
    if (section.sh_type != SHT_SYMTAB || section.sh_link >= header->e_shnum) continue;
    const auto& names = sections[section.sh_link];
    const std::size_t count = section.sh_size / sizeof(ElfW(Sym));
    const auto* const symbols = file.at<ElfW(Sym)>(section.sh_offset, count);
    const auto* const text = file.at<char>(names.sh_offset, names.sh_size);
    if (symbols == nullptr || text == nullptr) return {};
    for (std::size_t i = 0; i < count; ++i)
      if ((symbols[i].st_info & 0xf) == STT_TLS && symbols[i].st_shndx != SHN_UNDEF &&
          symbols[i].st_name < names.sh_size)
        variables.push_back({symbols[i].st_value, symbols[i].st_value + symbols[i].st_size,
                             without_scopes(text + symbols[i].st_name)});
  }
  std::sort(variables.begin(), variables.end(),
            [](const StaticVariable& a, const StaticVariable& b) { return a.begin < b.begin; });
  return variables;
}

const StaticVariables* variables_of(const std::string& path) {
  static std::mutex mutex;
  static std::map<std::string, StaticVariables> known;
  const std::lock_guard<std::mutex> guard(mutex);
  const auto [entry, is_new] = known.try_emplace(path);
  if (is_new) entry->second = read_variables(path.c_str());
  return entry->second.empty() ? nullptr : &entry->second;
}

}  // namespace

Part segment_around(std::uintptr_t address) {
  Part found;
  for_segments([&](const dl_phdr_info& info, const ElfW(Phdr) & segment) {
    const std::uintptr_t begin = info.dlpi_addr + segment.p_vaddr;
    if (segment.p_type == PT_LOAD && address >= begin && address < begin + segment.p_memsz)
      found = {begin, begin + segment.p_memsz};
  });
  return found;
}

Statics statics_around(std::uintptr_t address) {
  Statics found;
  std::string path;
  for_segments([&](const dl_phdr_info& info, const ElfW(Phdr) & segment) {
    const auto begin = reinterpret_cast<std::uintptr_t>(info.dlpi_tls_data);
    if (segment.p_type != PT_TLS || begin == 0 || address < begin ||
        address >= begin + segment.p_memsz)
      return;
    found = {begin, begin + segment.p_memsz, nullptr};
    // The program itself has no name here.
    path = info.dlpi_name[0] != '\0' ? info.dlpi_name : "/proc/self/exe";
  });
  if (found.end != 0) found.variables = variables_of(path);
  return found;
}

}  // namespace tilewise::emulator
