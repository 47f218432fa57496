// A plug-in of kernels on the CPU: a right one, one for each way of answering badly, and, if
// TILEWISE_TEST_PLUGIN names it, one break of each rule of plugin.h.
#include "tests/plugins/library.hpp"

#include <cstddef>
#include <cstdlib>
#include <string>
#include <string_view>

namespace {

tilewise_status forgets_half(void*, const tilewise_attention* a, const tilewise_plugin_call* call,
                             char* reason, std::size_t reason_bytes) {
  tilewise_attention half = *a;
  half.k.shape[1] = half.v.shape[1] = a->k.shape[1] / 2;
  return plugins::run(&half, TILEWISE_FORWARD, call->workspace, call->workspace_bytes, reason,
                      reason_bytes);
}

tilewise_status breaks_down(void*, const tilewise_attention*, const tilewise_plugin_call*,
                            char* reason, std::size_t reason_bytes) {
  std::snprintf(reason, reason_bytes, "the flux is %s", "inverted");
  return TILEWISE_FAILED;
}

tilewise_status says_nothing(void*, const tilewise_attention*, const tilewise_plugin_call*, char*,
                             std::size_t) {
  return TILEWISE_NO_MEMORY;
}

tilewise_status answers_77(void*, const tilewise_attention*, const tilewise_plugin_call*, char*,
                           std::size_t) {
  return 77;
}

tilewise_status serves_nothing(void*, const tilewise_attention*, std::int32_t, char* reason,
                               std::size_t reason_bytes) {
  std::snprintf(reason, reason_bytes, "not on Sundays");
  return TILEWISE_UNSUPPORTED;
}

tilewise_status misunderstands(void*, const tilewise_attention*, std::int32_t, char* reason,
                               std::size_t reason_bytes) {
  std::snprintf(reason, reason_bytes, "what is q?");
  return TILEWISE_BAD_ARGUMENT;
}

/// Holds the host to what it promises of a call's struct.
tilewise_status checks_its_call(void*, const tilewise_attention* a,
                                const tilewise_plugin_call* call, char* reason,
                                std::size_t reason_bytes) {
  const bool right = call->struct_size == sizeof *call && call->threads == 3 &&
                     call->stream == nullptr && a->struct_size == sizeof *a && a->num_splits == 2 &&
                     a->lse.ndim == 0 && a->max_seqlen_q == 30 && a->max_seqlen_k == 70;
  if (right)
    return plugins::run(a, TILEWISE_FORWARD, call->workspace, call->workspace_bytes, reason,
                        reason_bytes);
  std::snprintf(reason, reason_bytes, "threads %d, num_splits %d, lse %d, max_seqlen %d %d",
                call->threads, a->num_splits, a->lse.ndim, static_cast<int>(a->max_seqlen_q),
                static_cast<int>(a->max_seqlen_k));
  return TILEWISE_FAILED;
}

constexpr tilewise_plugin_kernel base{sizeof(tilewise_plugin_kernel),
                                      TILEWISE_CPU,
                                      0,
                                      TILEWISE_OUTPUT_ALL,
                                      TILEWISE_OUTPUT_ALL,
                                      0,
                                      "host.right",
                                      "the library's own attention",
                                      nullptr,
                                      plugins::supports,
                                      plugins::workspace_bytes,
                                      plugins::run_pass<TILEWISE_FORWARD>,
                                      plugins::run_pass<TILEWISE_BACKWARD>};

tilewise_plugin_kernel forward_only(const char* name, tilewise_plugin_run forward) {
  tilewise_plugin_kernel kernel = base;
  kernel.name = name;
  kernel.forward = forward;
  kernel.backward = nullptr;
  return kernel;
}

tilewise_plugin_kernel supporting(const char* name, decltype(base.supports) supports) {
  tilewise_plugin_kernel kernel = base;
  kernel.name = name;
  kernel.supports = supports;
  return kernel;
}

tilewise_plugin_kernel without_lse() {
  tilewise_plugin_kernel kernel = forward_only("host.checks_its_call", checks_its_call);
  kernel.writes = TILEWISE_OUTPUT_O;
  return kernel;
}

const tilewise_plugin_kernel good[] = {base,
                                       forward_only("host.forgets_half", forgets_half),
                                       forward_only("host.breaks_down", breaks_down),
                                       forward_only("host.says_nothing", says_nothing),
                                       forward_only("host.answers_77", answers_77),
                                       supporting("host.serves_nothing", serves_nothing),
                                       supporting("host.misunderstands", misunderstands),
                                       without_lse()};
constexpr int count = sizeof good / sizeof good[0];

/// Tables with room for a field more than today's headers have.
struct NewerKernel {
  tilewise_plugin_kernel known;
  std::uint64_t newer;
};
struct NewerPlugin {
  tilewise_plugin known;
  std::uint64_t newer;
};

/// The table that `variant` asks for: rules are broken one at a time.
const tilewise_plugin* table(std::string_view variant) {
  static const tilewise_plugin_kernel* pointers[count];
  static NewerKernel kernel;
  static NewerPlugin plugin;
  for (int i = 0; i < count; ++i) pointers[i] = &good[i];
  kernel = {base, 0};
  plugin = {{sizeof(tilewise_plugin), TILEWISE_PLUGIN_VERSION, sizeof(tilewise_attention), count,
             pointers, nullptr, nullptr, nullptr, nullptr, nullptr},
            0};
  tilewise_plugin& p = plugin.known;
  tilewise_plugin_kernel& k = kernel.known;
  if (variant.empty()) return &p;
  if (variant == "no table") return nullptr;
  if (variant == "table too small") p.struct_size = 8;
  if (variant == "table too large") p.struct_size = 1u << 20;
  if (variant.starts_with("newer table")) p.struct_size = sizeof plugin;
  if (variant == "newer table in use") plugin.newer = 1;
  if (variant == "other version") p.version = 9;
  if (variant == "attention too small") p.attention_size = 16;
  if (variant == "no kernels") p.count = 0;
  if (variant == "null kernels") p.kernels = nullptr;
  if (variant == "older attention") p.attention_size = offsetof(tilewise_attention, block_table);
  if (variant == "newer attention") p.attention_size = sizeof(tilewise_attention) + 64;
  if (variant.starts_with("kernel ")) {
    pointers[0] = &k;
    p.count = 1;
    variant.remove_prefix(7);
    if (variant == "null") pointers[0] = nullptr;
    if (variant == "too small") k.struct_size = 24;
    if (variant.starts_with("newer")) k.struct_size = sizeof kernel;
    if (variant == "newer in use") kernel.newer = std::uint64_t{1} << 32;
    if (variant == "without name") k.name = nullptr;
    if (variant == "with odd name") k.name = "my kernel";
    if (variant == "without idea") k.idea = "";
    if (variant == "without supports") k.supports = nullptr;
    if (variant == "without forward") k.forward = nullptr;
    if (variant == "without o") k.writes = TILEWISE_OUTPUT_LSE;
    if (variant == "with odd outputs") k.repeatable = 1024;
    if (variant == "on the moon") k.device_type = 13;
    if (variant == "without memory") k.device_type = TILEWISE_CUDA;
    if (variant == "twice") {
      pointers[1] = &k;
      p.count = 2;
    }
    if (variant == "called portable") k.name = "cpu.portable";
    if (variant == "called all") k.name = "all";
    if (variant == "called bug") k.name = "bug.mine";
  }
  return &p;
}

}  // namespace

const tilewise_plugin* tilewise_plugin_get(std::uint32_t version) {
  const char* const variant = std::getenv("TILEWISE_TEST_PLUGIN");
  return version == TILEWISE_PLUGIN_VERSION ? table(variant == nullptr ? "" : variant) : nullptr;
}
