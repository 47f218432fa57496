// How work is spread over threads: one function that runs n independent tasks, and the ways that
// are built in. Callers may bring their own (tilewise_context_options of include/tilewise).
//
// A task is named by its number alone; `worker` says which of the workers runs it, so that each may
// have a part of the workspace to itself: worker < max_workers, and no two tasks that run at the
// same time have the same. Nothing that is computed may depend on it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tilewise::cpu {

struct Workers {
  /// Calls fn(arg, task, worker) once for each task in [0, n), and returns when all are done.
  void (*parallel_for)(void* pool, int max_workers, std::int64_t n,
                       void (*fn)(void* arg, std::int64_t task, int worker), void* arg);
  void* pool;
  int max_workers;
};

/// One after the other, on the caller's thread.
void serial_for(void* pool, int max_workers, std::int64_t n,
                void (*fn)(void* arg, std::int64_t task, int worker), void* arg);

/// OpenMP's threads. The serial loop where OpenMP is not compiled in.
void openmp_for(void* pool, int max_workers, std::int64_t n,
                void (*fn)(void* arg, std::int64_t task, int worker), void* arg);
bool openmp_compiled_in();

/// A pool of threads that sleep until there is work. Several threads may hand it work at the same
/// time, and a task may itself hand it more: whoever does so works along as worker 0, so that
/// somebody always gets on.
class ThreadPool;

/// Bytes that a pool with room for `threads` threads needs, the caller's own not among them.
std::size_t thread_pool_bytes(int threads);

/// Makes a pool in that memory and starts its threads. Null if the system refuses one of them.
ThreadPool* start_thread_pool(void* memory, int threads);

/// Ends the threads; the memory is the caller's to free. Nothing may be at work in the pool.
void stop_thread_pool(ThreadPool* pool);

void thread_pool_for(void* pool, int max_workers, std::int64_t n,
                     void (*fn)(void* arg, std::int64_t task, int worker), void* arg);

/// How many threads the machine runs at once; at least 1.
int hardware_threads();

}  // namespace tilewise::cpu
