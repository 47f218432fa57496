// Memory of the device, streams and events, owned: freed with their owner, errors as statuses.
//
// Under the emulator the device's memory is the host's, known to the emulator by a name, so that a
// report can say "K[17]", and bytes are counted by tensor.
#pragma once

#include "core/status.hpp"
#include "cuda/device/launch.hpp"
#include "cuda/device/platform.hpp"

#include <cstddef>
#include <cstring>
#include <new>
#include <utility>

namespace tilewise::device::inline TILEWISE_TARGET {

/// `count` elements of T, not initialised.
template <class T>
class Memory {
 public:
  Memory() = default;
  ~Memory() { release(); }
  Memory(Memory&& other) noexcept { swap(other); }
  Memory& operator=(Memory&& other) noexcept {
    swap(other);
    return *this;
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  Status allocate(std::size_t count, [[maybe_unused]] const char* name) {
    release();
    if (count == 0) return {};
#if TILEWISE_EMULATED
    data_ =
        static_cast<T*>(::operator new (count * sizeof(T), std::align_val_t{256}, std::nothrow));
    if (data_ == nullptr)
      return failure(Code::no_memory, "%zu bytes for %s", count * sizeof(T), name);
    emulator::register_memory(data_, count * sizeof(T), name, sizeof(T), false);
#else
    void* memory = nullptr;
    const Status status = status_of(cudaMalloc(&memory, count * sizeof(T)), name);
    if (!status.ok()) return status;
    data_ = static_cast<T*>(memory);
#endif
    count_ = count;
    return {};
  }

  /// All elements, from and to memory of the host; done when it returns.
  Status upload(const T* from) {
#if TILEWISE_EMULATED
    if (count_ > 0) std::memcpy(static_cast<void*>(data_), from, bytes());
    emulator::memory_is_written(data_, bytes());
    return {};
#else
    return status_of(cudaMemcpy(data_, from, bytes(), cudaMemcpyHostToDevice), "upload");
#endif
  }
  Status download(T* to) const {
#if TILEWISE_EMULATED
    if (count_ > 0) std::memcpy(static_cast<void*>(to), data_, bytes());
    return {};
#else
    return status_of(cudaMemcpy(to, data_, bytes(), cudaMemcpyDeviceToHost), "download");
#endif
  }

  T* data() const {
    return data_;
  }
  std::size_t size() const {
    return count_;
  }
  std::size_t bytes() const {
    return count_ * sizeof(T);
  }

 private:
  void swap(Memory& other) {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
  }
  void release() {
    if (data_ == nullptr) return;
#if TILEWISE_EMULATED
    emulator::forget_memory(data_);
    ::operator delete (data_, std::align_val_t{256});
#else
    (void)cudaFree(data_);
#endif
    data_ = nullptr;
    count_ = 0;
  }

  T* data_ = nullptr;
  std::size_t count_ = 0;
};

#if !TILEWISE_EMULATED

/// Work in order, beside other streams' work.
class Stream {
 public:
  Stream() = default;
  ~Stream() {
    if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  Status create() {
    return status_of(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
  }
  Status wait() const { return status_of(cudaStreamSynchronize(stream_), "stream"); }
  cudaStream_t handle() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

/// A point in a stream's work; the time between two.
class Event {
 public:
  Event() = default;
  ~Event() {
    if (event_ != nullptr) (void)cudaEventDestroy(event_);
  }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  Status create() { return status_of(cudaEventCreate(&event_), "event"); }
  Status record(cudaStream_t stream) { return status_of(cudaEventRecord(event_, stream), "event"); }
  Status wait() const { return status_of(cudaEventSynchronize(event_), "event"); }
  /// Milliseconds from `earlier`; both must have come to pass.
  Status since(const Event& earlier, float& milliseconds) const {
    return status_of(cudaEventElapsedTime(&milliseconds, earlier.event_, event_), "event");
  }

 private:
  cudaEvent_t event_ = nullptr;
};

#endif

}  // namespace tilewise::device::inline TILEWISE_TARGET
