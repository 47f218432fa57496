#include "cuda/emulator/block.hpp"

namespace tilewise::emulator {

void Block::count_request(Where where, Requests::Memory memory, const Region* region,
                          std::uint64_t address, std::size_t bytes) {
  // Lanes run one after the other: one that is far ahead of the others fills memory with what is
  // known of it alone.
  constexpr std::size_t far_ahead = 1024;
  const Thread& thread = *running_;
  if (thread.looks >= same_read_in_a_row) return;  // waits in a loop, and has been counted enough
  const std::int64_t present = std::min<std::int64_t>(size() - thread.warp() * 32, 32);
  const std::uint32_t lanes = present == 32 ? ~0u : (1u << present) - 1;
  const Requests::Kind kind{where, memory, region, bytes};
  const Requests::Added added = warp().requests.add(kind, thread.lane(), address, lanes);
  if (added.whole != nullptr) count(*added.whole, kind);
  if (added.ahead >= far_ahead && added.ahead % far_ahead == 0) let_others_go_on();
}

void Block::count(const Request& request, const Requests::Kind& kind) {
  if (kind.memory == Requests::Memory::shared) {
    const Banks banks = banks_of(request, kind.bytes);
    report.counts.banks += banks;
    banks_at[kind.where.bits()] += banks;
    return;
  }
  Traffic& traffic = report.counts.traffic[kind.region->name];
  (kind.memory == Requests::Memory::loads ? traffic.sectors_loaded : traffic.sectors_stored) +=
      sectors_of(request, kind.bytes);
}

void Block::flush(Warp& warp) {
  warp.requests.flush(
      [this](const Request& request, const Requests::Kind& kind) { count(request, kind); });
}

void Block::finish() {
  for (Warp& warp : warps_) flush(warp);
  ++report.counts.blocks;
  report.counts.threads += size();
  report.counts.most_shared_bytes =
      static_cast<std::int64_t>(launch().shared_bytes + static_bytes_);
}

}  // namespace tilewise::emulator
