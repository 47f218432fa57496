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

class RowSchedule {
 public:
  static constexpr std::int64_t most_blocks = 8;  ///< of a task

  RowSchedule(const portable::Shape& shape, std::int64_t queries, std::int64_t batch,
              std::int64_t longest, std::int64_t workers)
      : heads_(shape.nheads_q) {
    // As many blocks share a tile of K and V as leave Qt and Ot a quarter of a level 2 cache of
    // 2 MiB, and enough tasks that the last ones to end are a small part of each worker's.
    constexpr std::int64_t cache = std::int64_t{1} << 19;
    const std::int64_t tasks_a_worker = workers == 1 ? 1 : std::min<std::int64_t>(6 * workers, 24);
    const std::int64_t block_bytes = queries * (shape.head_dim + shape.head_dim_v) * 4;
    std::int64_t blocks = std::clamp<std::int64_t>(cache / block_bytes, 1, most_blocks);
    while (blocks > 1 &&
           batch * heads_ * portable::blocks(longest, blocks * queries) < tasks_a_worker * workers)
      --blocks;
    rows_a_task_ = blocks * queries;
    tasks_a_head_ = portable::blocks(longest, rows_a_task_);
    tasks_ = batch * heads_ * tasks_a_head_;
  }

  std::int64_t tasks() const { return tasks_; }

  /// Head after head, so that a worker finds its K and V in its cache again; the last rows of each
  /// first: under a causal mask they have the most to do.
  RowTask operator[](std::int64_t n) const {
    const std::int64_t head = n / tasks_a_head_;
    const std::int64_t task = tasks_a_head_ - 1 - n % tasks_a_head_;
    return {head / heads_, head % heads_, {task * rows_a_task_, rows_a_task_}};
  }

 private:
  std::int64_t heads_, rows_a_task_ = 0, tasks_a_head_ = 0, tasks_ = 0;
};

}  // namespace tilewise::cpu::flash
