// What a tilewise_context holds. Nothing in it changes between its making and its end, so that any
// number of threads may use it at the same time.
#pragma once

#include "core/device_backend.hpp"
#include "cpu/flash/tile_kernels.hpp"
#include "cpu/workers.hpp"
#include "include/tilewise/tilewise.h"

struct tilewise_context {
  const tilewise::cpu::flash::TileKernels* kernels;  ///< null: the portable backend
  tilewise::cpu::Workers workers;
  tilewise::cpu::ThreadPool* pool;  ///< null unless the threads are the context's own
  void* pool_memory;
  tilewise_allocate_function allocate;
  tilewise_free_function free_memory;
  void* allocator_user;

  tilewise::Device device;                 ///< where it computes
  const tilewise::DeviceBackend* backend;  ///< who computes there; null on the CPU
  tilewise::DeviceLimits limits;           ///< of that device
  tilewise::Status choice;                 ///< its `reason`: why this device
};
