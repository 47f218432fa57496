// Into which tasks a forward call is cut, and in which order they are handed out. Whoever is free
// takes the next: what is left at the end has to be small.
//
// Nothing here decides a bit of the result: a row's is the same in whatever task it is computed.
#pragma once

#include "cpu/call.hpp"
#include "cpu/portable/head.hpp"

#include <algorithm>
#include <cstdint>

namespace tilewise::cpu::flash {

/// Some blocks of queries of one head.
struct RowTask {
  std::int64_t b, h;
  portable::Span rows;  ///< may end behind the sequence, or begin there
};

/// First large tasks, in which many blocks of queries share each tile of K and V, then small ones
/// of a block each, with which the workers that have finished fill the time of those that have not:
/// guided self-scheduling (Polychronopoulos and Kuck 1987, doi:10.1109/TC.1987.5009495) in two
/// sizes. A large task is a whole group of blocks or what is left of one at a head's end.
class RowSchedule {
 public:
  static constexpr std::int64_t most_blocks = 8;  ///< of a task

  RowSchedule(const portable::Shape& shape, std::int64_t queries, std::int64_t batch,
              std::int64_t longest, std::int64_t workers)
      : heads_(shape.nheads_q), rows_a_block_(queries) {
    // A group's Qt and Ot take a quarter of a level 2 cache of 2 MiB, at most.
    constexpr std::int64_t cache = std::int64_t{1} << 19;
    const std::int64_t block_bytes = queries * (shape.head_dim + shape.head_dim_v) * 4;
    const std::int64_t most = std::clamp<std::int64_t>(cache / block_bytes, 1, most_blocks);
    const std::int64_t blocks_a_head = portable::blocks(longest, queries);
    groups_a_head_ = portable::blocks(blocks_a_head, most);
    // Groups of one size, rather than full ones and a small one at the end.
    group_ = portable::blocks(blocks_a_head, std::max<std::int64_t>(groups_a_head_, 1));
    const std::int64_t groups = batch * heads_ * groups_a_head_;
    // Whoever ends last has had a whole group that nobody helped with. The last groups, one for
    // each worker, are what the others do meanwhile.
    const std::int64_t split = workers == 1 ? 0 : std::min(groups, workers);
    whole_ = groups - split;
    tasks_ = whole_ + split * group_;
  }

  std::int64_t tasks() const { return tasks_; }

  /// Head after head, so that a worker finds its K and V in its cache again; the last rows of each
  /// first: under a causal mask they have the most to do.
  RowTask operator[](std::int64_t n) const {
    const std::int64_t group = n < whole_ ? n : whole_ + (n - whole_) / group_;
    const std::int64_t head = group / groups_a_head_;
    const std::int64_t first = (groups_a_head_ - 1 - group % groups_a_head_) * group_;
    if (n < whole_)
      return {head / heads_, head % heads_, {first * rows_a_block_, group_ * rows_a_block_}};
    const std::int64_t block = first + group_ - 1 - (n - whole_) % group_;
    return {head / heads_, head % heads_, {block * rows_a_block_, rows_a_block_}};
  }

 private:
  std::int64_t heads_, rows_a_block_;
  std::int64_t groups_a_head_ = 0, group_ = 0;  ///< of blocks
  std::int64_t whole_ = 0, tasks_ = 0;
};

}  // namespace tilewise::cpu::flash
