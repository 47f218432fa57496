// The table of one instruction set. Included last by a file of isa/.
#pragma once

#include "cpu/flash/tile/decode.hpp"
#include "cpu/flash/tile/products.hpp"
#include "cpu/flash/tile/softmax.hpp"
#include "cpu/flash/tile/source.hpp"
#include "cpu/flash/tile/transpose.hpp"

namespace tilewise::cpu::flash {
inline namespace TILEWISE_ISA {

constexpr TileKernels table(const char* name) {
  return {name,   queries, pack_queries, scores, hide,  to_rows,    from_rows, online_softmax,
          values, finite,  unpack,       dots,   weigh, add_values, read_rows};
}

}  // namespace TILEWISE_ISA
}  // namespace tilewise::cpu::flash
