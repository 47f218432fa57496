#include "cuda/emulator/warpgroup_products.hpp"

#include "cuda/emulator/block.hpp"
#include "cuda/emulator/hopper.hpp"
#include "cuda/emulator/matrix_operands.hpp"
#include "cuda/emulator/services.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

namespace tilewise::emulator {
namespace {

constexpr int rows = 64, depth = 16;
constexpr std::uint32_t poison = 0x7fa5a5a5;  // a signalling NaN

struct Place {
  int row, column;
};

/// Of a thread's accumulator: a warp has 16 rows, and eight columns are as mma.sync has them.
Place accumulator_at(unsigned thread, int number) {
  const auto lane = static_cast<int>(thread % 32);
  return {static_cast<int>(thread / 32) * 16 + lane / 4 + number / 2 % 2 * 8,
          number / 4 * 8 + lane % 4 * 2 + number % 2};
}
/// In a matrix whose rows follow each other.
std::size_t place_of(const Place& at, int columns) {
  return static_cast<std::size_t>(at.row) * static_cast<std::size_t>(columns) +
         static_cast<std::size_t>(at.column);
}

double number_of(std::uint16_t bits, Operand operand) {
  return static_cast<double>(operand == Operand::f16 ? float_of_f16(bits) : float_of_bf16(bits));
}

/// a, 64 x 16, of the registers of all.
std::vector<double> gathered(const ProductOperands* const (&operands)[threads_of_warpgroup]) {
  std::vector<double> a(rows * depth);
  for (unsigned t = 0; t < threads_of_warpgroup; ++t) {
    const unsigned lane = t % 32;
    for (unsigned n = 0; n < 4; ++n)
      for (unsigned half = 0; half < 2; ++half) {
        const unsigned row = t / 32 * 16 + lane / 4 + n % 2 * 8;
        const unsigned column = n / 2 * 8 + lane % 4 * 2 + half;
        const auto bits = static_cast<std::uint16_t>(operands[t]->a[n] >> 16 * half);
        a[row * depth + column] = number_of(bits, operands[t]->operand);
      }
  }
  return a;
}

/// Chunks of eight numbers, `chunks` a row, as a dense matrix; or its transpose.
std::vector<double> numbers(const std::vector<const char*>& places, int chunks, bool transposed,
                            Operand operand) {
  const auto columns = static_cast<std::size_t>(chunks) * 8;
  const std::size_t height = places.size() / static_cast<std::size_t>(chunks);
  std::vector<double> matrix(places.size() * 8);
  for (std::size_t n = 0; n < places.size(); ++n) {
    std::uint16_t bits[8];
    std::memcpy(bits, places[n], sizeof bits);
    const std::size_t row = n * 8 / columns, column = n * 8 % columns;
    for (std::size_t i = 0; i < 8; ++i)
      matrix[transposed ? (column + i) * height + row : row * columns + column + i] =
          number_of(bits[i], operand);
  }
  return matrix;
}

void execute(Product& product) {
  if (product.done) return;
  const ProductOperands& form = product.operands;
  if (!product.a_rows.empty()) product.a = numbers(product.a_rows, 2, false, form.operand);
  const std::vector<double> b = numbers(product.b_rows, form.b_has_rows_of_n ? form.columns / 8 : 2,
                                        !form.b_has_rows_of_n, form.operand);
  multiply(product.d->value.data(), product.a.data(), b.data(), form.columns, form.keep);
  product.done = true;
}

/// All up to a number, in order: on one accumulator they are.
void execute(Warpgroup& group, std::uint64_t number) {
  for (Product& product : group.under_way)
    if (product.number <= number) execute(product);
}

std::uintptr_t address_of(const void* pointer) {
  return reinterpret_cast<std::uintptr_t>(pointer);
}

void find_extent(ProductsOfThread& products) {
  products.in_use_begin = ~std::uintptr_t{0};
  products.in_use_end = 0;
  for (const RegistersInUse& registers : products.in_use) {
    products.in_use_begin = std::min(products.in_use_begin, registers.begin);
    products.in_use_end = std::max(products.in_use_end, registers.end);
  }
}

}  // namespace

// ------------------------------------------------------------------------------------ the operands

/// Chunks of 16 bytes in shared memory, row by row, where the descriptor says they are.
std::vector<const char*> Block::operand_at(const char* name, std::uint64_t descriptor,
                                           bool rows_of_n, int height, int chunks, Where where) {
  const MatrixPlace place = place_of(descriptor);
  if (place.base_offset != 0) {
    find(
        Kind::bad_instruction, where, Where(),
        fmt::format("wgmma: the descriptor of {} has a base offset, {}; here a matrix begins where "
                    "the swizzle's pattern does",
                    name, place.base_offset));
    give_up();
  }
  if (!is_aligned(place)) {
    find(Kind::misaligned, where, Where(),
         fmt::format(
             "wgmma: {} begins at offset {} of shared memory, {} more than a multiple of {}: "
             "a swizzle of {} bytes repeats in as many",
             name, place.address, place.address % (128u * static_cast<unsigned>(place.chunks)),
             128 * place.chunks, 16 * place.chunks));
    give_up();
  }
  std::vector<const char*> all;
  all.reserve(static_cast<std::size_t>(height) * static_cast<std::size_t>(chunks));
  for (int row = 0; row < height; ++row)
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const std::uint32_t offset = chunk_address(place, rows_of_n, row, chunk);
      const std::uintptr_t address = shared_address(offset);
      if (address == 0 || shared_address(offset + 15) != address + 15) {
        find(
            Kind::out_of_bounds, where, Where(),
            fmt::format("wgmma: {} of {} is at offset {} of shared memory, which has {} bytes (the "
                        "descriptor: address {}, leading distance {}, stride {}, swizzle of {} "
                        "bytes)",
                        rows_of_n ? fmt::format("k {}, n {}..", row, chunk * 8)
                                  : fmt::format("row {}, k {}..", row, chunk * 8),
                        name, offset, launch().shared_bytes, place.address, place.leading,
                        place.stride, place.chunks > 1 ? 16 * place.chunks : 0));
        give_up();
      }
      all.push_back(reinterpret_cast<const char*>(address));
    }
  return all;
}

namespace {

std::vector<ByteRange> ranges_of(const std::vector<const char*>& chunks, std::size_t begin,
                                 std::size_t end) {
  std::vector<ByteRange> ranges;
  for (std::size_t n = begin; n < end; ++n) ranges.push_back({address_of(chunks[n]), 16});
  return ranges;
}

/// What all operands of a warpgroup have in common, named where they do not; null: they do.
const char* difference(const ProductOperands& a, const ProductOperands& b) {
  if (a.columns != b.columns || a.operand != b.operand) return "another shape or format";
  if ((a.a == nullptr) != (b.a == nullptr)) return "the first operand elsewhere";
  if (a.b_has_rows_of_n != b.b_has_rows_of_n) return "the second operand the other way round";
  if (a.keep != b.keep) return "another word on whether the accumulators count";
  if (a.a == nullptr && a.a_descriptor != b.a_descriptor)
    return "another descriptor of the first operand";
  if (a.b_descriptor != b.b_descriptor) return "another descriptor of the second operand";
  return nullptr;
}

}  // namespace

// ------------------------------------------------------------------------------------ instructions

void Block::multiply(const ProductOperands& mine, Where where) {
  Thread& thread = *running_;
  ++thread.ticks;
  const unsigned first = thread.number / threads_of_warpgroup * threads_of_warpgroup;
  if (first + threads_of_warpgroup > size() || options().device.compute_capability < 90) {
    find(
        Kind::bad_instruction, where, Where(),
        fmt::format("wgmma wants compute capability 9.0 and all of a warpgroup of 128 threads; the "
                    "block has {} threads",
                    size()));
    give_up();
  }
  if (mine.columns < 8 || mine.columns > 256 || mine.columns % 8 != 0) {
    find(Kind::bad_instruction, where, Where(),
         fmt::format("wgmma of {} columns: there are multiples of 8 up to 256", mine.columns));
    give_up();
  }
  Warpgroup& group = warpgroups_[thread.number / threads_of_warpgroup];
  if (group.arrived == 0) {
    group.where = where;
  } else if (!same_line(group.where, where)) {
    find(Kind::divergent_warp, where, group.where,
         fmt::format(
             "thread {} comes to wgmma here, others of its warpgroup at {}: all must come to "
             "the same one",
             thread.number, line_of(group.where).text()));
    give_up();
  }
  group.operands[thread.number % threads_of_warpgroup] = &mine;
  if (++group.arrived < static_cast<int>(threads_of_warpgroup)) {
    wait("the rest of its warpgroup at wgmma", where, ~0u);
    return;
  }
  issue(group, first, where);
  group.arrived = 0;
  std::fill(std::begin(group.operands), std::end(group.operands), nullptr);
  std::int64_t ticks = 0;
  for (unsigned t = first; t < first + threads_of_warpgroup; ++t)
    ticks = std::max(ticks, threads_[t].ticks);
  const unsigned from = static_cast<unsigned>(random_()) % 4 * 32;
  for (unsigned n = 0; n < threads_of_warpgroup; ++n) {
    Thread& other = threads_[first + (from + n) % threads_of_warpgroup];
    other.ticks = ticks;
    if (&other != &thread) wake(other.number);
  }
  let_others_go_on();
}

/// What each of some threads knows.
Clock Block::known_to_all(unsigned first, unsigned count) const {
  Clock knows = threads_[first].clock;
  for (unsigned t = 1; t < count; ++t) {
    const Clock& clock = threads_[first + t].clock;
    for (std::size_t n = 0; n < knows.size(); ++n) knows[n] = std::min(knows[n], clock[n]);
  }
  return knows;
}

void Block::issue(Warpgroup& group, unsigned first, Where where) {
  const ProductOperands& form = *group.operands[0];
  for (unsigned t = 1; t < threads_of_warpgroup; ++t)
    if (const char* const other = difference(form, *group.operands[t])) {
      find(Kind::divergent_warp, where, Where(),
           fmt::format("thread {} brings {} to wgmma than thread {} of its warpgroup", first + t,
                       other, first));
      give_up();
    }
  check_registers(group, first, where);

  Product product;
  product.number = ++group.issued;
  product.where = where;
  product.operands = form;
  if (form.a == nullptr)
    product.a_rows = operand_at("a", form.a_descriptor, false, rows, 2, where);
  else
    product.a = gathered(group.operands);
  product.b_rows = form.b_has_rows_of_n
                       ? operand_at("b", form.b_descriptor, true, depth, form.columns / 8, where)
                       : operand_at("b", form.b_descriptor, false, form.columns, 2, where);
  if (!group.has_agent) {
    group.agent = new_agent();
    group.has_agent = true;
  }
  // A warp reads its own 16 rows of a, and all of b: what is there must be known to its lanes.
  Clock all_know;
  for (unsigned warp = 0; warp < threads_of_warpgroup / 32; ++warp) {
    const Clock knows = known_to_all(first + 32 * warp, 32);
    if (form.a == nullptr)
      product.reads.push_back(begin_async_read(
          "wgmma", ranges_of(product.a_rows, warp * 32, warp * 32 + 32), where, &knows));
    if (warp == 0) all_know = knows;
    for (std::size_t n = 0; n < knows.size(); ++n) all_know[n] = std::min(all_know[n], knows[n]);
  }
  product.reads.push_back(begin_async_read(
      "wgmma", ranges_of(product.b_rows, 0, product.b_rows.size()), where, &all_know));
  product.knows = std::move(all_know);

  changed();
  product.d = accumulators(group, first, where, product.number);
  ++report.counts.wgmma;
  report.counts.mma_flops += std::int64_t{2} * rows * form.columns * depth;
  group.under_way.push_back(std::move(product));
  const Arrival arrival = options().arrival;
  if (arrival == Arrival::early || (arrival == Arrival::seeded && (random_() & 1) != 0))
    execute(group, group.issued);
}

/// Those of the wgmma under way, or new ones. From here on they are the wgmma's, as are register
/// operands.
std::shared_ptr<Accumulators> Block::accumulators(Warpgroup& group, unsigned first, Where where,
                                                  std::uint64_t number) {
  const ProductOperands& form = *group.operands[0];
  const int count = form.columns / 2;
  RegistersInUse* known[threads_of_warpgroup];
  bool one = true;
  for (unsigned t = 0; t < threads_of_warpgroup; ++t) {
    known[t] = nullptr;
    for (RegistersInUse& registers : threads_[first + t].products.in_use)
      if (registers.d != nullptr && registers.begin == address_of(group.operands[t]->d))
        known[t] = &registers;
    one = one && known[t] != nullptr && known[t]->d == known[0]->d;
  }
  std::shared_ptr<Accumulators> d;
  if (one) {
    d = known[0]->d;
  } else {
    // Some warps may have waited, and others not: each thread's are where they are.
    d = std::make_shared<Accumulators>();
    d->columns = form.columns;
    d->value.resize(static_cast<std::size_t>(rows) * static_cast<std::size_t>(form.columns));
    execute(group, number - 1);
    for (unsigned t = 0; t < threads_of_warpgroup; ++t)
      for (int n = 0; n < count; ++n) {
        const Place at = accumulator_at(t, n);
        const std::size_t place = place_of(at, form.columns);
        d->value[place] = known[t] != nullptr ? known[t]->d->value[place] : group.operands[t]->d[n];
      }
  }
  for (unsigned t = 0; t < threads_of_warpgroup; ++t) {
    const ProductOperands& mine = *group.operands[t];
    ProductsOfThread& products = threads_[first + t].products;
    products.issued = number;
    products.issued_at = where;
    if (known[t] == nullptr) {
      for (int n = 0; n < count; ++n) std::memcpy(mine.d + n, &poison, sizeof poison);
      const std::uintptr_t begin = address_of(mine.d);
      products.in_use.push_back(
          {begin, begin + static_cast<std::size_t>(count) * 4, where, number, d, {}, false});
    } else {
      known[t]->where = where;
      known[t]->last = number;
      known[t]->d = d;
    }
    if (mine.a != nullptr) {
      const std::uintptr_t begin = address_of(mine.a);
      RegistersInUse registers{begin, begin + 16, where, number, nullptr, {}, false};
      std::copy_n(mine.a, 4, registers.copy);
      products.in_use.push_back(std::move(registers));
    }
    find_extent(products);
  }
  return d;
}

namespace {

/// Accesses that nobody saw leave their mark.
bool is_as_left(const RegistersInUse& registers) {
  for (std::uintptr_t at = registers.begin; at < registers.end; at += 4) {
    std::uint32_t bits;
    std::memcpy(&bits, reinterpret_cast<const void*>(at), sizeof bits);
    if (bits != (registers.d != nullptr ? poison : registers.copy[(at - registers.begin) / 4]))
      return false;
  }
  return true;
}

void deliver(const RegistersInUse& registers, unsigned thread) {
  auto* const d = reinterpret_cast<float*>(registers.begin);
  const auto count = static_cast<int>((registers.end - registers.begin) / 4);
  for (int n = 0; n < count; ++n) {
    const Place at = accumulator_at(thread, n);
    d[n] = registers.d->value[place_of(at, registers.d->columns)];
  }
}

}  // namespace

void Block::fence_products() {
  ProductsOfThread& products = running_->products;
  ++running_->ticks;
  ++products.fences;
  // A moment as good as others; 128 threads come by.
  if (options().arrival != Arrival::seeded || random_() % 256 != 0) return;
  Warpgroup& group = warpgroups_[running_->number / threads_of_warpgroup];
  execute(group, group.issued);
}

void Block::commit_products() {
  ProductsOfThread& products = running_->products;
  ++running_->ticks;
  products.committed = products.issued;
  products.groups.push_back(products.issued);
}

void Block::wait_for_products(int groups_that_may_stay, Where where) {
  Thread& thread = *running_;
  ProductsOfThread& products = thread.products;
  ++thread.ticks;
  std::uint64_t until = 0;
  while (static_cast<int>(products.groups.size()) > groups_that_may_stay) {
    until = products.groups.front();
    products.groups.pop_front();
  }
  if (until == 0) return;
  Warpgroup& group = warpgroups_[thread.number / threads_of_warpgroup];
  if (until > group.waited) {
    execute(group, until);
    group.waited = until;
    while (!group.under_way.empty() && group.under_way.front().number <= until) {
      const Product& product = group.under_way.front();
      Clock& clock = group.under_way.front().knows;
      clock.resize(thread.clock.size());
      clock[group.agent] = static_cast<std::uint32_t>(product.number);
      for (const AsyncAccesses::Id read : product.reads) end_async_read(read, group.agent, clock);
      group.under_way.pop_front();
    }
  }
  std::uint32_t& known = thread.clock[group.agent];
  known = std::max(known, static_cast<std::uint32_t>(until));
  for (const RegistersInUse& registers : products.in_use) {
    if (registers.last > until) continue;
    // Of an array whose function has returned, the place is somebody else's by now.
    const bool as_left = is_as_left(registers);
    if (!registers.told && !as_left)
      find_once(Kind::not_waited_for, where, registers.where, [&] {
        return fmt::format("thread {} has changed {} of the wgmma at {} while it was under way",
                           thread.number,
                           registers.d != nullptr ? "an accumulator" : "a register operand",
                           line_of(registers.where).text());
      });
    if (registers.d != nullptr && as_left) deliver(registers, thread.number % threads_of_warpgroup);
  }
  std::erase_if(products.in_use,
                [&](const RegistersInUse& registers) { return registers.last <= until; });
  find_extent(products);
}

/// The running thread returns.
void Block::end_products() {
  const ProductsOfThread& products = running_->products;
  if (products.in_use.empty()) return;
  const bool committed = products.committed == products.issued;
  find_once(Kind::not_waited_for, products.issued_at, Where(), [&] {
    return fmt::format("thread {} returns, and this wgmma has not been {}", running_->number,
                       committed ? "waited for" : "committed to a group, nor waited for");
  });
}

/// Who is missing where some of a warpgroup wait for wgmma: for the report of a deadlock.
std::string Block::products_text() const {
  std::string text;
  for (std::size_t n = 0; n < warpgroups_.size(); ++n) {
    const Warpgroup& group = warpgroups_[n];
    if (group.arrived == 0) continue;
    unsigned missing = 0;
    while (group.operands[missing] != nullptr) ++missing;
    text += fmt::format(" {} of warpgroup {} have come to wgmma, and thread {} has not;",
                        group.arrived, n, n * threads_of_warpgroup + missing);
  }
  return text;
}

// ------------------------------------------------------------------------------- what kernels call

namespace {

/// Instructions of warps, not of a warpgroup: their lanes come together.
void lanes_come(const char* name, Site site) {
  together(
      name, ~0u, nullptr, [](void* const[32], unsigned) {}, site);
}

}  // namespace

void wgmma(float* d, int columns, const std::uint32_t* a, std::uint64_t a_descriptor,
           std::uint64_t b_descriptor, bool b_has_rows_of_n, bool keep, Operand operand,
           Site site) {
  const NotTheKernel meanwhile;
  const ProductOperands mine{d,    a,      a_descriptor, b_descriptor, columns, b_has_rows_of_n,
                             keep, operand};
  Block::current()->multiply(mine, Where(site));
}

void wgmma_fence(Site site) {
  const NotTheKernel meanwhile;
  lanes_come("wgmma.fence", site);
  Block::current()->fence_products();
}

void wgmma_commit(Site site) {
  const NotTheKernel meanwhile;
  lanes_come("wgmma.commit_group", site);
  Block::current()->commit_products();
}

void wgmma_wait(int groups_that_may_stay, Site site) {
  const NotTheKernel meanwhile;
  lanes_come("wgmma.wait_group", site);
  Block::current()->wait_for_products(groups_that_may_stay, Where(site));
}

}  // namespace tilewise::emulator
