// setmaxnreg: how many registers each warp has, and who waits for more.
#pragma once

#include "site.hpp"

#include <cstdint>
#include <vector>

namespace tilewise::emulator {

/// At the launch every thread has as many as fit, in eights: a multiple of 8 up to 248, of which
/// all threads together have at most 65536. A kernel that its compiler gave fewer (maxnreg,
/// __launch_bounds__) begins with fewer on the GPU, which the emulator cannot know.
class RegisterBudget {
 public:
  static constexpr int of_all = 65536;

  struct Call {
    int registers;
    bool more;
    Where where;
  };
  struct OfWarp {
    int registers = 0;
    std::size_t calls = 0;
  };

  RegisterBudget() = default;
  explicit RegisterBudget(std::int64_t threads);

  std::vector<OfWarp> warps;
  std::vector<std::vector<Call>> calls;  ///< of each warpgroup: what its first warp there said
  std::vector<std::uint16_t> waiting;    ///< threads
  int free = 0;                          ///< of the block
};

}  // namespace tilewise::emulator
