// Loops that wait for memory to change, and never end if nobody changes it.
#include "measured.hpp"
#include "on_device.hpp"

namespace tilewise::tests::inline TILEWISE_TARGET {
namespace {

constexpr unsigned threads = 64;

// The other warp waits for a flag, which one thread sets, if it is not forgotten.
template <bool buggy>
__global__ void flag_of_a_warp(const int* in, int* out) {
  __shared__ int flag;
  const unsigned t = threadIdx.x;
  if (t == 0) flag = 0;
  __syncthreads();
  if (t == 0 && !buggy) atomicExch(&flag, in[0]);
  if (t == 32)
    while (atomicAdd(&flag, 0) == 0) {  // bug: flag_never_set
    }
  if (t == 32) *out = 1;
}

Ran run_flag(bool buggy) {
  return run("flag_of_a_warp", buggy ? flag_of_a_warp<true> : flag_of_a_warp<false>,
             {{1}, {threads}}, counted<int>(1), {1});
}

// Who sets the flag stands at a barrier, for which those are wanted who wait for the flag.
template <bool buggy>
__global__ void flag_behind_barrier(const int* in, int* out) {
  __shared__ int flag;
  const unsigned t = threadIdx.x;
  if (t == 0) flag = 0;
  __syncthreads();
  if (t == 0 && !buggy) atomicExch(&flag, in[0]);
  if (t >= 32)
    while (atomicAdd(&flag, 0) == 0) {  // bug: flag_behind_barrier
    }
  __syncthreads();  // meets: flag_behind_barrier
  if (t == 0 && buggy) atomicExch(&flag, in[0]);
  out[t] = 1;
}

Ran run_flag_behind_barrier(bool buggy) {
  return run("flag_behind_barrier", buggy ? flag_behind_barrier<true> : flag_behind_barrier<false>,
             {{1}, {threads}}, counted<int>(1), std::vector<int>(threads, 1));
}

// A lock that its first holder does not give back.
template <bool buggy>
__global__ void lock(const int* in, int* out, int* held, int* sum) {
  const unsigned t = threadIdx.x;
  if (t % 32 == 0) {
    while (atomicCAS(held, 0, 1) != 0) {  // bug: lock_kept
    }
    __threadfence();
    *sum += in[t];
    __threadfence();
    if (!buggy) atomicExch(held, 0);
  }
  out[t] = in[t];
}

Ran run_lock(bool buggy) {
  Memory<int> held, sum;
  Status status = uploaded(held, {0}, "held");
  if (status.ok()) status = uploaded(sum, {0}, "sum");
  if (!status.ok()) return {status};
  Ran ran = run("lock", buggy ? lock<true> : lock<false>, {{1}, {threads}}, counted<int>(threads),
                counted<int>(threads), held.data(), sum.data());
  ran.right = ran.right && downloaded(sum).front() == 1 + 33;
  return ran;
}

// The lanes look together, and vote on what they have seen.
template <bool buggy>
__global__ void vote(const int* in, int* out, int* ready) {
  const unsigned t = threadIdx.x;
  if (t < 32) {
    while (__any_sync(~0u, atomicAdd(&ready[t], 0) == 0)) {  // bug: lane_never_ready
    }
  } else if (!buggy || t != 40) {
    atomicExch(&ready[t - 32], 1);
  }
  out[t] = in[t];
}

Ran run_vote(bool buggy) {
  Memory<int> ready;
  if (const Status status = uploaded(ready, std::vector<int>(32), "ready"); !status.ok())
    return {status};
  return run("vote", buggy ? vote<true> : vote<false>, {{1}, {threads}}, counted<int>(threads),
             counted<int>(threads), ready.data());
}

// Volatile memory, and memory that a fence makes the compiler read again.
template <bool buggy>
__global__ void volatile_flag(const int* in, int* out) {
  __shared__ int flag;
  const unsigned t = threadIdx.x;
  if (t == 0) flag = buggy ? 0 : 1;
  __syncthreads();
  const volatile int* const look = &flag;
  while (*look == 0) {  // bug: volatile_flag
  }
  out[t] = in[t];
}

Ran run_volatile_flag(bool buggy) {
  return run("volatile_flag", buggy ? volatile_flag<true> : volatile_flag<false>, {{1}, {threads}},
             counted<int>(threads), counted<int>(threads));
}

template <bool buggy>
__global__ void plain_flag(const int* in, int* out, const int* flag) {
  const unsigned t = threadIdx.x;
  while (t == 40 && *flag == (buggy ? 0 : 1))  // bug: plain_flag
    __threadfence();
  out[t] = in[t];
}

Ran run_plain_flag(bool buggy) {
  Memory<int> flag;
  if (const Status status = uploaded(flag, {0}, "flag"); !status.ok()) return {status};
  return run("plain_flag", buggy ? plain_flag<true> : plain_flag<false>, {{1}, {threads}},
             counted<int>(threads), counted<int>(threads), flag.data());
}

// Two blocks, each of which waits for what the other does when it has waited.
template <bool buggy>
__global__ void two_blocks(const int* in, int* out, int* turns) {
  const unsigned b = blockIdx.x, t = threadIdx.x;
  if (t == 0 && !buggy) atomicExch(&turns[b], 1);
  if (t == 0)
    while (atomicAdd(&turns[buggy ? 1 - b : b], 0) == 0) {  // bug: blocks_wait_for_each_other
    }
  if (t == 0 && buggy) atomicExch(&turns[b], 1);
  out[b * threads + t] = in[b * threads + t];
}

Ran run_two_blocks(bool buggy) {
  Memory<int> turns;
  if (const Status status = uploaded(turns, {0, 0}, "turns"); !status.ok()) return {status};
  return run("two_blocks", buggy ? two_blocks<true> : two_blocks<false>, {{2}, {threads}},
             counted<int>(2 * threads), counted<int>(2 * threads), turns.data());
}

// The first block to come waits for the other one, which takes its time.
__global__ void one_for_the_other(const float* in, float* out, int* first, int* done, int rounds) {
  __shared__ int mine;
  const unsigned t = threadIdx.x;
  if (t == 0) mine = atomicAdd(first, 1);
  __syncthreads();
  if (mine == 1) {
    float sum = 0;
    for (int n = 0; n < rounds; ++n) sum += in[(t + static_cast<unsigned>(n)) % threads];
    out[t] = sum;
    __syncthreads();
    if (t == 0) atomicExch(done, 1);
  } else {
    while (atomicAdd(done, 0) == 0) {
    }
  }
}

}  // namespace
}  // namespace tilewise::tests::inline TILEWISE_TARGET

namespace tilewise::tests {

std::vector<Planted> wait_bugs() {
  using emulator::Kind;
  const char* const file = "waits.cu";
  return {
      {"flag_never_set", file, Kind::deadlock, run_flag},
      {"flag_behind_barrier", file, Kind::deadlock, run_flag_behind_barrier},
      {"lock_kept", file, Kind::deadlock, run_lock},
      {"lane_never_ready", file, Kind::deadlock, run_vote},
      {"volatile_flag", file, Kind::deadlock, run_volatile_flag},
      {"plain_flag", file, Kind::deadlock, run_plain_flag},
      {"blocks_wait_for_each_other", file, Kind::deadlock, run_two_blocks},
  };
}

Ran wait_for_a_slow_block() {
  constexpr int rounds = 20'000;
  Memory<int> first, done;
  Status status = uploaded(first, {0}, "first");
  if (status.ok()) status = uploaded(done, {0}, "done");
  if (!status.ok()) return {status};
  // 312 times 1 + 2 + ... + 64, and the first 32 numbers from one's own on.
  std::vector<float> expected(threads);
  for (unsigned t = 0; t < threads; ++t)
    for (int n = 0; n < rounds; ++n)
      expected[t] += static_cast<float>((t + static_cast<unsigned>(n)) % threads + 1);
  return run("one_for_the_other", one_for_the_other, {{2}, {threads}}, counted(threads), expected,
             first.data(), done.data(), rounds);
}

}  // namespace tilewise::tests
