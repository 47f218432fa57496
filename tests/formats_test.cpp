// Tensor files: what is written is read back, what NumPy wrote is read, and nothing that a broken
// file says is believed. Under the sanitizers the damaged files below are the real test.
#include "oracle/formats/formats.hpp"

#include <gtest/gtest.h>

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <utility>

namespace {

using namespace std::string_literals;
using tilewise::DType;
using tilewise::formats::Array;
using tilewise::formats::Arrays;
using tilewise::formats::FileError;
using tilewise::formats::Metadata;
using tilewise::formats::parse_npy;
using tilewise::formats::parse_safetensors;
using tilewise::formats::read_arrays;
using tilewise::formats::read_npy;
using tilewise::formats::read_safetensors;
using tilewise::formats::Result;
using tilewise::formats::Safetensors;
using tilewise::formats::write_npy;
using tilewise::formats::write_safetensors;

constexpr DType every_dtype[] = {DType::f64,  DType::f32, DType::f16, DType::bf16,   DType::e4m3,
                                 DType::e5m2, DType::i64, DType::i32, DType::boolean};

/// A directory of this test's own, removed at its end.
class FormatsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    directory_ = std::filesystem::path(::testing::TempDir()) /
                 ("tilewise_formats_"s + test->name() + "_" + std::to_string(getpid()));
    std::filesystem::create_directories(directory_);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::filesystem::path path(const std::string& name) const { return directory_ / name; }

  std::filesystem::path write(const std::string& name, const std::string& text) const {
    std::ofstream(path(name), std::ios::binary) << text;
    return path(name);
  }

 private:
  std::filesystem::path directory_;
};

/// An array whose bytes differ from each other (a boolean's are 0 and 1).
Array example(DType dtype, std::vector<std::int64_t> shape) {
  Array array{dtype, std::move(shape), {}};
  array.bytes.resize(static_cast<std::size_t>(array.elements()) * tilewise::size_of(dtype));
  unsigned value = 1;
  for (std::byte& byte : array.bytes) {
    byte = static_cast<std::byte>(dtype == DType::boolean ? value % 3 == 0 : value % 251);
    ++value;
  }
  return array;
}

template <class T>
Array array_of(DType dtype, std::vector<std::int64_t> shape, const std::vector<T>& values) {
  Array array{dtype, std::move(shape), std::vector<std::byte>(values.size() * sizeof(T))};
  std::memcpy(array.bytes.data(), values.data(), array.bytes.size());
  return array;
}

std::vector<double> values_of(Array array) {
  const tilewise::TensorView view = array.view();
  std::vector<double> values;
  for (std::int64_t i = 0; i < view.elements(); ++i)
    values.push_back(tilewise::load(view.dtype, view.at(i)));
  return values;
}

std::string contents(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

template <class T>
std::string error_of(const Result<T>& result) {
  const auto* error = std::get_if<FileError>(&result);
  return error != nullptr ? error->message : "";
}

template <class T>
T value_of(Result<T> result) {
  EXPECT_EQ(error_of(result), "");
  return std::holds_alternative<T>(result) ? std::get<T>(std::move(result)) : T{};
}

void expect_same(const Array& a, const Array& b) {
  EXPECT_EQ(a.dtype, b.dtype);
  EXPECT_EQ(a.shape, b.shape);
  EXPECT_EQ(a.bytes, b.bytes);
}

/// An accepted array keeps its promises, and a refusal is one line that names the file.
void expect_consistent(const Array& array) {
  ASSERT_LE(array.shape.size(), 5u);
  for (const std::int64_t size : array.shape) ASSERT_GE(size, 0);
  ASSERT_EQ(array.bytes.size(),
            static_cast<std::size_t>(array.elements()) * tilewise::size_of(array.dtype));
}
void expect_sentence(const std::string& message) {
  ASSERT_EQ(message.rfind("FILE: ", 0), 0u) << message;
  ASSERT_EQ(message.find('\n'), std::string::npos) << message;
  ASSERT_LT(message.size(), 400u) << message;
}

std::string npy_text(const std::string& dictionary, const std::string& data) {
  std::string text = "\x93NUMPY\x01"s + '\0';
  text += static_cast<char>(dictionary.size() & 0xff);
  text += static_cast<char>(dictionary.size() >> 8);
  return text + dictionary + data;
}

std::string safetensors_text(const std::string& header, const std::string& data) {
  const std::uint64_t length = header.size();
  std::string text(reinterpret_cast<const char*>(&length), sizeof length);
  return text + header + data;
}

std::string npy_error(const std::string& dictionary, const std::string& data = "") {
  return error_of(parse_npy(npy_text(dictionary, data), "FILE"));
}
std::string safetensors_error(const std::string& header, const std::string& data = "") {
  return error_of(parse_safetensors(safetensors_text(header, data), "FILE"));
}

// np.save of np.arange(6, dtype='<f4').reshape(2, 3) / 2, every byte of it (NumPy 2.4.6).
const std::string numpy_wrote =
    "\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"
    "                                                          \n"
    "\x00\x00\x00\x00\x00\x00\x00?\x00\x00\x80?\x00\x00\xc0?\x00\x00\x00@\x00\x00 @"s;

// The same array in Fortran order and big-endian.
const std::string numpy_wrote_fortran_big =
    "\x93NUMPY\x01\x00v\x00{'descr': '>f4', 'fortran_order': True, 'shape': (2, 3), }"
    "                                                           \n"
    "\x00\x00\x00\x00?\xc0\x00\x00?\x00\x00\x00@\x00\x00\x00?\x80\x00\x00@ \x00\x00"s;

// safetensors.numpy.save({"b": np.float16([1, -2]), "a": np.int32(7)}, {"made": "by safetensors"}).
const std::string safetensors_wrote =
    "\230\000\000\000\000\000\000\000"
    "{\"__metadata__\":{\"made\":\"by safetensors\"},\"a\":{\"dtype\":\"I32\",\"shape\":[],\"da"
    "ta_offsets\":[0,4]},\"b\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[4,8]}}     \007\000\000\000\000<\000\300"s;

using Npy = FormatsTest;
using SafetensorsFile = FormatsTest;
using Directory = FormatsTest;

// ---- .npy

TEST_F(Npy, RoundTripsEveryDtypeThatNumpyHas) {
  for (const DType dtype : every_dtype)
    for (const auto& shape : std::vector<std::vector<std::int64_t>>{
             {}, {1}, {7}, {0}, {2, 3}, {3, 0, 2}, {2, 1, 3, 2}, {1, 2, 3, 2, 2}}) {
      const Array array = example(dtype, shape);
      const auto written = write_npy(path("a.npy"), array);
      if (dtype == DType::bf16 || dtype == DType::e4m3 || dtype == DType::e5m2) {
        EXPECT_NE(error_of(written).find("NumPy has no " + std::string(name_of(dtype))),
                  std::string::npos);
        continue;
      }
      EXPECT_EQ(error_of(written), "");
      expect_same(value_of(read_npy(path("a.npy"))), array);
    }
}

TEST_F(Npy, ReadsWhatNumpyWrote) {
  const std::vector<double> expected{0, 0.5, 1, 1.5, 2, 2.5};
  for (const std::string& text : {numpy_wrote, numpy_wrote_fortran_big}) {
    const Array array = value_of(parse_npy(text, "FILE"));
    EXPECT_EQ(array.dtype, DType::f32);
    EXPECT_EQ(array.shape, (std::vector<std::int64_t>{2, 3}));
    EXPECT_EQ(values_of(array), expected);
  }
}

TEST_F(Npy, WritesAHeaderThatIsAlignedAndMinimal) {
  ASSERT_EQ(error_of(write_npy(path("a.npy"), example(DType::f32, {5}))), "");
  const std::string text = contents(path("a.npy"));
  EXPECT_EQ(text.size(), 128u + 20u);
  EXPECT_EQ(text.substr(0, 10), "\x93NUMPY\x01\x00v\x00"s);
  EXPECT_EQ(text.substr(10, 58), "{'descr': '<f4', 'fortran_order': False, 'shape': (5,), } "s);
  EXPECT_EQ(text[127], '\n');
}

TEST_F(Npy, ReadsVersionsTwoAndThreeAndOtherSpellings) {
  const std::string dictionary = "{\"shape\":(3,),'fortran_order':False ,  'descr':'<i4'}   \n";
  const std::string data = "\1\0\0\0\2\0\0\0\xff\xff\xff\xff"s;
  const std::string length = {static_cast<char>(dictionary.size()), 0, 0, 0};
  const std::vector<double> expected{1, 2, -1};
  EXPECT_EQ(values_of(value_of(parse_npy(npy_text(dictionary, data), "FILE"))), expected);
  for (const char major : {'\2', '\3'})
    EXPECT_EQ(values_of(value_of(
                  parse_npy("\x93NUMPY"s + major + '\0' + length + dictionary + data, "FILE"))),
              expected);
}

TEST_F(Npy, TurnsFortranOrderInThreeDimensions) {
  // a[i][j][k] = 100 i + 10 j + k in Fortran order: i runs fastest.
  std::vector<std::int64_t> fortran, c;
  for (int k = 0; k < 4; ++k)
    for (int j = 0; j < 3; ++j)
      for (int i = 0; i < 2; ++i) fortran.push_back(100 * i + 10 * j + k);
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 3; ++j)
      for (int k = 0; k < 4; ++k) c.push_back(100 * i + 10 * j + k);
  const std::string data(reinterpret_cast<const char*>(fortran.data()), fortran.size() * 8);
  const Array array = value_of(parse_npy(
      npy_text("{'descr': '<i8', 'fortran_order': True, 'shape': (2, 3, 4), }\n", data), "FILE"));
  expect_same(array, array_of(DType::i64, {2, 3, 4}, c));
}

TEST_F(Npy, SwapsTheBytesOfBigEndianElements) {
  const auto parse = [](const std::string& descr, const std::string& data) {
    return values_of(value_of(parse_npy(
        npy_text("{'descr': '" + descr + "', 'fortran_order': False, 'shape': (1,)}", data),
        "FILE")));
  };
  EXPECT_EQ(parse(">f8", "\x3f\xf8\0\0\0\0\0\0"s), std::vector<double>{1.5});
  EXPECT_EQ(parse(">f2", "\x3e\0"s), std::vector<double>{1.5});
  EXPECT_EQ(parse(">i4", "\0\0\1\2"s), std::vector<double>{258});
  EXPECT_EQ(parse(">i8", "\xff\xff\xff\xff\xff\xff\xff\xfe"s), std::vector<double>{-2});
  EXPECT_EQ(parse("|b1", "\1"s), std::vector<double>{1});
}

TEST_F(Npy, EveryTruncationIsRefused) {
  for (std::size_t length = 0; length < numpy_wrote.size(); ++length) {
    const std::string message = error_of(parse_npy(numpy_wrote.substr(0, length), "FILE"));
    ASSERT_NE(message, "") << length;
    expect_sentence(message);
  }
  EXPECT_NE(error_of(parse_npy(numpy_wrote + "x", "FILE")), "");
}

TEST_F(Npy, EveryLieIsNamed) {
  const auto dictionary = [](const std::string& descr, const std::string& shape) {
    return "{'descr': " + descr + ", 'fortran_order': False, 'shape': " + shape + ", }\n";
  };
  const std::pair<std::string, std::string> cases[] = {
      {dictionary("'<f4'", "(3,)"), "0 bytes of data, shape [3] in f32 needs 12"},
      {dictionary("'<f4'", "(-1,)"), "negative"},
      {dictionary("'<f4'", "(9223372036854775808,)"), "too large"},
      {dictionary("'<f4'", "(4294967296, 4294967296)"), "larger than any memory"},
      {dictionary("'<f4'", "(0, 4611686018427387904, 4)"), "larger than any memory"},
      {dictionary("'<f8'", "(1152921504606846976,)"), "larger than any memory"},
      {dictionary("'<f4'", "(1, 1, 1, 1, 1, 1)"), "6 dimensions, expected at most 5"},
      {dictionary("'<f4'", "(1 2)"), "',' or ')'"},
      {dictionary("'<f4'", "(1.5,)"), "',' or ')'"},
      {dictionary("'<f4'", "3"), "'('"},
      {dictionary("'|u1'", "(1,)"), "dtype '|u1'"},
      {dictionary("'<c8'", "(1,)"), "dtype '<c8'"},
      {dictionary("'|O'", "(1,)"), "dtype '|O'"},
      {dictionary("'f4'", "(1,)"), "dtype 'f4'"},
      {dictionary("[('x', '<f4')]", "(1,)"), "a string is missing"},
      {"{'descr': '<f4', 'shape': (), }", "is missing"},
      {"{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (), }", "twice"},
      {"{'descr': '<f4', 'fortran_order': 0, 'shape': (), }", "True or False"},
      {"{'descr': '<f4", "does not end"},
      {dictionary("'<f4'", "()") + "x", "text follows"},
      {"", "a '{' is missing"},
  };
  for (const auto& [header, expected] : cases) {
    const std::string message = npy_error(header);
    EXPECT_NE(message.find(expected), std::string::npos) << header << " -> " << message;
    expect_sentence(message);
  }
  EXPECT_NE(error_of(parse_npy("PK\3\4 a zip archive", "FILE")).find("not a .npy file"),
            std::string::npos);
  EXPECT_NE(error_of(parse_npy("\x93NUMPY\x04\x00\0\0\0\0"s, "FILE")).find("version 4.0"),
            std::string::npos);
  EXPECT_NE(error_of(parse_npy("\x93NUMPY\x02\x00\xff\xff\xff\xff{"s, "FILE")).find("4294967295"),
            std::string::npos);
}

// ---- .safetensors

Arrays one_of_every_dtype() {
  Arrays arrays;
  for (const DType dtype : every_dtype) {
    const std::string name(tilewise::name_of(dtype));
    arrays[name] = example(dtype, {2, 3});
    arrays[name + ".scalar"] = example(dtype, {});
    arrays[name + ".empty"] = example(dtype, {4, 0});
  }
  return arrays;
}

TEST_F(SafetensorsFile, RoundTripsEveryDtype) {
  const Arrays arrays = one_of_every_dtype();
  const Metadata metadata{{"model", "a \"quoted\" name"}, {"text", "\xc3\xa9t\xc3\xa9"}};
  ASSERT_EQ(error_of(write_safetensors(path("a.safetensors"), arrays, metadata)), "");
  const Safetensors read = value_of(read_safetensors(path("a.safetensors")));
  EXPECT_EQ(read.metadata, metadata);
  ASSERT_EQ(read.arrays.size(), arrays.size());
  for (const auto& [name, array] : arrays) expect_same(read.arrays.at(name), array);
}

TEST_F(SafetensorsFile, TheSameArraysGiveTheSameAlignedBytes) {
  ASSERT_EQ(error_of(write_safetensors(path("a.safetensors"), one_of_every_dtype())), "");
  ASSERT_EQ(error_of(write_safetensors(path("b.safetensors"), one_of_every_dtype())), "");
  EXPECT_EQ(contents(path("a.safetensors")), contents(path("b.safetensors")));

  const Arrays two{{"flags", example(DType::boolean, {3})}, {"x", example(DType::f32, {1})}};
  ASSERT_EQ(error_of(write_safetensors(path("c.safetensors"), two)), "");
  const std::string text = contents(path("c.safetensors"));
  std::uint64_t length = 0;
  std::memcpy(&length, text.data(), sizeof length);
  EXPECT_EQ(length % 8, 0u);
  std::string header = text.substr(8, length);
  header.erase(header.find_last_not_of(' ') + 1);
  EXPECT_EQ(header, R"({"flags":{"data_offsets":[4,7],"dtype":"BOOL","shape":[3]},)"
                    R"("x":{"data_offsets":[0,4],"dtype":"F32","shape":[1]}})");
}

TEST_F(SafetensorsFile, AnEmptyFileOfNoArraysRoundTrips) {
  ASSERT_EQ(error_of(write_safetensors(path("a.safetensors"), {})), "");
  EXPECT_TRUE(value_of(read_safetensors(path("a.safetensors"))).arrays.empty());
}

TEST_F(SafetensorsFile, ReadsWhatTheFormatsOwnWriterWrote) {
  const Safetensors read = value_of(parse_safetensors(safetensors_wrote, "FILE"));
  EXPECT_EQ(read.metadata, (Metadata{{"made", "by safetensors"}}));
  ASSERT_EQ(read.arrays.size(), 2u);
  EXPECT_EQ(read.arrays.at("a").dtype, DType::i32);
  EXPECT_TRUE(read.arrays.at("a").shape.empty());
  EXPECT_EQ(values_of(read.arrays.at("a")), std::vector<double>{7});
  EXPECT_EQ(read.arrays.at("b").dtype, DType::f16);
  EXPECT_EQ(values_of(read.arrays.at("b")), (std::vector<double>{1, -2}));
}

TEST_F(SafetensorsFile, EveryTruncationIsRefused) {
  const Arrays arrays{{"q", example(DType::bf16, {2, 3})}, {"k", example(DType::e4m3, {4})}};
  ASSERT_EQ(error_of(write_safetensors(path("a.safetensors"), arrays)), "");
  const std::string text = contents(path("a.safetensors"));
  ASSERT_EQ(error_of(parse_safetensors(text, "FILE")), "");
  for (std::size_t length = 0; length < text.size(); ++length) {
    const std::string message = error_of(parse_safetensors(text.substr(0, length), "FILE"));
    ASSERT_NE(message, "") << length;
    expect_sentence(message);
  }
  EXPECT_NE(error_of(parse_safetensors(text + "x", "FILE")), "");
}

TEST_F(SafetensorsFile, HugeHeaderLengthsAreRefusedAtOnce) {
  for (const std::uint64_t length :
       {std::uint64_t{100'000'001}, std::uint64_t{1} << 32, std::uint64_t{INT64_MAX},
        std::uint64_t{INT64_MAX} + 1, UINT64_MAX, std::uint64_t{99'999'999}, std::uint64_t{3}}) {
    std::string text(reinterpret_cast<const char*>(&length), sizeof length);
    const std::string message = error_of(parse_safetensors(text + "{}", "FILE"));
    EXPECT_NE(message.find("claims " + std::to_string(length)), std::string::npos) << message;
  }
}

TEST_F(SafetensorsFile, DeepNestingIsRefused) {
  const std::string open(2'000'000, '['), close(2'000'000, ']');
  EXPECT_NE(safetensors_error("{\"a\":" + open + close + "}").find("nested too deeply"),
            std::string::npos);
  EXPECT_NE(safetensors_error("{\"a\":" + open).find("nested too deeply"), std::string::npos);
}

TEST_F(SafetensorsFile, EveryLieIsNamed) {
  const auto entry = [](const std::string& dtype, const std::string& shape,
                        const std::string& offsets) {
    return "{\"dtype\":" + dtype + ",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
  };
  const auto one = [&](const std::string& dtype, const std::string& shape,
                       const std::string& offsets) {
    return "{\"a\":" + entry(dtype, shape, offsets) + "}";
  };
  const std::string good = entry("\"F32\"", "[1]", "[0,4]");
  const std::pair<std::string, std::string> cases[] = {
      {one("\"F32\"", "[1]", "[4,8]"), "begins at byte 4 of the data, expected 0"},
      {one("\"F32\"", "[2]", "[0,4]"), "span 4 bytes, shape [2] in F32 needs 8"},
      {one("\"F32\"", "[1]", "[4,0]"), "outside the file's 8 bytes"},
      {one("\"F32\"", "[3]", "[0,12]"), "outside the file's 8 bytes"},
      {one("\"F32\"", "[1]", "[0,4]"), "8 bytes of data, its arrays cover 4"},
      {one("\"F32\"", "[1]", "[-4,0]"), "data_offsets is not [begin, end]"},
      {one("\"F32\"", "[1]", "[0,4,8]"), "data_offsets is not [begin, end]"},
      {one("\"F32\"", "[1]", "[0,18446744073709551615]"), "data_offsets is not [begin, end]"},
      {one("\"F32\"", "[1]", "\"0,4\""), "data_offsets is not [begin, end]"},
      {one("\"F32\"", "[-1]", "[0,4]"), "shape is not a list"},
      {one("\"F32\"", "[1.0]", "[0,4]"), "shape is not a list"},
      {one("\"F32\"", "[1e0]", "[0,4]"), "shape is not a list"},
      {one("\"F32\"", "[9223372036854775808]", "[0,4]"), "shape is not a list"},
      {one("\"F32\"", "[[1]]", "[0,4]"), "nested too deeply"},
      {one("\"F32\"", "[4294967296,4294967296]", "[0,8]"), "larger than any memory"},
      {one("\"F32\"", "[0,4611686018427387904,4]", "[0,0]"), "larger than any memory"},
      {one("\"F32\"", "[1,1,1,1,1,1]", "[0,4]"), "6 dimensions, expected at most 5"},
      {one("\"U8\"", "[8]", "[0,8]"), "dtype 'U8', expected one of F64"},
      {one("7", "[8]", "[0,8]"), "no dtype"},
      {"{\"a\":7}", "expected an object"},
      {"{\"a\":{}}", "no dtype"},
      {"{\"a\":" + good + ",\"b\":" + good + "}", "neither overlap nor leave holes"},
      {"{\"a\":" + good + ",\"b\":" + entry("\"F16\"", "[2]", "[2,6]") + "}",
       "neither overlap nor leave holes"},
      {"{\"a\":" + good + ",\"b\":" + entry("\"BOOL\"", "[1]", "[6,7]") + "}",
       "begins at byte 6 of the data, expected 4"},
      {"{\"a\":" + good + ",\"a\":" + good + "}", "names 'a' twice"},
      {"{\"__metadata__\":{\"x\":1}}", "'x' is not a string"},
      {"{\"__metadata__\":7}", "__metadata__ is not an object"},
      {"{\"a\":" + good, "not a JSON object"},
      {"{} x", "not a JSON object"},
      {"[]", "does not begin with '{'"},
      {"", "does not begin with '{'"},
      {"{\"\xff\":" + good + "}", "not a JSON object"},
  };
  for (const auto& [header, expected] : cases) {
    const std::string message = safetensors_error(header, "12345678");
    EXPECT_NE(message.find(expected), std::string::npos) << header << " -> " << message;
    expect_sentence(message);
  }
}

TEST_F(SafetensorsFile, WhatCannotBeWrittenIsRefused) {
  const auto refused = [&](const Arrays& arrays, const Metadata& metadata = {}) {
    std::string message = error_of(write_safetensors(path("a.safetensors"), arrays, metadata));
    EXPECT_FALSE(std::filesystem::exists(path("a.safetensors")));
    return message;
  };
  Array short_one = example(DType::f32, {3});
  short_one.bytes.pop_back();
  EXPECT_NE(refused({{"x", short_one}}).find("11 bytes are there, shape [3] in f32 needs 12"),
            std::string::npos);
  EXPECT_NE(refused({{"x", Array{DType::f32, {-1}, {}}}}).find("negative"), std::string::npos);
  EXPECT_NE(refused({{"\xff\xfe", example(DType::f32, {1})}}).find("UTF-8"), std::string::npos);
  EXPECT_NE(refused({}, {{"x", "\xff"}}).find("UTF-8"), std::string::npos);
  EXPECT_NE(refused({{"__metadata__", example(DType::f32, {1})}}).find("__metadata__"),
            std::string::npos);
  EXPECT_NE(error_of(write_safetensors(path("no/such/folder.safetensors"), {})).find("No such"),
            std::string::npos);
  EXPECT_NE(error_of(write_npy(path("a.npy"), short_one)).find("11 bytes"), std::string::npos);
}

// ---- damage

/// `text` with a few seeded wounds: bytes changed, bits flipped, pieces removed, repeated,
/// inserted.
std::string damaged(std::string text, std::mt19937& random) {
  const auto below = [&random](std::size_t limit) {
    return limit == 0 ? 0 : static_cast<std::size_t>(random()) % limit;
  };
  static const std::string interesting = "0123456789-[]{}(),:'\"eE.<>|\\ \n\xff\x80"s + '\0';
  for (std::size_t wound = 0, wounds = 1 + below(4); wound < wounds; ++wound) {
    const std::size_t at = below(text.size());
    switch (random() % 6) {
      case 0:
        if (!text.empty()) text[at] = static_cast<char>(random());
        break;
      case 1:
        if (!text.empty()) text[at] = static_cast<char>(text[at] ^ (1 << below(8)));
        break;
      case 2:
        if (!text.empty()) text[at] = interesting[below(interesting.size())];
        break;
      case 3: text.erase(at, 1 + below(8)); break;
      case 4: text.insert(at, text.substr(at, 1 + below(16))); break;
      default: text.insert(at, 1, interesting[below(interesting.size())]); break;
    }
  }
  return text;
}

TEST_F(FormatsTest, DamagedFilesNeverGetThrough) {
  ASSERT_EQ(
      error_of(write_safetensors(
          path("a.safetensors"),
          {{"q", example(DType::f16, {2, 3})}, {"lse", example(DType::f32, {2})}}, {{"k", "v"}})),
      "");
  const std::string whole = contents(path("a.safetensors"));
  std::mt19937 random(20220527);
  int accepted = 0, refused = 0;
  for (int i = 0; i < 30'000; ++i) {
    const auto npy =
        parse_npy(damaged(i % 2 == 0 ? numpy_wrote : numpy_wrote_fortran_big, random), "FILE");
    if (const auto* array = std::get_if<Array>(&npy)) {
      ASSERT_NO_FATAL_FAILURE(expect_consistent(*array));
      ++accepted;
    } else {
      ASSERT_NO_FATAL_FAILURE(expect_sentence(error_of(npy)));
      ++refused;
    }
    const auto file = parse_safetensors(damaged(whole, random), "FILE");
    if (const auto* read = std::get_if<Safetensors>(&file)) {
      for (const auto& item : read->arrays) ASSERT_NO_FATAL_FAILURE(expect_consistent(item.second));
      ++accepted;
    } else {
      ASSERT_NO_FATAL_FAILURE(expect_sentence(error_of(file)));
      ++refused;
    }
  }
  // Damage to the numbers themselves cannot be seen; damage to anything else must be.
  EXPECT_GT(refused, 30'000);
  EXPECT_GT(accepted, 1'000);
}

TEST_F(FormatsTest, RandomBytesAreRefused) {
  std::mt19937 random(1729);
  for (int i = 0; i < 5'000; ++i) {
    std::string text(random() % 200, '\0');
    for (char& byte : text) byte = static_cast<char>(random());
    ASSERT_NE(error_of(parse_npy(text, "FILE")), "");
    ASSERT_NE(error_of(parse_safetensors(text, "FILE")), "");
    // Past the first check: right magic, right length.
    ASSERT_NO_FATAL_FAILURE(expect_sentence(error_of(parse_npy(npy_text(text, ""), "FILE"))));
    ASSERT_NO_FATAL_FAILURE(
        expect_sentence(error_of(parse_safetensors(safetensors_text('{' + text, ""), "FILE"))));
  }
}

// ---- directories, and arrays in memory

TEST_F(Directory, GivesArraysByName) {
  ASSERT_EQ(error_of(write_npy(path("v.npy"), example(DType::f32, {2}))), "");
  ASSERT_EQ(
      error_of(write_safetensors(path("more.safetensors"), {{"q", example(DType::bf16, {3})},
                                                            {"k", example(DType::f64, {1})}})),
      "");
  write("problem.txt", "fwd");
  const Arrays arrays = value_of(read_arrays(path("")));
  ASSERT_EQ(arrays.size(), 3u);
  expect_same(arrays.at("v"), example(DType::f32, {2}));
  expect_same(arrays.at("q"), example(DType::bf16, {3}));

  EXPECT_EQ(value_of(read_arrays(path("v.npy"))).count("v"), 1u);
  EXPECT_EQ(value_of(read_arrays(path("more.safetensors"))).size(), 2u);

  ASSERT_EQ(error_of(write_npy(path("q.npy"), example(DType::f32, {2}))), "");
  EXPECT_NE(error_of(read_arrays(path(""))).find("array 'q' is already in more.safetensors"),
            std::string::npos);
}

TEST_F(Directory, SaysWhatIsMissing) {
  EXPECT_NE(error_of(read_arrays(path(""))).find("no tensor file"), std::string::npos);
  EXPECT_NE(error_of(read_arrays(path("none.npy"))).find("no such file"), std::string::npos);
  EXPECT_NE(error_of(read_arrays(write("a.txt", "x"))).find("expected .npy or .safetensors"),
            std::string::npos);
  EXPECT_NE(error_of(read_npy(write("empty.npy", ""))).find("empty.npy: not a .npy file"),
            std::string::npos);
  std::filesystem::create_directory(path("folder.npy"));
  EXPECT_NE(error_of(read_npy(path("folder.npy"))).find("not a regular file"), std::string::npos);
}

TEST(ArrayTest, ViewsItsMemory) {
  Array array = example(DType::f16, {2, 3, 4});
  const tilewise::TensorView view = array.view();
  EXPECT_EQ(view.ndim, 3);
  EXPECT_EQ(view.strides[0], 12);
  EXPECT_EQ(view.strides[1], 4);
  EXPECT_EQ(view.strides[2], 1);
  EXPECT_EQ(view.data, array.bytes.data());
  EXPECT_EQ(view.elements(), 24);

  Array empty = example(DType::f32, {0, 3});
  EXPECT_TRUE(empty.view().exists());
  EXPECT_EQ(empty.view().elements(), 0);
  Array scalar = example(DType::f32, {});
  EXPECT_EQ(scalar.view().elements(), 1);
  Array six = example(DType::f32, {1, 1, 1, 1, 1, 1});
  EXPECT_FALSE(six.view().exists());
}

}  // namespace
