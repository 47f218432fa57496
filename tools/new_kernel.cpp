// `tilewise new-kernel`: writes a project with a kernel that passes, to be made into another one.
#include "tools/commands.hpp"
#include "tools/common.hpp"
#include "tools/json.hpp"

#include <fmt/core.h>

#include <cctype>
#include <filesystem>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tilewise::tools {

// The files of tools/new_kernel, compiled in (tools/CMakeLists.txt).
extern const char *const new_kernel_cpp, *const new_kernel_cmake, *const new_kernel_readme;
extern const char *const new_kernel_cu, *const new_kernel_cuda_cmake, *const new_kernel_cuda_readme;

namespace {
constexpr std::string_view placeholder = "my_kernel";

/// A name serves as a target of CMake, a file and a kernel.
bool is_name(std::string_view name) {
  if (name.empty() || name.size() > 60 || std::isalpha(static_cast<unsigned char>(name[0])) == 0)
    return false;
  for (const char c : name)
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '_') return false;
  return true;
}

/// The file as it is written out: with the kernel's name, without the marks of our pages' snippets.
std::string filled(const char* text, const std::string& name) {
  std::istringstream lines(text);
  std::string result;
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("// [snippet ") || line.starts_with("// [end ")) continue;
    for (std::size_t at = 0; (at = line.find(placeholder, at)) != std::string::npos;
         at += name.size())
      line.replace(at, placeholder.size(), name);
    result += line + "\n";
  }
  return result;
}
}  // namespace

int new_kernel_command(const NewKernelOptions& options) {
  namespace fs = std::filesystem;
  const fs::path directory(options.directory);
  if (!is_name(options.name))
    throw BadInput(fmt::format("\"{}\" is no name: expected a letter, then letters, digits and '_'",
                               options.name));
  std::error_code error;
  if (fs::exists(directory, error) && !fs::is_directory(directory, error))
    throw BadInput(fmt::format("{} is a file: expected a directory to write", options.directory));
  if (fs::is_directory(directory, error) && !fs::is_empty(directory, error))
    throw BadInput(fmt::format("{} is not empty: expected a directory that is, or a new one",
                               options.directory));
  const std::pair<const char*, const char*> files[] = {
      {"CMakeLists.txt", options.cuda ? new_kernel_cuda_cmake : new_kernel_cmake},
      {"README.md", options.cuda ? new_kernel_cuda_readme : new_kernel_readme},
      options.cuda ? std::pair{"kernel.cu", new_kernel_cu}
                   : std::pair{"kernel.cpp", new_kernel_cpp}};
  make_directory(directory);
  std::vector<std::string> written;
  std::string text;
  for (const auto& [file, contents] : files) {
    const fs::path path = directory / file;
    write_text(path, filled(contents, options.name));
    written.push_back(path.string());
    text += path.string() + "\n";
  }
  if (options.json)
    print(new_kernel_json(options.name, written));
  else
    print(text + fmt::format("\nNext, DIR being where Tilewise is installed:\n"
                             "  cmake -S {0} -B {0}/build -DCMAKE_PREFIX_PATH=DIR\n"
                             "  cmake --build {0}/build\n"
                             "  tilewise check --plugin {0}/build/lib{1}.so\n",
                             options.directory, options.name));
  return exit_pass;
}

}  // namespace tilewise::tools
