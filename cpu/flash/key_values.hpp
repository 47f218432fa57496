// Tensors as the tile kernels want them: rows of floats, evenly spaced. In place where they are
// that, else copied, or converted, into memory of the worker's own.
#pragma once

#include "cpu/flash/tile_kernels.hpp"
#include "cpu/portable/head.hpp"
#include "cpu/portable/tile.hpp"
#include "cpu/portable/workspace.hpp"

#include <cstdint>

namespace tilewise::cpu::flash {

/// The tile of K and V that a task is at.
class KeyValues {
 public:
  KeyValues(portable::Arena& arena, const portable::Shape& shape)
      : key_memory_(arena.take_tile<float>(portable::Bc, shape.head_dim)),
        value_memory_(arena.take_tile<float>(portable::Bc, shape.head_dim_v)) {}

  void start(const TileKernels& kernels, const portable::Head& head) {
    kernels_ = &kernels;
    head_ = &head;
  }
  void turn_to(portable::Span keys);
  /// K, or V, of these keys as it is stored, where that is evenly spaced and of a format that the
  /// tile kernels read; else as floats, as turn_to() has them.
  Source source_of_keys(portable::Span keys);
  Source source_of_values(portable::Span keys);

  Rows k() const { return k_; }
  Rows v() const { return v_; }
  /// For other use after the last tile.
  const portable::Tile<float>& memory_for_values() const { return value_memory_; }

 private:
  /// Whether the tile kernels can read it as it is.
  static bool readable(const TensorView& tensor, const TensorView& descale);
  bool evenly_spaced(portable::Span keys) const;
  Source source_of(const TensorView& tensor, std::int64_t key) const;
  Rows read(const TensorView& tensor, portable::Span keys, std::int64_t width,
            const portable::Tile<float>& memory) const;
  void read_keys(portable::Span keys);
  void read_values(portable::Span keys);

  const TileKernels* kernels_ = nullptr;
  const portable::Head* head_ = nullptr;
  portable::Tile<float> key_memory_, value_memory_;
  Rows k_{}, v_{};
};

/// Rows of Q, `memory` theirs where they cannot be read in place.
Rows query_rows(const portable::Head& head, portable::Span rows, const TileKernels& kernels,
                const portable::Tile<float>& memory);

/// Where rows of O are to be written: in place, or `memory`, from where they still have to go.
Rows output_rows(const portable::Head& head, portable::Span rows,
                 const portable::Tile<float>& memory);

}  // namespace tilewise::cpu::flash
