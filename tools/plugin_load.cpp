// Loading plug-ins, and holding their tables to the rules of plugin.h.
#include "tools/common.hpp"
#include "tools/plugin.hpp"

#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <string_view>
#include <utility>

namespace tilewise::tools {

namespace {
constexpr std::uint32_t largest_struct = 1u << 16;
constexpr std::int32_t most_kernels = 1000;
/// What version 1 of each struct had at the least.
constexpr std::size_t smallest_plugin = sizeof(tilewise_plugin);
constexpr std::size_t smallest_kernel = sizeof(tilewise_plugin_kernel);
constexpr std::size_t smallest_attention = offsetof(tilewise_attention, dout);

template <class... Arguments>
[[noreturn]] void refuse(const std::string& path, fmt::format_string<Arguments...> format,
                         Arguments&&... arguments) {
  throw BadInput(
      fmt::format("{}: {}", path, fmt::format(format, std::forward<Arguments>(arguments)...)));
}

/// A struct that opens with its size: not too small, and nothing set that we do not know.
void check_size(const std::string& path, const std::string& what, const void* given,
                std::size_t smallest, std::size_t known) {
  std::uint32_t size = 0;
  std::memcpy(&size, given, sizeof size);
  if (size < smallest || size > largest_struct)
    refuse(path, "{} has struct_size {}, expected {}: its sizeof", what, size, known);
  const auto* const bytes = static_cast<const std::byte*>(given);
  for (std::size_t i = known; i < size; ++i)
    if (bytes[i] != std::byte{0})
      refuse(path, "{} sets a field at byte {}, which this tilewise ({} bytes) does not know", what,
             i, known);
}

bool is_name(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  });
}

void check_kernel(const std::string& path, const tilewise_plugin& plugin, std::int32_t index) {
  const tilewise_plugin_kernel* const kernel = plugin.kernels[index];
  std::string what = fmt::format("kernel {}", index);
  if (kernel == nullptr) refuse(path, "{} is a null pointer", what);
  check_size(path, what, kernel, smallest_kernel, sizeof(tilewise_plugin_kernel));
  if (kernel->name == nullptr || !is_name(kernel->name))
    refuse(path, "{} has no name: expected letters, digits, '.', '_' and '-'", what);
  what = kernel->name;
  if (kernel->idea == nullptr || kernel->idea[0] == '\0')
    refuse(path, "{} has no idea: expected a sentence on what it does", what);
  if (kernel->supports == nullptr) refuse(path, "{} has no function `supports`", what);
  if (kernel->forward == nullptr) refuse(path, "{} has no function `forward`", what);
  if ((kernel->writes & TILEWISE_OUTPUT_O) == 0)
    refuse(path, "{} does not write o: expected TILEWISE_OUTPUT_O in `writes`", what);
  if (((kernel->writes | kernel->repeatable) & ~std::uint32_t{TILEWISE_OUTPUT_ALL}) != 0)
    refuse(path, "{} names outputs in `writes` or `repeatable` that there are not", what);
  if (kernel->device_type == TILEWISE_CPU) return;
  if (kernel->device_type != TILEWISE_CUDA)
    refuse(path, "{} has device_type {}: expected TILEWISE_CPU or TILEWISE_CUDA", what,
           kernel->device_type);
  const std::pair<const char*, bool> functions[] = {
      {"allocate", plugin.allocate != nullptr},
      {"release", plugin.release != nullptr},
      {"copy_to_device", plugin.copy_to_device != nullptr},
      {"copy_to_host", plugin.copy_to_host != nullptr},
      {"synchronize", plugin.synchronize != nullptr}};
  for (const auto& [name, present] : functions)
    if (!present)
      refuse(path, "{} computes on a device, and the plug-in has no function `{}`", what, name);
}

void check_plugin(const std::string& path, const tilewise_plugin* plugin) {
  if (plugin == nullptr)
    refuse(path, "it does not serve version {} of tilewise/plugin.h, which this tilewise speaks",
           TILEWISE_PLUGIN_VERSION);
  check_size(path, "its table", plugin, smallest_plugin, sizeof(tilewise_plugin));
  if (plugin->version != TILEWISE_PLUGIN_VERSION)
    refuse(path, "it was built for version {} of tilewise/plugin.h, expected {}", plugin->version,
           TILEWISE_PLUGIN_VERSION);
  if (plugin->attention_size < smallest_attention || plugin->attention_size > largest_struct)
    refuse(path, "its attention_size is {}, expected sizeof(tilewise_attention), {} here",
           plugin->attention_size, sizeof(tilewise_attention));
  if (plugin->count < 1 || plugin->count > most_kernels || plugin->kernels == nullptr)
    refuse(path, "it holds {} kernels at {}: expected 1 to {}", plugin->count,
           plugin->kernels == nullptr ? "a null pointer" : "its address", most_kernels);
  for (std::int32_t index = 0; index < plugin->count; ++index) check_kernel(path, *plugin, index);
}

/// The table that a library exports. The handle is kept: nothing of it is ever unloaded.
const tilewise_plugin* open_plugin(const std::string& path) {
  std::error_code error;
  const std::filesystem::path file = std::filesystem::absolute(path, error);
  if (error || !std::filesystem::is_regular_file(file, error))
    refuse(path, "there is no such file: expected a shared library");
  void* const library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* const why = dlerror();
    refuse(path, "it cannot be loaded: {}", why == nullptr ? "no reason is given" : why);
  }
  void* const symbol = dlsym(library, "tilewise_plugin_get");
  if (symbol == nullptr)
    refuse(path,
           "it is no plug-in: expected a function tilewise_plugin_get, as tilewise/plugin.h "
           "declares it");
  const auto get = reinterpret_cast<decltype(&tilewise_plugin_get)>(symbol);
  return get(TILEWISE_PLUGIN_VERSION);
}

/// Names that the command line gives another meaning.
bool is_reserved(std::string_view name) {
  return name == "all" || name.starts_with("bug.") || name.starts_with("good.");
}
}  // namespace

harness::Table load_plugin(const std::string& path) {
  const tilewise_plugin* const plugin = open_plugin(path);
  check_plugin(path, plugin);
  harness::Table table;
  for (std::int32_t index = 0; index < plugin->count; ++index)
    table.push_back(std::make_unique<PluginImplementation>(path, *plugin, *plugin->kernels[index]));
  return table;
}

harness::Table with_plugins(harness::Table table, const std::vector<std::string>& paths) {
  for (const std::string& path : paths)
    for (auto& kernel : load_plugin(path)) {
      const std::string_view name = kernel->name();
      if (is_reserved(name))
        refuse(path, "a kernel is called \"{}\", a name that tilewise keeps for itself", name);
      for (const auto& other : table)
        if (other->name() == name) {
          const PluginImplementation* const plugin = plugin_of(*other);
          refuse(path, "a kernel is called \"{}\", as one of {} is: expected another name", name,
                 plugin == nullptr ? "tilewise's own" : plugin->path());
        }
      table.push_back(std::move(kernel));
    }
  return table;
}

const PluginImplementation* plugin_of(const harness::Implementation& implementation) {
  return dynamic_cast<const PluginImplementation*>(&implementation);
}

void require_on_cpu(const std::vector<const harness::Implementation*>& chosen, const char* what) {
  for (const harness::Implementation* implementation : chosen)
    if (const PluginImplementation* plugin = plugin_of(*implementation);
        plugin != nullptr && plugin->device().type != DeviceType::cpu)
      throw BadInput(
          fmt::format("{} computes on a device, and each call would be timed with the copies to it "
                      "and back: {} takes kernels of the CPU; `check` judges both",
                      plugin->name(), what));
}

std::string plugin_names(const harness::Table& table) {
  std::string names;
  for (const auto& implementation : table)
    if (plugin_of(*implementation) != nullptr)
      names += fmt::format("{}{}", names.empty() ? "" : ",", implementation->name());
  return names;
}

}  // namespace tilewise::tools
