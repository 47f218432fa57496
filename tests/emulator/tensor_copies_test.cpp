// What a box of a tensor looks like in shared memory, what it costs in traffic, which tensor maps
// there are, and what the report says of an mbarrier that nobody completes.
#include "cuda/emulator/emulator.hpp"
#include "cuda/emulator/hopper.hpp"
#include "measured.hpp"
#include "planted.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace tilewise::tests {
namespace {

using emulator::Arrival;
using emulator::Options;
using emulator::Session;

std::vector<float> counted_floats(std::size_t count) {
  std::vector<float> values(count);
  for (std::size_t n = 0; n < count; ++n) values[n] = static_cast<float>(n + 1);
  return values;
}

/// The box by the definition: every element by itself, zeros outside. A chunk of 16 bytes changes
/// places as cuda/device/swizzle.hpp draws it: rows of w chunks, 8 / w of them side by side.
std::vector<float> expected_box(const Box& box, const std::vector<float>& tensor) {
  std::size_t count = 1;
  for (const std::uint32_t extent : box.box) count *= extent;
  std::vector<float> shared(count);
  const std::size_t columns = box.box[0], chunks = columns / 4;
  const std::size_t span = std::size_t{1} << box.swizzle;  // chunks that change places
  for (std::size_t n = 0; n < count; ++n) {
    std::size_t left = n, offset = 0;
    bool inside = true;
    for (int k = 0; k < 5; ++k) {
      const std::int64_t place = box.at[k] + static_cast<std::int64_t>(left % box.box[k]);
      left /= box.box[k];
      inside = inside && place >= 0 && place < static_cast<std::int64_t>(box.size[k]);
      if (inside) offset += static_cast<std::size_t>(place) * (k == 0 ? 1 : box.stride[k - 1]);
    }
    const std::size_t row = n / columns, chunk = n % columns / 4;
    const std::size_t moved = span == 1 ? chunk : chunk ^ (row * chunks / 8 % span);
    shared[row * columns + moved * 4 + n % 4] = inside ? tensor[offset] : 0;
  }
  return shared;
}

/// For each arrival, and some seeds.
void expect_box(const Box& box, std::size_t elements) {
  const std::vector<float> tensor = counted_floats(elements);
  for (std::uint64_t seed = 1; seed <= 4; ++seed)
    for (const Arrival arrival : {Arrival::early, Arrival::late, Arrival::seeded}) {
      Options options;
      options.seed = seed;
      options.arrival = arrival;
      Session session(options);
      std::vector<float> shared;
      const Status status = load_box(box, tensor, shared);
      ASSERT_TRUE(status.ok()) << status.reason;
      ASSERT_EQ(shared, expected_box(box, tensor));
    }
}

TEST(TensorCopies, SwizzleAsTheBuildingBlocksDo) {
  for (const int swizzle : {0, 1, 2, 3}) {
    SCOPED_TRACE(swizzle);
    Box box;
    box.size[0] = 64, box.size[1] = 40;
    box.stride[0] = 68;
    box.box[0] = swizzle == 0 ? 32 : 4u << swizzle;
    box.box[1] = 24;
    for (const int row : {0, 5, 30})
      for (const int column : {0, 8, 40}) {
        box.at[0] = column, box.at[1] = row;
        expect_box(box, 68 * 40);
      }
  }
}

TEST(TensorCopies, AreZeroOutside) {
  Box box;
  box.size[0] = 36, box.size[1] = 20;
  box.stride[0] = 36;
  box.box[0] = 32, box.box[1] = 16;
  box.swizzle = 3;
  for (const int column : {-40, -31, -3, 0, 5, 35, 36, 1000})
    for (const int row : {-17, -5, 0, 7, 19, 20, 1 << 30}) {
      box.at[0] = column, box.at[1] = row;
      expect_box(box, 36 * 20);
    }
}

TEST(TensorCopies, OfThreeToFiveDimensions) {
  Box box;
  const std::uint64_t size[] = {16, 6, 3, 4, 2}, stride[] = {16 * 3 + 4, 16, 400, 1700};
  const std::uint32_t extent[] = {16, 4, 2, 3, 2};
  for (int n = 0; n < 5; ++n) box.size[n] = size[n], box.box[n] = extent[n];
  for (int n = 0; n < 4; ++n) box.stride[n] = stride[n];
  box.dimensions = 5;
  box.swizzle = 2;
  for (const int last : {-1, 0, 1}) {
    box.at[1] = 3, box.at[2] = last, box.at[3] = 2, box.at[4] = last;
    expect_box(box, 1700 * 2);
  }
  box.dimensions = 4;
  box.size[4] = box.box[4] = 1;
  box.at[4] = 0;
  expect_box(box, 1700 * 2);
  box.dimensions = 3;
  box.size[3] = box.box[3] = 1;
  box.at[3] = 0;
  expect_box(box, 1700 * 2);
}

TEST(TensorCopies, CountTheBytesInside) {
  Box box;
  box.size[0] = 64, box.size[1] = 40;
  box.stride[0] = 64;
  box.box[0] = 32, box.box[1] = 16;
  box.at[0] = 48, box.at[1] = 36;  // 16 columns of 4 rows
  Session session;
  std::vector<float> shared;
  ASSERT_TRUE(load_box(box, counted_floats(64 * 40), shared).ok());
  const emulator::Counts& counts = session.report().counts;
  EXPECT_EQ(counts.traffic.at("in").bytes_loaded, 4 * 64);
  EXPECT_EQ(counts.traffic.at("in").sectors_loaded, 4 * 2);
  EXPECT_EQ(counts.async_bytes, 4 * 64);
}

TEST(TensorCopies, CountWhatIsStored) {
  for (const Planted& bug : tensor_copy_bugs()) {
    const std::string name = bug.name;
    if (name != "not_fenced" && name != "buffer_still_read") continue;
    Session session;
    ASSERT_TRUE(bug.run(false).right);
    const emulator::Traffic& out = session.report().counts.traffic.at("out");
    // A tensor of 64 x 40 floats, half of whose last boxes is outside; or sums of three blocks.
    EXPECT_EQ(out.bytes_stored, name == "not_fenced" ? 64 * 40 * 4 : 0);
    EXPECT_EQ(out.sectors_stored, name == "not_fenced" ? 64 * 40 * 4 / 32 : 0);
    EXPECT_EQ(out.atomics, name == "not_fenced" ? 0 : 3 * 4 * 64);
  }
}

TEST(TensorCopies, OutsideOfTheMemoryAreFound) {
  Box box;
  box.size[0] = 64, box.size[1] = 41;  // one row more than there is
  box.stride[0] = 64;
  box.box[0] = 32, box.box[1] = 16;
  box.at[1] = 30;
  Session session;
  std::vector<float> shared;
  EXPECT_FALSE(load_box(box, counted_floats(64 * 40), shared).ok());
  ASSERT_EQ(session.report().findings.size(), 1u);
  EXPECT_EQ(session.report().findings[0].kind, emulator::Kind::out_of_bounds);
  EXPECT_NE(session.report().text().find("end of in"), std::string::npos);
}

// ------------------------------------------------------------------------------------------- maps

struct Described {
  int dimensions = 2, swizzle = 3;
  std::size_t element = 2, misplaced = 0;
  std::uint64_t size[5] = {64, 100, 1, 1, 1}, stride[4] = {64, 0, 0, 0};
  std::uint32_t box[5] = {64, 128, 1, 1, 1};

  std::string refused() const {
    alignas(64) static unsigned char memory[64], map[128];
    return std::string(emulator::describe_tensor(map, memory + misplaced, element, dimensions, size,
                                                 stride, box, swizzle)
                           .reason);
  }
};

TEST(TensorMaps, AreRefusedAsTheDriverDoes) {
  EXPECT_EQ(Described{}.refused(), "");
  const auto expect = [](const char* text, auto change) {
    Described it;
    change(it);
    EXPECT_NE(it.refused().find(text), std::string::npos) << text << ": " << it.refused();
  };
  expect("1 to 5", [](Described& it) { it.dimensions = 6; });
  expect("1 to 5", [](Described& it) { it.dimensions = 0; });
  expect("multiple of 16", [](Described& it) { it.misplaced = 8; });
  expect("1 to 2^32", [](Described& it) { it.size[1] = 0; });
  expect("1 to 2^32", [](Described& it) { it.size[1] = (std::uint64_t{1} << 32) + 1; });
  expect("2^40", [](Described& it) { it.stride[0] = 65; });
  expect("2^40", [](Described& it) { it.stride[0] = std::uint64_t{1} << 39; });
  expect("2^40", [](Described& it) { it.stride[0] = std::numeric_limits<std::uint64_t>::max(); });
  expect("1 to 256", [](Described& it) { it.box[1] = 257; });
  expect("1 to 256", [](Described& it) { it.box[1] = 0; });
  expect("multiple of 16", [](Described& it) { it.box[0] = 4; });
  expect("at most the swizzle's 128", [](Described& it) { it.box[0] = 72; });
  expect("at most the swizzle's 64", [](Described& it) { it.swizzle = 2; });
  Described widest;
  widest.size[1] = std::uint64_t{1} << 32;
  widest.stride[0] = (std::uint64_t{1} << 39) - 8;
  widest.box[1] = 256;
  EXPECT_EQ(widest.refused(), "");
}

// -------------------------------------------------------------------------------------- mbarriers

std::string found_in(const char* name) {
  for (const auto& list : {mbarrier_bugs(), tensor_copy_bugs()})
    for (const Planted& bug : list)
      if (std::string(bug.name) == name) {
        Options options;
        options.arrival = Arrival::late;
        Session session(options);
        bug.run(true);
        return session.report().text();
      }
  return "no such bug";
}

TEST(Mbarriers, SayWhatAPhaseWaitsFor) {
  EXPECT_NE(found_in("announced_too_many")
                .find("the phase of parity 0 of the mbarrier that is shared memory at offset 1024 "
                      "to end, of which 0 of 1 arrivals and 16 bytes are missing"),
            std::string::npos)
      << found_in("announced_too_many");
  EXPECT_NE(found_in("too_many_arrivals").find("of which 1 of 65 arrivals and 0 bytes are missing"),
            std::string::npos)
      << found_in("too_many_arrivals");
}

TEST(Mbarriers, AreHoppers) {
  for (const auto& list : {mbarrier_bugs(), tensor_copy_bugs()})
    for (const Planted& bug : list) {
      if (std::string(bug.name) == "two_stores" || std::string(bug.name) == "buffer_still_read")
        continue;
      Options options;
      options.device = emulator::Device::a100();
      Session session(options);
      EXPECT_FALSE(bug.run(false).status.ok());
      EXPECT_NE(session.report().text().find("9.0"), std::string::npos) << session.report().text();
    }
}

}  // namespace
}  // namespace tilewise::tests
