#include "oracle/parallel.hpp"

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace tilewise::oracle {

void parallel_for(std::int64_t count, const std::function<void(std::int64_t)>& task) {
  const std::int64_t cores = std::max(1u, std::thread::hardware_concurrency());
  const std::int64_t threads = std::min(count, cores);
  std::atomic<std::int64_t> next{0};
  const auto work = [&] {
    for (std::int64_t n = next++; n < count; n = next++) task(n);
  };
  std::vector<std::jthread> others;
  for (std::int64_t n = 1; n < threads; ++n) others.emplace_back(work);
  work();
}

}  // namespace tilewise::oracle
