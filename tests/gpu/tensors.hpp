// What the programs of this folder share: a step's tensors in the device's memory, and giving up.
#pragma once

#include "cuda/device/memory.hpp"
#include "stages/cuda_stage.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

namespace tilewise::gpu_tests {

inline void require(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.reason);
  std::exit(1);
}

/// Allocates the tensors whose sizes `args` has, fills them with N(0, 1), and tells `args` where
/// they lie. A few numbers repeated: nothing here looks at results.
class Tensors {
 public:
  explicit Tensors(stages::CudaArgs& args) : element_(size_of(args.dtype)) {
    std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    for (std::size_t i = 0; i < numbers; ++i) {
      values_.resize(values_.size() + element_);
      store(args.dtype, values_.data() + i * element_, static_cast<double>(normal(generator)));
    }
    const std::int64_t row = args.batch * args.head_dim;
    const std::int64_t queries = row * args.seqlen_q * args.nheads_q;
    const std::int64_t keys = row * args.seqlen_k * args.nheads_k;
    args.q = add(queries, "q");
    args.k = add(keys, "k");
    args.v = add(keys, "v");
    args.o = add(queries, "o");
    require(
        lse_.allocate(static_cast<std::size_t>(args.batch * args.nheads_q * args.seqlen_q), "lse"));
    args.lse = lse_.data();
    if (!args.backward) return;
    args.dout = add(queries, "dout");
    args.dq = add(queries, "dq");
    args.dk = add(keys, "dk");
    args.dv = add(keys, "dv");
  }

 private:
  static constexpr std::size_t numbers = 99991;  // a prime: rows of a tensor differ

  void* add(std::int64_t elements, const char* name) {
    std::vector<unsigned char> host(static_cast<std::size_t>(elements) * element_);
    for (std::size_t begin = 0; begin < host.size(); begin += values_.size())
      std::copy_n(values_.begin(), std::min(values_.size(), host.size() - begin),
                  host.begin() + static_cast<std::ptrdiff_t>(begin));
    device::Memory<unsigned char>& memory = tensors_.emplace_back();
    require(memory.allocate(host.size(), name));
    require(memory.upload(host.data()));
    return memory.data();
  }

  std::size_t element_;
  std::vector<unsigned char> values_;
  std::vector<device::Memory<unsigned char>> tensors_;
  device::Memory<float> lse_;
};

}  // namespace tilewise::gpu_tests
