// Where the description comes from: /proc and /sys where they exist, uname, the compiler's macros.
#include "tools/machine.hpp"

#include "tools/ceiling.hpp"
#include "tools/common.hpp"

#include <fmt/core.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <ctime>
#include <fstream>

namespace tilewise::tools {

namespace {
std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name") && line.find(": ") != std::string::npos)
      return line.substr(line.find(": ") + 2);
  utsname names{};
  return uname(&names) == 0 ? names.machine : "unknown";
}

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

/// As Linux describes core 0's caches; instruction caches left out.
std::string cache_sizes() {
  std::string text;
  for (int index = 0; index < 8; ++index) {
    const std::string folder = fmt::format("/sys/devices/system/cpu/cpu0/cache/index{}/", index);
    const std::string level = first_line(folder + "level"), type = first_line(folder + "type");
    const std::string size = first_line(folder + "size");
    if (level.empty() || size.empty() || type == "Instruction") continue;
    const double kib = std::strtod(size.c_str(), nullptr);
    text += fmt::format("{}L{}{} {}", text.empty() ? "" : ", ", level, type == "Data" ? "d" : "",
                        bytes_text(kib * 1024));
  }
  return text;
}

std::string compiler_name() {
#if defined(__clang__)
  return fmt::format("clang {}.{}.{}", __clang_major__, __clang_minor__, __clang_patchlevel__);
#elif defined(__GNUC__)
  return fmt::format("g++ {}.{}.{}", __GNUC__, __GNUC_MINOR__, __GNUC_PATCHLEVEL__);
#else
  return "unknown";
#endif
}

std::string system_name() {
  utsname names{};
  return uname(&names) == 0 ? fmt::format("{} {}, {}", names.sysname, names.release, names.machine)
                            : "unknown";
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  return std::strftime(text, sizeof text, "%Y-%m-%d %H:%M UTC", &parts) > 0 ? text : "";
}
}  // namespace

Machine describe_machine() {
  Machine machine;
  machine.cpu = processor_name();
  machine.cores = thread_count(0);
  machine.memory_bytes =
      static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGE_SIZE));
  machine.caches = cache_sizes();
  machine.system = system_name();
  machine.compiler = compiler_name();
  machine.build_type = std::string(TILEWISE_BUILD_TYPE);
  machine.fma = fma_name();
  machine.peak_gflops_one = measure_peak_gflops(1, 0.05);
  machine.peak_gflops = measure_peak_gflops(0, 0.05);
  machine.bandwidth_gbytes = measure_bandwidth_gbytes();
  machine.date = today();
  return machine;
}

}  // namespace tilewise::tools
