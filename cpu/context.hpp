// What a tilewise_context holds. Nothing in it changes between its making and its end, so that any
// number of threads may use it at the same time.
#pragma once

#include "cpu/flash/tile_kernels.hpp"
#include "cpu/workers.hpp"
#include "include/tilewise/tilewise.h"

struct tilewise_context {
  const tilewise::cpu::flash::TileKernels* kernels;  ///< null: the portable backend
  std::int32_t device_id;
  tilewise::cpu::Workers workers;
  tilewise::cpu::ThreadPool* pool;  ///< null unless the threads are the context's own
  void* pool_memory;
  tilewise_allocate_function allocate;
  tilewise_free_function free_memory;
  void* allocator_user;
};
