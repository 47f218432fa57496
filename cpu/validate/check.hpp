// A call on its way from the caller's struct to a cpu::Call, and the steps that it goes through. A
// step relies on those before it, in the order that validate.cpp has them.
#pragma once

#include "cpu/validate.hpp"

#include <cstdint>
#include <cstring>

namespace tilewise::cpu {

/// More than any memory holds, and small enough for sums of a few to stay far from overflow.
inline constexpr std::int64_t largest_dimension = std::int64_t{1} << 48;
inline constexpr std::int64_t largest_head_dim = 512;

/// What is given, what has been made of it, and what is known of it by now.
struct Check {
  const tilewise_attention& given;
  bool backward;
  Scope scope;
  Call& call;

  bool packed_q = false, packed_k = false;
  std::int64_t batch = 0, nheads_q = 0, nheads_k = 0, head_dim = 0, head_dim_v = 0;
  std::int64_t capacity = 0;  ///< rows of keys that one sequence has room for
  /// No sequence is longer, as far as that is known; of keys: of those that are attended to.
  std::int64_t longest_q = 0, longest_k = 0;

  /// Sequences may be shorter than the tensors that k and v are.
  bool keys_have_lengths() const { return packed_k || call.tensors.cache.exists(); }
  const char* name_of(const TensorView& view) const;
};

/// core's for_each_tensor as an array: what is done with each is then compiled once, and not once
/// for each of them.
struct NamedTensors {
  struct Named {
    const char* name;
    const TensorView* view;
  };
  static constexpr int most = 40;
  Named all[most];
  int count = 0;

  explicit NamedTensors(const AttentionTensors& tensors);
  const Named* begin() const { return all; }
  const Named* end() const { return all + count; }
};

/// An element of an i32 tensor of indices.
inline std::int64_t index_at(const TensorView& view, std::int64_t offset) {
  std::int32_t value;
  std::memcpy(&value, view.at(offset), sizeof value);
  return value;
}

/// Packed sequences, and those in a cache, have lengths of their own: there a dimension has to
/// reach the longest.
inline bool fits_or_one(std::int64_t size, std::int64_t wanted, bool at_least) {
  return size == 1 || (at_least ? size >= wanted : size == wanted);
}

// fields.cpp: numbers and choices.
Status check_choices(Check& check);
Status check_numbers(Check& check);
Status check_combinations(Check& check);
Status choose_scale(Check& check);
Status bound_positions(Check& check);

// tensors.cpp: each by itself, and who shares memory with whom.
Status take_tensors(Check& check);
Status check_overlaps(Check& check);

// shapes.cpp: how the shapes and dtypes of the large tensors fit together.
Status check_activations(Check& check);
Status check_statistics(Check& check);
Status check_head_vectors(Check& check);
Status check_scales(Check& check);
Status check_broadcasts(Check& check);

// lengths.cpp
Status check_lengths(Check& check);

// cache.cpp
Status check_cache_forms(Check& check);
Status check_cache(Check& check);

// block_mask.cpp
Status check_block_mask(Check& check);

}  // namespace tilewise::cpu
