// The workspace, cut up: a part for each worker, every array in it 64-byte aligned.
//
// The same constructors that hand out memory also count how much they would: from no memory at all
// an Arena gives null pointers and adds up sizes.
#pragma once

#include "cpu/portable/tile.hpp"

#include <cstddef>
#include <cstdint>

namespace tilewise::cpu::portable {

class Arena {
 public:
  explicit Arena(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <class T>
  T* take(std::int64_t count) {
    void* place = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += (static_cast<std::size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return static_cast<T*>(place);
  }

  template <class Real>
  Tile<Real> take_tile(std::int64_t rows, std::int64_t columns) {
    return {take<Real>(rows * padded<Real>(columns)), padded<Real>(columns)};
  }

  std::size_t used() const { return used_; }

 private:
  char* memory_;
  std::size_t used_ = 0;
};

/// Bytes of what one worker needs: `Tiles` is a struct that takes its arrays from an Arena.
template <class Tiles>
std::size_t bytes_a_worker(const Shape& shape) {
  Arena arena(nullptr);
  const Tiles tiles(arena, shape);
  return arena.used();
}

/// Runs body(task, tiles) for every task, with the tiles of the worker that runs it.
template <class Tiles, class Body>
void for_each_task(const Workers& workers, void* memory, const Shape& shape, std::int64_t tasks,
                   const Body& body) {
  struct Job {
    const Body& body;
    const Shape& shape;
    char* memory;
    std::size_t bytes;
  } job{body, shape, static_cast<char*>(memory), bytes_a_worker<Tiles>(shape)};
  workers.parallel_for(
      workers.pool, workers.max_workers, tasks,
      [](void* arg, std::int64_t task, int worker) {
        const Job& work = *static_cast<const Job*>(arg);
        Arena arena(work.memory + static_cast<std::size_t>(worker) * work.bytes);
        const Tiles tiles(arena, work.shape);
        work.body(task, tiles);
      },
      &job);
}

}  // namespace tilewise::cpu::portable
