// A grid: refused as the device would refuse it, or its blocks run side by side.
#include "cuda/emulator/block.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>
#include <utility>

namespace tilewise::emulator {
namespace {

thread_local Session* session = nullptr;
std::atomic<std::uint32_t> launches{0};

/// CUDA C++ Programming Guide, "Compute Capabilities": what holds for all of them.
std::string refused(const Launch& launch, const Device& device) {
  const Dim3 grid = launch.grid, block = launch.block;
  if (grid.count() == 0 || block.count() == 0)
    return fmt::format("a grid of {} x {} x {} blocks of {} x {} x {} threads has nothing to do",
                       grid.x, grid.y, grid.z, block.x, block.y, block.z);
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    return fmt::format("a grid has at most 2147483647 x 65535 x 65535 blocks, not {} x {} x {}",
                       grid.x, grid.y, grid.z);
  if (block.x > 1024 || block.y > 1024 || block.z > 64 || block.count() > 1024)
    return fmt::format(
        "a block has at most 1024 x 1024 x 64 threads, and 1024 in all; not {} x {} "
        "x {}",
        block.x, block.y, block.z);
  if (launch.shared_consented > device.shared_bytes_a_block)
    return fmt::format(
        "cudaFuncSetAttribute: {} bytes of dynamic shared memory; {} has {} for a "
        "block",
        launch.shared_consented, device.name, device.shared_bytes_a_block);
  const std::size_t most = std::max(device.shared_bytes_without_consent, launch.shared_consented);
  if (launch.shared_bytes > most)
    return fmt::format("{} bytes of dynamic shared memory for a block; {} allows {}{}",
                       launch.shared_bytes, device.name, most,
                       most < device.shared_bytes_a_block
                           ? ", and more after cudaFuncSetAttribute(kernel, "
                             "cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)"
                           : "");
  return {};
}

/// Lines, which cost a look into debug information, once for each place.
void resolve_lines(Report& report, const std::unordered_map<std::uint64_t, Banks>& banks_at) {
  for (const auto& [bits, banks] : banks_at)
    report.counts.banks_by_line[line_of(Where::from_bits(bits))] += banks;
}

}  // namespace

Session::Session(const Options& options) : options_(options), outer_(session) {
  session = this;
}

Session::~Session() {
  session = outer_;
}

Session* Session::current() {
  return session;
}

bool run(const Launch& launch, const Options& options, Report& report) {
  if (const std::string why = refused(launch, options.device); !why.empty()) {
    report.findings.push_back({Kind::bad_launch, launch.name, why, {}, {}, 1});
    return false;
  }
  const Block::Common common{launch, options, current_regions(), ++launches, {}, {}};
  const std::int64_t blocks = launch.grid.count();
  std::atomic<std::int64_t> next{0};
  // Blocks may run in any order: the seed says which comes first, and how far apart neighbours are.
  std::mt19937_64 random(options.seed);
  const auto first = static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(blocks));
  std::int64_t stride = 1;
  while (options.seed != 1 && (stride == 1 || std::gcd(stride, blocks) != 1))
    stride = 2 + static_cast<std::int64_t>(random() % 1000003u);
  std::mutex mutex;
  Report all;
  const auto work = [&] {
    Stacks stacks;
    Report mine;
    std::unordered_map<std::uint64_t, Banks> banks_at;
    for (;;) {
      const std::int64_t turn = next++;
      if (turn >= blocks || common.stop) break;
      const std::int64_t number =
          options.seed == 1 ? turn : (first + turn % blocks * (stride % blocks)) % blocks;
      Block block(common, static_cast<std::uint32_t>(number), stacks);
      block.run();
      mine += std::move(block.report);
      for (const auto& [bits, banks] : block.banks_at) banks_at[bits] += banks;
      if (!mine.clean()) common.stop = true;
    }
    common.standstill.host_ends();
    resolve_lines(mine, banks_at);
    const std::lock_guard<std::mutex> guard(mutex);
    all += std::move(mine);
  };
  const int wanted =
      options.threads > 0 ? options.threads : static_cast<int>(std::thread::hardware_concurrency());
  const auto workers = static_cast<int>(std::clamp<std::int64_t>(blocks, 1, std::max(wanted, 1)));
  common.standstill.begin(workers);
  std::vector<std::thread> others;
  for (int n = 1; n < workers; ++n) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
  all.counts.launches = 1;
  const bool clean = all.clean();
  report += std::move(all);
  return clean;
}

Status launch(const Launch& launch) {
  Report report;
  const Session* const current = Session::current();
  const bool clean = run(launch, current != nullptr ? current->options() : Options{}, report);
  Status status;
  if (!clean) {
    const Finding& first = report.findings.front();
    status = failure(first.kind == Kind::bad_launch ? Code::bad_argument : Code::failed,
                     "%s in %s: %s", name_of(first.kind), launch.name, first.text.c_str());
  }
  if (session != nullptr) session->report() += std::move(report);
  return status;
}

}  // namespace tilewise::emulator
