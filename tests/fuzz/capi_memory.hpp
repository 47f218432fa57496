// The memory that fuzzed tensors and structs lie in: blocks of exactly the size that they span, so
// that a sanitizer sees every step beyond.
#pragma once

#include "include/tilewise/tilewise.h"
#include "tests/fuzz/capi_bytes.hpp"
#include "tests/fuzz/targets.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

namespace tilewise::fuzz {

/// Bytes of an element; 0 where the number names no dtype.
inline std::int64_t element_size(std::int32_t dtype) {
  constexpr std::int64_t sizes[] = {0, 8, 4, 2, 2, 1, 1, 8, 4, 1, 1, 34};
  return dtype >= 1 && dtype <= TILEWISE_Q8_0 ? sizes[dtype] : 0;
}

/// What a tensor's sizes and strides span, by our own arithmetic: the library has its own.
struct Extent {
  bool sound = true;       ///< a dtype, dimensions, and no size below zero
  bool empty = false;      ///< no elements
  bool large = false;      ///< more than a fuzzer should hand out
  std::int64_t below = 0;  ///< bytes before the tensor's data
  std::int64_t above = 0;  ///< and behind its beginning
  double elements = 1;     ///< sizes multiplied, zeros counted as one
};

inline Extent extent_of(const tilewise_tensor& tensor) {
  constexpr double largest = 1 << 14;
  Extent extent;
  const std::int64_t element = element_size(tensor.dtype);
  extent.sound = element > 0 && tensor.ndim >= 1 && tensor.ndim <= TILEWISE_MAX_DIMS;
  if (!extent.sound) return extent;
  double below = 0, above = 1;  // elements; exact as far as they matter
  for (int dim = 0; dim < tensor.ndim; ++dim) {
    const auto size = static_cast<double>(tensor.shape[dim]);
    if (size < 0) extent.sound = false;
    if (size == 0) extent.empty = true;
    if (size < 1) continue;
    extent.elements *= size;
    const double reach = size == 1 ? 0 : (size - 1) * static_cast<double>(tensor.strides[dim]);
    (reach < 0 ? below : above) += reach < 0 ? -reach : reach;
  }
  extent.large = below + above > largest || extent.elements > 4 * largest;
  if (!extent.sound || extent.large) return extent;
  extent.below = static_cast<std::int64_t>(below) * element;
  extent.above = static_cast<std::int64_t>(above) * element;
  return extent;
}

/// Bytes to fill memory with: anything above `base` within `mask`.
struct Noise {
  static constexpr std::size_t reach = 2048;
  std::uint8_t bytes[2 * reach];

  Noise(std::uint32_t base, std::uint32_t mask) {
    std::uint32_t state = 1;
    for (std::uint8_t& byte : bytes) {
      state = state * 1664525 + 1013904223;  // Numerical Recipes' generator
      byte = static_cast<std::uint8_t>(base + (state >> 24 & mask));
    }
  }
};

/// Memory of exactly the size asked for, so that a sanitizer sees every step beyond it, and what it
/// held before a call.
class Block {
 public:
  explicit Block(std::size_t size) : size_(size), memory_(new std::uint8_t[size]) {}

  std::uint8_t* data() const { return memory_.get(); }
  std::size_t size() const { return size_; }
  /// Small positive numbers in every floating-point format; or `wild` ones, with NaNs among them.
  void fill(std::size_t seed, bool wild) const {
    static const Noise tame(0x30, 0x0f), any(0, 0xff);
    const Noise& noise = wild ? any : tame;
    for (std::size_t at = 0; at < size_; at += noise.reach)
      std::memcpy(data() + at, noise.bytes + seed % noise.reach, std::min(noise.reach, size_ - at));
  }
  void remember() { before_.assign(data(), data() + size_); }
  bool changed() const { return std::memcmp(before_.data(), data(), size_) != 0; }

  bool written = false;  ///< a call may write here

 private:
  std::size_t size_;
  std::unique_ptr<std::uint8_t[]> memory_;
  std::vector<std::uint8_t> before_;
};

/// Memory that begins at a multiple of 64 and ends where it says, full of NaNs.
class Workspace {
 public:
  explicit Workspace(std::size_t size) {
    void* memory = nullptr;
    require(posix_memalign(&memory, 64, std::max<std::size_t>(size, 1)) == 0, "there is memory");
    std::memset(memory, 0xff, size);
    memory_.reset(static_cast<std::uint8_t*>(memory));
  }
  std::uint8_t* data() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(std::uint8_t* memory) const { std::free(memory); }
  };
  std::unique_ptr<std::uint8_t, Free> memory_;
};

/// A caller's struct as a library built against another header may find it: `size` bytes and none
/// behind them, of which those that `full` has are set, and those beyond are `tail`.
template <class Struct>
class Sized {
 public:
  Sized(Struct full, std::uint32_t size, std::uint8_t tail) : block_(room(size)) {
    full.struct_size = size;
    std::memset(block_.data(), 0, block_.size());
    std::memcpy(block_.data(), &full, block_.size() < sizeof full ? block_.size() : sizeof full);
    if (block_.size() > sizeof full) block_.data()[block_.size() - 1] = tail;
  }
  Struct* get() const { return reinterpret_cast<Struct*>(block_.data()); }
  std::size_t size() const { return block_.size(); }

 private:
  /// A size that no struct has is refused before anything behind it is read.
  static std::size_t room(std::uint32_t size) {
    return size < sizeof size ? sizeof size : size > (1u << 16) ? 16 : size;
  }
  Block block_;
};

/// The blocks that a call's tensors lie in.
class Memory {
 public:
  explicit Memory(Bytes& bytes) : bytes_(bytes), wild_(bytes.one_in(8)) {}

  /// Gives a tensor what it spans. One that spans nothing sound gets an address that must not be
  /// read; one that spans too much has none, which a call that computes has to refuse.
  void place(tilewise_tensor& tensor, bool written) {
    enum Place : std::uint8_t { own = 0, nowhere, misaligned, anothers };
    const std::uint8_t choice = bytes_.byte();
    const auto place = choice < 244 ? own : static_cast<Place>(choice % 4);
    const Extent extent = extent_of(tensor);
    tensor.data = nullptr;
    if (place == nowhere || (extent.sound && extent.large)) return;
    if (!extent.sound || extent.empty) {
      tensor.data = take(1).data();
      return;
    }
    const auto span = static_cast<std::size_t>(extent.below + extent.above);
    Block* block = nullptr;
    if (place == anothers && !blocks_.empty()) {
      Block& other = blocks_[static_cast<std::size_t>(bytes_.byte()) % blocks_.size()];
      if (other.size() >= span) block = &other;
    }
    if (block == nullptr) block = &take(span + (place == misaligned ? 1 : 0));
    block->written = block->written || written;
    tensor.data = block->data() + extent.below + (place == misaligned ? 1 : 0);
  }

  Block& take(std::size_t size) {
    Block& block = blocks_.emplace_back(size);
    block.fill(blocks_.size() * 77 + bytes_.byte(), wild_);
    return block;
  }

  void remember() {
    for (Block& block : blocks_) block.remember();
  }
  void require_untouched(bool outputs_may_change) const {
    for (const Block& block : blocks_)
      if (!(outputs_may_change && block.written))
        require(!block.changed(),
                outputs_may_change ? "inputs are not written" : "a refused call writes nothing");
  }

 private:
  Bytes& bytes_;
  bool wild_;
  std::deque<Block> blocks_;
};

}  // namespace tilewise::fuzz
