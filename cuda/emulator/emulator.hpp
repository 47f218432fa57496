// The emulator's side towards the host: which device, how strict, where reports go, and memory that
// kernels may touch. What kernels include is cuda/emulator/cuda.hpp.
#pragma once

#include "../../core/status.hpp"
#include "report.hpp"

#include <cstddef>
#include <cstdint>
#include <string>

namespace tilewise::emulator {

/// What a launch must fit into. CUDA C++ Programming Guide, "Compute Capabilities", technical
/// specifications per compute capability.
struct Device {
  const char* name = "H100";
  int compute_capability = 90;
  std::size_t shared_bytes_a_block = 227 * 1024;  ///< with the kernel's own consent
  std::size_t shared_bytes_without_consent = 48 * 1024;
  int multiprocessors = 132;

  static Device h100() { return {}; }
  static Device a100() { return {"A100", 80, 163 * 1024, 48 * 1024, 108}; }
  static Device rtx3090() { return {"RTX 3090", 86, 99 * 1024, 48 * 1024, 82}; }
  static Device t4() { return {"T4", 75, 64 * 1024, 48 * 1024, 40}; }
};

/// When the bytes of an asynchronous copy arrive: all of it is allowed.
enum class Arrival : std::uint8_t { early, late, seeded };

struct Options {
  Device device;
  std::uint64_t seed = 1;  ///< of the order in which warps run, and of arrivals
  Arrival arrival = Arrival::seeded;
  int threads = 0;  ///< of the host, blocks side by side; 0: all of them
  bool trace = false;
  int most_findings = 20;  ///< of different lines; a launch ends at as many
  /// Rounds in which all threads that can go on only look at memory, in loops, and nobody changes
  /// any; after as many it is a deadlock.
  int patience = 10'000;
};

/// While it lives, kernels launched by this thread of the host run by these options, and what there
/// is to say of them is gathered here. Without one they run by the default options, and a finding
/// is the launch's failure only.
class Session {
 public:
  explicit Session(const Options& options = {});
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  Report& report() { return report_; }
  const Options& options() const { return options_; }

  static Session* current();

 private:
  Options options_;
  Report report_;
  Session* outer_;
};

/// Global memory that kernels may touch until it is forgotten. A kernel's access outside of all of
/// them is out of bounds. Ranges do not overlap.
/// `element`: bytes of its elements (1, 2, 4 or 8; 16 counts as 8), the grain in which accesses are
/// told apart. `written`: a kernel may read it before one has written it.
void register_memory(const void* memory, std::size_t bytes, const std::string& name,
                     std::size_t element, bool written);
void forget_memory(const void* memory);
/// The host has written it: whatever is there may be read.
void memory_is_written(const void* memory, std::size_t bytes);

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
  std::int64_t count() const { return static_cast<std::int64_t>(x) * y * z; }
};

/// One grid. `kernel` is what each thread runs, with `parameters`. False if the device refuses it
/// or something was found: the report has gained a finding, and memory may be half written.
struct Launch {
  const char* name = "";
  Dim3 grid, block;
  std::size_t shared_bytes = 0;      ///< of dynamic shared memory
  std::size_t shared_consented = 0;  ///< to how much the kernel's attribute was set
  void (*kernel)(const void* parameters) = nullptr;
  const void* parameters = nullptr;
  std::size_t parameter_bytes = 0;
};
bool run(const Launch& launch, const Options& options, Report& report);

/// The same by the current session's options and into its report (without a session: the default
/// options, and nowhere). A finding is a failure, with the first one's text.
Status launch(const Launch& launch);

}  // namespace tilewise::emulator
