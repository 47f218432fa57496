// The table itself, and how names on the command line find their row in it.
#include "tools/table.hpp"

#include "stages/adapter.hpp"
#if defined(TILEWISE_HAVE_CUDA)
#include "stages/gpu/gpu_adapter.hpp"
#include "tools/gpu/cuda_kernels.hpp"
#endif
#include "tests/bugs/table.hpp"
#include "tools/capi_implementation.hpp"
#include "tools/common.hpp"
#include "tools/tour_emulated.hpp"

#include <fmt/core.h>

#include <iterator>
#include <utility>

namespace tilewise::tools {

namespace {
void append(harness::Table& table, harness::Table more) {
  table.insert(table.end(), std::make_move_iterator(more.begin()),
               std::make_move_iterator(more.end()));
}

#if !defined(TILEWISE_HAVE_CUDA)
/// Named, so that whoever asks for them is told why they are not there.
class AbsentCudaKernels final : public LibraryImplementation {
 public:
  using LibraryImplementation::LibraryImplementation;
  harness::Support supports(const Problem&) const override {
    return harness::Support::no("this build has no CUDA: configure it where nvcc is found");
  }
};

#endif
}  // namespace

harness::Table implementations() {
  harness::Table table = stages::implementations();
  append(table, library_implementations());
#if defined(TILEWISE_HAVE_CUDA)
  append(table, stages::gpu_implementations());
  table.push_back(cuda_kernels());
  table.push_back(cuda_kernels_sm90());
#endif
  return table;
}

Problem problem_for(const harness::Implementation& implementation, const std::string& sizes) {
  for (const char* const pass : {"bwd", "fwd"})
    for (const char* const dtype : {"f32", "f16"}) {
      Problem problem = parse(fmt::format("{} {} {}", pass, sizes, dtype));
      if (implementation.supports(problem).ok) return problem;
    }
  return parse("fwd " + sizes);
}

harness::Table implementations_for(const std::string& names) {
  harness::Table table = implementations();
#if !defined(TILEWISE_HAVE_CUDA)
  if (names.find("cuda") != std::string::npos)
    for (const auto& row : {cuda_row("cuda.sm80"), cuda_row_sm90("cuda.sm90")})
      table.push_back(std::make_unique<AbsentCudaKernels>(row));
#endif
  if (names.find("bug.") != std::string::npos) append(table, bugs::planted_bugs());
  if (names.find("emulated") != std::string::npos) append(table, emulated_implementations());
  if (names.find("good.") != std::string::npos) append(table, bugs::correct_kernels());
  return table;
}

const std::vector<Feature>& features() {
  static const std::vector<Feature> all{
      {"plain", "fwd s70 h2 d32"},
      {"causal", "fwd sq50 sk77 d32 causal"},
      {"GQA", "fwd s70 hq4 hk2 d32"},
      {"head_dim_v", "fwd s70 d32 dv48"},
      {"backward", "bwd s70 h2 d32"},
      {"window", "fwd s70 d32 window=16,0"},
      {"softcap", "fwd s70 d32 softcap=20"},
      {"ALiBi", "fwd s70 h4 d32 alibi"},
      {"bias", "fwd s70 d32 bias=1,1,q,k"},
      {"mask", "fwd s70 d32 mask=1,1,q,k"},
      {"varlen", "fwd b2 sq30,41 sk70,20 d32 packed"},
      {"sink", "fwd s70 h2 d32 sink"},
      {"dropout", "fwd s70 d32 dropout=0.2"},
      {"block mask", "fwd s70 d32 blocks=16,16,0.5"},
      {"pages", "fwd b2 sq3 sk70 h2 d32 page=16"},
      {"append", "fwd b2 sq3 sk70 h2 d32 causal new=3"},
      {"rotary", "fwd b2 sq3 sk70 h2 d32 causal new=3 rotary=32"},
      {"int8 keys", "fwd s70 d32 kv=i8"},
      {"f64", "fwd s70 d32 f64"},
      {"f16", "fwd s70 d32 f16"},
      {"bf16", "fwd s70 d32 bf16"},
  };
  return all;
}

namespace {
std::string_view after_dot(std::string_view name) {
  const std::size_t dot = name.find('.');
  return dot == std::string_view::npos ? name : name.substr(dot + 1);
}

std::vector<const harness::Implementation*> matches(const harness::Table& table,
                                                    const std::string& text) {
  std::vector<const harness::Implementation*> found;
  for (const auto& implementation : table) {
    if (implementation->name() == text) return {implementation.get()};
    if (is_named(*implementation, text)) found.push_back(implementation.get());
  }
  return found;
}

BadInput unknown(const harness::Table& table, const std::string& text) {
  std::vector<std::string> known;
  for (const auto& implementation : table) {
    known.emplace_back(implementation->name());
    known.emplace_back(after_dot(implementation->name()));
  }
  const std::string guess = closest(text, known);
  return BadInput(fmt::format("no implementation is called \"{}\"; {}", text,
                              guess.empty() ? "`tilewise list` names all of them"
                                            : fmt::format("did you mean {}?", guess)));
}
}  // namespace

bool is_named(const harness::Implementation& implementation, std::string_view text) {
  const std::string_view name = implementation.name();
  return !text.empty() && (name.starts_with(text) || after_dot(name).starts_with(text));
}

std::vector<const harness::Implementation*> select(const harness::Table& table,
                                                   const std::string& names) {
  std::vector<const harness::Implementation*> wanted;
  for (const std::string& text : split(names, ',')) {
    const bool everything = text == "all";
    const auto found =
        everything ? std::vector<const harness::Implementation*>{} : matches(table, text);
    if (!everything && found.empty()) throw unknown(table, text);
    for (const auto& implementation : table)
      if (everything) wanted.push_back(implementation.get());
    wanted.insert(wanted.end(), found.begin(), found.end());
  }
  if (wanted.empty())
    throw BadInput("no implementation is named: expected --impl NAME, A,B or all");
  std::vector<const harness::Implementation*> ordered;
  for (const auto& implementation : table)
    for (const auto* candidate : wanted)
      if (candidate == implementation.get()) {
        ordered.push_back(candidate);
        break;
      }
  return ordered;
}

const harness::Implementation& select_one(const harness::Table& table, const std::string& name) {
  const auto found = matches(table, name);
  if (found.empty()) throw unknown(table, name);
  if (found.size() > 1)
    throw BadInput(
        fmt::format("\"{}\" means {} implementations, {} and {} among them: expected one", name,
                    found.size(), found[0]->name(), found[1]->name()));
  return *found.front();
}

}  // namespace tilewise::tools
