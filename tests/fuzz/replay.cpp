// Runs a fuzz target over files, without libFuzzer: the committed corpora as a test, or one input
// that a fuzzer found.
//
//   tilewise_fuzz_replay TARGET FILE_OR_DIRECTORY...
#include "tests/fuzz/targets.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace {

std::vector<std::filesystem::path> files_in(const std::filesystem::path& place) {
  if (!std::filesystem::is_directory(place)) return {place};
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(place))
    if (entry.is_regular_file()) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string name = argc < 2 ? "" : argv[1];
  const auto* const target =
      std::find_if(std::begin(tilewise::fuzz::targets), std::end(tilewise::fuzz::targets),
                   [&](const auto& one) { return one.name == name; });
  if (target == std::end(tilewise::fuzz::targets) || argc < 3) {
    std::fprintf(stderr, "expected: %s capi|problem|npy|safetensors FILE_OR_DIRECTORY...\n",
                 argv[0]);
    return 2;
  }
  int count = 0;
  for (int i = 2; i < argc; ++i)
    for (const std::filesystem::path& path : files_in(argv[i])) {
      std::ifstream file(path, std::ios::binary);
      if (!file) {
        std::fprintf(stderr, "cannot read %s\n", path.c_str());
        return 2;
      }
      const std::string bytes{std::istreambuf_iterator<char>(file), {}};
      std::fprintf(stderr, "%s\n", path.c_str());  // the last line before a crash names its input
      target->run(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
      ++count;
    }
  std::fprintf(stderr, "%d inputs\n", count);
  return count > 0 ? 0 : 1;
}
