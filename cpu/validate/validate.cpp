// The steps in their order.
#include "cpu/validate/check.hpp"
#include "cpu/validate/words.hpp"

namespace tilewise::cpu {

Status check_choice(const char* name, std::int32_t value, std::int32_t count) {
  if (value >= 0 && value < count) return {};
  return bad("%s is %d; expected one of the values 0 to %d", name, static_cast<int>(value),
             static_cast<int>(count - 1));
}

Status check_attention(const tilewise_attention& given, std::int32_t pass, const Scope& scope,
                       Call& call) {
  if (Status status = check_choice("pass", pass, 2); !status.ok()) return status;
  call = {};
  Check check{given, pass == TILEWISE_BACKWARD, scope, call};
  for (const auto step : {check_choices, check_numbers, take_tensors, check_cache_forms,
                          check_activations, check_statistics, check_lengths, check_cache,
                          check_head_vectors, check_scales, check_broadcasts, check_block_mask,
                          check_combinations, check_overlaps, choose_scale, bound_positions})
    if (Status status = step(check); !status.ok()) return status;
  return {};
}

const char* Check::name_of(const TensorView& view) const {
  for (const auto& [name, each] : NamedTensors(call.tensors))
    if (each == &view) return name;
  return "a tensor";
}

}  // namespace tilewise::cpu
