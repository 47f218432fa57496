// Memory for all tensors of a problem, each between guard bands.
#pragma once

#include "../../core/status.hpp"
#include "../problem.hpp"
#include "implementation.hpp"
#include "protect.hpp"

#include <deque>
#include <string>
#include <utility>
#include <vector>

namespace tilewise::harness {

class ProblemBuffers {
 public:
  /// Allocates the inputs, and those outputs that `outputs` names, poisoned.
  Status allocate(const Problem& problem, const Outputs& outputs);

  const AttentionTensors& tensors() const { return tensors_; }

  /// Takes the contents of the tensors that a call updates for those that it starts from.
  void remember_updated();
  /// Writes the NaN pattern over every output again, and puts updated tensors back.
  void poison_outputs();
  /// Makes the inputs read-only.
  void protect_inputs();
  void unprotect_inputs();

  /// A sentence on the first guard band that was written over, or empty.
  std::string broken_guard() const;

  /// A sentence on a cache that was written to where nothing was to be appended, or empty.
  std::string changed_cache(const Problem& problem) const;

  /// Copies of the bytes of what is written, to compare runs bit by bit.
  struct Snapshot {
    std::string name;
    std::vector<std::byte> bytes;
  };
  std::vector<Snapshot> snapshot() const;

  /// The buffer that holds `address`, as "k", for messages; empty if none does.
  std::string name_of(const void* address) const;

  /// What a call does with a tensor: reads it, writes it, or writes to a part (a cache).
  enum class Use : std::uint8_t { input, output, updated };
  struct Named {
    std::string name;
    Use use = Use::input;
    GuardedBuffer buffer;
    std::vector<std::byte> original;  ///< of an updated tensor
  };
  const std::deque<Named>& all() const { return buffers_; }

 private:
  Status add(TensorView& view, const char* name, Use use);

  std::deque<Named> buffers_;
  AttentionTensors tensors_{};
};

/// The shape and strides of each tensor of a problem, with no memory behind them (data is null; the
/// views that the problem does not have keep ndim 0).
AttentionTensors tensor_shapes(const Problem& problem, const Outputs& outputs);

}  // namespace tilewise::harness
