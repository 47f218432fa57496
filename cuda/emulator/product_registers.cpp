// The registers of wgmma: arrays on the stacks of a warpgroup's threads, each access to which is
// looked at from a thread's first wgmma_fence() on.
#include "cuda/emulator/warpgroup_products.hpp"

#include "cuda/emulator/block.hpp"

#include <fmt/format.h>

namespace tilewise::emulator {
namespace {

std::uintptr_t address_of(const void* pointer) {
  return reinterpret_cast<std::uintptr_t>(pointer);
}

}  // namespace

void Block::touch_registers(std::uintptr_t address, std::size_t bytes, Access what, Where where) {
  ProductsOfThread& products = running_->products;
  const std::uintptr_t top = running_->stack_end;
  if (address + bytes > top) return;
  const std::size_t first = (top - address - bytes) / 4, last = (top - address - 1) / 4;
  if (last >= products.marks.size()) products.marks.resize(last + 64);
  for (std::size_t n = first; n <= last; ++n) {
    ProductsOfThread::Mark& mark = products.marks[n];
    if (what != Access::read || mark.written != products.fences) mark.where = where;
    mark.touched = products.fences;
    if (what != Access::read) mark.written = products.fences;
  }
  if (address >= products.in_use_end || address + bytes <= products.in_use_begin) return;
  for (RegistersInUse& registers : products.in_use) {
    if (address >= registers.end || address + bytes <= registers.begin) continue;
    if (registers.d == nullptr && what == Access::read) continue;
    registers.told = true;
    find_once(Kind::not_waited_for, where, registers.where, [&] {
      return fmt::format("thread {} {} {} of the wgmma at {}, which has not been waited for",
                         running_->number, verb(what),
                         registers.d != nullptr ? "an accumulator" : "a register operand",
                         line_of(registers.where).text());
    });
  }
}

/// The registers of all threads: are they registers, fenced, and in nobody else's use?
void Block::check_registers(const Warpgroup& group, unsigned first, Where where) {
  const auto in_stack = [](const Thread& thread, const void* begin, std::size_t bytes) {
    return address_of(begin) >= thread.stack_begin && address_of(begin) + bytes <= thread.stack_end;
  };
  for (unsigned t = 0; t < threads_of_warpgroup; ++t) {
    const Thread& thread = threads_[first + t];
    const ProductOperands& mine = *group.operands[t];
    const std::size_t d_bytes = static_cast<std::size_t>(mine.columns) * 2;
    if (!in_stack(thread, mine.d, d_bytes) ||
        (mine.a != nullptr && !in_stack(thread, mine.a, 16))) {
      find(Kind::bad_instruction, where, Where(),
           fmt::format("thread {}: wgmma's accumulators and its first operand, unless a descriptor "
                       "names one, are registers: local arrays",
                       thread.number));
      give_up();
    }
    const ProductsOfThread& products = thread.products;
    if (products.fences == 0)
      find_once(Kind::not_fenced, where, Where(), [&] {
        return fmt::format(
            "thread {} has never called wgmma_fence(), which stands before the first wgmma",
            thread.number);
      });
    const auto check = [&](const void* begin, std::size_t bytes, bool accumulators) {
      const std::size_t lowest = (thread.stack_end - address_of(begin) - 1) / 4;
      for (std::size_t n = lowest + 1 - bytes / 4; n <= lowest && n < products.marks.size(); ++n) {
        const ProductsOfThread::Mark& mark = products.marks[n];
        const bool written = mark.written == products.fences;
        if (products.fences == 0 || !(written || (accumulators && mark.touched == products.fences)))
          continue;
        const Where there = mark.where;
        find_once(Kind::not_fenced, where, there, [&] {
          return fmt::format(
              "thread {} {} {} of this wgmma at {}; no wgmma_fence() of that thread stands between",
              thread.number, written ? "wrote" : "read",
              accumulators ? "an accumulator" : "a register operand", line_of(there).text());
        });
        return;
      }
    };
    check(mine.d, d_bytes, true);
    if (mine.a != nullptr) check(mine.a, 16, false);

    const auto overlaps = [](const RegistersInUse& registers, const void* begin,
                             std::size_t bytes) {
      return address_of(begin) < registers.end && address_of(begin) + bytes > registers.begin;
    };
    for (const RegistersInUse& registers : products.in_use) {
      const bool is_d = registers.d != nullptr;
      const bool same = is_d && registers.begin == address_of(mine.d) &&
                        registers.end == registers.begin + d_bytes;
      const char* what = nullptr;
      if (!same && overlaps(registers, mine.d, d_bytes))
        what = is_d ? "accumulators of another shape" : "register operands";
      else if (is_d && mine.a != nullptr && overlaps(registers, mine.a, 16))
        what = "accumulators, as an operand";
      if (what == nullptr) continue;
      find(Kind::not_waited_for, where, registers.where,
           fmt::format("thread {} brings registers that the wgmma at {} has as {}; it has not been "
                       "waited for",
                       thread.number, line_of(registers.where).text(), what));
      give_up();
    }
  }
}

}  // namespace tilewise::emulator
