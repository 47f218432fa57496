// The table of one instruction set. Included last by a file of isa/.
#pragma once

#include "cpu/flash/tile/decode.hpp"
#include "cpu/flash/tile/products.hpp"
#include "cpu/flash/tile/softmax.hpp"
#include "cpu/flash/tile/transpose.hpp"
#include "cpu/flash/tile/widen.hpp"

namespace tilewise::cpu::flash {
inline namespace TILEWISE_ISA {

constexpr TileKernels table(const char* name) {
  return {name,   queries, pack_queries, scores, hide,  to_rows,    from_rows, online_softmax,
          values, finite,  unpack,       dots,   weigh, add_values, widen_f16, widen_bf16};
}

}  // namespace TILEWISE_ISA
}  // namespace tilewise::cpu::flash
