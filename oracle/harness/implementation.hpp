// Implementation: who computes it. What somebody writes to have a kernel judged.
#pragma once

#include "../../core/status.hpp"
#include "../problem.hpp"

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tilewise::harness {

/// Whether an implementation serves a problem; if not, why.
struct Support {
  bool ok = true;
  std::string reason;

  static Support yes() { return {}; }
  static Support no(std::string why) { return {false, std::move(why)}; }
};

/// A set of outputs.
struct Outputs {
  bool o = false, lse = false, dq = false, dk = false, dv = false;
  bool dbias = false, dsinks = false;

  static constexpr Outputs none() { return {}; }
  static constexpr Outputs all() { return {true, true, true, true, true, true, true}; }
};

/// One call: what to compute, on which tensors, with which scratch memory.
struct Call {
  const Problem& problem;
  AttentionParams params;     ///< problem.params(), worked out once
  AttentionTensors tensors;   ///< inputs are read-only memory; absent tensors do not exist()
  void* workspace = nullptr;  ///< 64-byte aligned, workspace_bytes() long, contents arbitrary
  std::size_t workspace_bytes = 0;
  int threads = 0;  ///< 0: as many as the machine has
  /// Where somebody times: an implementation whose tensors travel to another device and back says
  /// here how many seconds the device itself took.
  double* device_seconds = nullptr;
};

class Implementation {
 public:
  virtual ~Implementation() = default;

  virtual std::string_view name() const = 0;  ///< "stage.2c_simd", "cpu.avx512"
  virtual std::string_view idea() const = 0;  ///< one sentence, shown wherever the name is
  virtual Support supports(const Problem& problem) const = 0;

  /// Scratch memory that `run` wants to be given.
  virtual std::size_t workspace_bytes(const Problem&) const { return 0; }

  /// Which outputs this implementation writes; O always, gradients in a backward problem.
  virtual Outputs writes(const Problem& problem) const {
    const bool backward = problem.pass == Pass::backward;
    return {true,
            true,
            backward,
            backward,
            backward,
            backward && problem.bias,
            backward && problem.sink};
  }

  /// Which outputs have the same bits at every call. The harness holds it to this.
  virtual Outputs repeatable() const { return Outputs::all(); }

  /// Bytes that must cross between fast and slow memory, by this algorithm's own analysis (the
  /// papers' IO formulas); absent where nobody has worked it out.
  virtual std::optional<double> bytes_moved(const Problem&) const { return std::nullopt; }

  /// Whether another device computes it, by whose clock it is timed: this machine's ceilings then
  /// say nothing of it.
  virtual bool on_device() const { return false; }

  virtual Status run(const Call& call) const = 0;
};

/// The ordered table of implementations: explicit, made by one function (tools/table.cpp).
using Table = std::vector<std::unique_ptr<Implementation>>;

}  // namespace tilewise::harness
