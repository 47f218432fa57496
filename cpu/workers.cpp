#include "cpu/workers.hpp"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>

#if defined(_OPENMP)
#include <omp.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace tilewise::cpu {

void serial_for(void*, int, std::int64_t n, void (*fn)(void* arg, std::int64_t task, int worker),
                void* arg) {
  for (std::int64_t task = 0; task < n; ++task) fn(arg, task, 0);
}

void openmp_for([[maybe_unused]] void* pool, [[maybe_unused]] int max_workers, std::int64_t n,
                void (*fn)(void* arg, std::int64_t task, int worker), void* arg) {
#if defined(_OPENMP)
#pragma omp parallel for schedule(dynamic, 1) num_threads(max_workers)
  for (std::int64_t task = 0; task < n; ++task) fn(arg, task, omp_get_thread_num());
#else
  serial_for(pool, max_workers, n, fn, arg);
#endif
}

bool openmp_compiled_in() {
#if defined(_OPENMP)
  return true;
#else
  return false;
#endif
}

int hardware_threads() {
  const unsigned count = std::thread::hardware_concurrency();
  return count == 0 ? 1 : static_cast<int>(count);
}

namespace {

/// A thread that says when it cannot be started. std::thread says so by an exception, which a
/// library built with -fno-exceptions cannot catch; pthread_create returns an error.
class Thread {
 public:
  bool start(void* (*run)(void*), void* arg) {
#if defined(_WIN32)
    try {
      thread_ = std::thread([=] { run(arg); });
      return true;
    } catch (...) {
      return false;
    }
#else
    return pthread_create(&thread_, nullptr, run, arg) == 0;
#endif
  }
  void join() {
#if defined(_WIN32)
    thread_.join();
#else
    pthread_join(thread_, nullptr);
#endif
  }

 private:
#if defined(_WIN32)
  std::thread thread_;
#else
  pthread_t thread_{};
#endif
};

/// One call of thread_pool_for; it lives on its caller's stack.
struct Job {
  void (*fn)(void* arg, std::int64_t task, int worker);
  void* arg;
  std::int64_t n;
  int max_workers;
  std::atomic<std::int64_t> next{0};  // the first task that nobody has taken
  int joined = 1;                     // workers so far: the caller is worker 0
  int helping = 0;                    // pool threads that are in it now
  Job* following = nullptr;

  void work(int worker) {
    for (std::int64_t task = next++; task < n; task = next++) fn(arg, task, worker);
  }
};

}  // namespace

class ThreadPool {
 public:
  explicit ThreadPool(Thread* threads) : threads_(threads) {}

  bool start(int count) {
    for (; count_ < count; ++count_)
      if (!threads_[count_].start(&ThreadPool::help, this)) return false;
    return true;
  }

  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    work_.notify_all();
    for (int i = 0; i < count_; ++i) threads_[i].join();
  }

  void run(Job& job) {
    {
      const std::lock_guard lock(mutex_);
      job.following = first_;
      first_ = &job;
    }
    for (int i = 1; i < job.max_workers && i < job.n && i <= count_; ++i) work_.notify_one();
    job.work(0);
    std::unique_lock lock(mutex_);
    Job** link = &first_;
    while (*link != &job) link = &(*link)->following;
    *link = job.following;
    done_.wait(lock, [&] { return job.helping == 0; });
  }

 private:
  static void* help(void* pool) {
    static_cast<ThreadPool*>(pool)->help_until_stopped();
    return nullptr;
  }

  void help_until_stopped() {
    std::unique_lock lock(mutex_);
    while (true) {
      Job* job = nullptr;
      work_.wait(lock, [&] { return stopping_ || (job = wanting_help()) != nullptr; });
      if (job == nullptr) return;
      const int worker = job->joined++;
      ++job->helping;
      lock.unlock();
      job->work(worker);
      lock.lock();
      if (--job->helping == 0) done_.notify_all();
    }
  }

  Job* wanting_help() {
    for (Job* job = first_; job != nullptr; job = job->following)
      if (job->joined < job->max_workers && job->next < job->n) return job;
    return nullptr;
  }

  std::mutex mutex_;
  std::condition_variable work_, done_;
  Job* first_ = nullptr;  // all that is being done
  bool stopping_ = false;
  Thread* threads_;
  int count_ = 0;
};

namespace {
constexpr std::size_t pool_header =
    (sizeof(ThreadPool) + alignof(Thread) - 1) / alignof(Thread) * alignof(Thread);
}  // namespace

std::size_t thread_pool_bytes(int threads) {
  return pool_header + static_cast<std::size_t>(threads) * sizeof(Thread);
}

ThreadPool* start_thread_pool(void* memory, int threads) {
  auto* const handles = reinterpret_cast<Thread*>(static_cast<char*>(memory) + pool_header);
  for (int i = 0; i < threads; ++i) new (handles + i) Thread;
  auto* const pool = new (memory) ThreadPool(handles);
  if (pool->start(threads)) return pool;
  stop_thread_pool(pool);
  return nullptr;
}

void stop_thread_pool(ThreadPool* pool) {
  pool->stop();
  pool->~ThreadPool();
}

void thread_pool_for(void* pool, int max_workers, std::int64_t n,
                     void (*fn)(void* arg, std::int64_t task, int worker), void* arg) {
  Job job{fn, arg, n, max_workers};
  static_cast<ThreadPool*>(pool)->run(job);
}

}  // namespace tilewise::cpu
