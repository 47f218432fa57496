#include "cuda/emulator/register_budget.hpp"

#include "cuda/emulator/block.hpp"
#include "cuda/emulator/hopper.hpp"
#include "cuda/emulator/services.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace tilewise::emulator {

RegisterBudget::RegisterBudget(std::int64_t threads)
    : warps(static_cast<std::size_t>((threads + 31) / 32)), calls((warps.size() + 3) / 4) {
  // Warps have registers, not threads.
  const auto lanes = static_cast<int>(warps.size()) * 32;
  const int each = std::min(of_all / lanes / 8 * 8, 248);
  for (OfWarp& warp : warps) warp.registers = each;
  free = of_all - lanes * each;
}

void Block::set_registers(int registers, bool more, Where where) {
  Thread& thread = *running_;
  RegisterBudget::OfWarp& warp = budget_.warps[thread.warp()];
  std::vector<RegisterBudget::Call>& calls = budget_.calls[thread.warp() / 4];
  // The lanes have met; the first of them speaks for all.
  if (thread.lane() == 0) {
    if (warp.calls == calls.size()) calls.push_back({registers, more, where});
    const RegisterBudget::Call& call = calls[warp.calls++];
    if (call.registers != registers || call.more != more) {
      find(
          Kind::bad_instruction, where, call.where,
          fmt::format("warp {} says {} registers, another of its warpgroup {} at {}: setmaxnreg is "
                      "for a whole warpgroup",
                      thread.warp(), registers, call.registers, line_of(call.where).text()));
      give_up();
    }
    if (more ? registers <= warp.registers : registers >= warp.registers) {
      find(Kind::bad_instruction, where, Where(),
           fmt::format("warp {} asks for {} registers a thread, {}, and has {}", thread.warp(),
                       registers, more ? "more" : "fewer", warp.registers));
      give_up();
    }
    const int change = 32 * (registers - warp.registers);
    while (change > budget_.free) {
      budget_.waiting.push_back(thread.number);
      wait("registers (setmaxnreg)", where, ~0u);
    }
    budget_.free -= change;
    warp.registers = registers;
    changed();
    if (!more)
      for (const std::uint16_t number : std::exchange(budget_.waiting, {})) wake(number);
  }
}

/// "; 16 registers a thread are free, ..." for the report of a deadlock.
std::string Block::budget_text() const {
  if (budget_.waiting.empty()) return {};
  std::string text = fmt::format(" of {} registers {} are free, and the warps have",
                                 RegisterBudget::of_all, budget_.free);
  for (std::size_t n = 0; n < budget_.warps.size(); ++n)
    text += fmt::format("{} {}", n == 0 ? "" : ",", budget_.warps[n].registers);
  return text + " a thread;";
}

/// The block's last thread returns.
void Block::end_budget() {
  for (std::size_t n = 0; n < budget_.warps.size(); ++n) {
    const std::vector<RegisterBudget::Call>& calls = budget_.calls[n / 4];
    const std::size_t said = budget_.warps[n].calls;
    if (said == calls.size()) continue;
    find(Kind::bad_instruction, calls[said].where, Where(),
         fmt::format("setmaxnreg is for a whole warpgroup, and warp {} has not come here", n));
    return;
  }
}

void set_registers(int registers, bool more, Site site) {
  const NotTheKernel meanwhile;
  const auto nothing = [](void* const[32], unsigned) {};
  const Block& block = *Block::current();
  if (block.options().device.compute_capability < 90)
    refuse("setmaxnreg wants compute capability 9.0", site);
  if (Block::current()->thread().number / 128 * 128 + 128 > block.size())
    refuse("setmaxnreg is for whole warpgroups of 128 threads", site);
  together("setmaxnreg", ~0u, nullptr, nothing, site);
  Block::current()->set_registers(registers, more, Where(site));
  together("setmaxnreg", ~0u, nullptr, nothing, site);
}

}  // namespace tilewise::emulator
