#include "cuda/emulator/requests.hpp"

#include <algorithm>
#include <array>
#include <iterator>
#include <vector>

namespace tilewise::emulator {

Banks banks_of(const Request& request, std::size_t bytes) {
  constexpr unsigned banks = 32;
  const unsigned parts = bytes <= 4 ? 1 : bytes <= 8 ? 2 : 4;
  const unsigned lanes = 32 / parts;
  Banks result;
  result.requests = 1;
  for (unsigned part = 0; part < parts; ++part) {
    // Different words of each bank; the same word is read for all lanes at once.
    std::array<std::vector<std::uint64_t>, banks> words;
    std::size_t passes = 0, distinct = 0;
    for (unsigned lane = part * lanes; lane < (part + 1) * lanes; ++lane) {
      if ((request.lanes >> lane & 1) == 0) continue;
      const std::uint64_t first = request.address[lane] / 4;
      const std::uint64_t last = (request.address[lane] + bytes - 1) / 4;
      for (std::uint64_t word = first; word <= last; ++word) {
        std::vector<std::uint64_t>& bank = words[word % banks];
        if (std::find(bank.begin(), bank.end(), word) != bank.end()) continue;
        bank.push_back(word);
        passes = std::max(passes, bank.size());
        ++distinct;
      }
    }
    result.passes += static_cast<std::int64_t>(passes);
    result.least_passes += static_cast<std::int64_t>((distinct + banks - 1) / banks);
  }
  return result;
}

std::int64_t sectors_of(const Request& request, std::size_t bytes) {
  constexpr std::uint64_t sector = 32;
  std::array<std::uint64_t, 64> seen;
  std::size_t count = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((request.lanes >> lane & 1) == 0) continue;
    const std::uint64_t last = (request.address[lane] + bytes - 1) / sector;
    for (std::uint64_t at = request.address[lane] / sector; at <= last; ++at) {
      const auto end = seen.begin() + static_cast<std::ptrdiff_t>(count);
      if (std::find(seen.begin(), end, at) == end && count < seen.size()) seen[count++] = at;
    }
  }
  return static_cast<std::int64_t>(count);
}

Requests::Instruction& Requests::instruction_of(const Kind& kind) {
  Instruction*& recent =
      recent_[(kind.where.bits() * 0x9e3779b97f4a7c15u >> 56 ^ static_cast<unsigned>(kind.memory)) %
              std::size(recent_)];
  if (recent != nullptr && recent->kind == kind) return *recent;
  for (Instruction& known : instructions_)
    if (known.kind == kind) return *(recent = &known);
  instructions_.emplace_back().kind = kind;
  return *(recent = &instructions_.back());
}

Requests::Added Requests::add(const Kind& kind, unsigned lane, std::uint64_t address,
                              std::uint32_t all_lanes) {
  Instruction& instruction = instruction_of(kind);
  const std::size_t ahead = instruction.next[lane]++ - instruction.first;
  while (instruction.open.size() <= ahead) instruction.open.emplace_back();
  Request& request = instruction.open[ahead];
  request.lanes |= 1u << lane;
  request.address[lane] = address;
  // Every lane has been by the requests before this one: a whole one is the first.
  if (request.lanes != all_lanes) return {nullptr, ahead};
  whole_ = request;
  instruction.open.pop_front();
  ++instruction.first;
  return {&whole_, ahead};
}

}  // namespace tilewise::emulator
