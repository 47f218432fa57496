// The tensors of the struct, each by itself, and which of them share memory.
#include "cpu/api/overlap.hpp"
#include "cpu/validate/check.hpp"
#include "cpu/validate/words.hpp"

#include <cinttypes>
#include <cstdio>
#include <iterator>
#include <string_view>

namespace tilewise::cpu {
namespace {

static_assert(static_cast<int>(DType::f64) + 1 == TILEWISE_F64);
static_assert(static_cast<int>(DType::f32) + 1 == TILEWISE_F32);
static_assert(static_cast<int>(DType::f16) + 1 == TILEWISE_F16);
static_assert(static_cast<int>(DType::bf16) + 1 == TILEWISE_BF16);
static_assert(static_cast<int>(DType::e4m3) + 1 == TILEWISE_E4M3);
static_assert(static_cast<int>(DType::e5m2) + 1 == TILEWISE_E5M2);
static_assert(static_cast<int>(DType::i64) + 1 == TILEWISE_I64);
static_assert(static_cast<int>(DType::i32) + 1 == TILEWISE_I32);
static_assert(static_cast<int>(DType::boolean) + 1 == TILEWISE_BOOL);
static_assert(static_cast<int>(DType::i8) + 1 == TILEWISE_I8);
static_assert(static_cast<int>(DType::q8_0) + 1 == TILEWISE_Q8_0);

/// A tensor's part in a pass.
enum class Part : std::uint8_t { none, needed, optional, output, optional_output };

/// Where a tensor of core's list comes from in the caller's struct. The name lies inside: a pointer
/// to it would be one to relocate, in every process that loads the library.
struct Field {
  char name[20];
  tilewise_tensor tilewise_attention::*given;
  Part forward = Part::optional, backward = Part::optional;
};

using T = tilewise_attention;
constexpr Field fields[] = {
    {"q", &T::q, Part::needed, Part::needed},
    {"k", &T::k, Part::needed, Part::needed},
    {"v", &T::v, Part::needed, Part::needed},
    {"o", &T::o, Part::output, Part::needed},
    {"lse", &T::lse, Part::optional_output, Part::needed},
    {"dout", &T::dout, Part::none, Part::needed},
    {"dq", &T::dq, Part::none, Part::output},
    {"dk", &T::dk, Part::none, Part::output},
    {"dv", &T::dv, Part::none, Part::output},
    {"dbias", &T::dbias, Part::none, Part::optional_output},
    {"dsinks", &T::dsinks, Part::none, Part::optional_output},
    {"bias", &T::bias},
    {"mask", &T::mask},
    {"sinks", &T::sinks},
    {"alibi_slopes", &T::alibi_slopes},
    {"cu_seqlens_q", &T::cu_seqlens_q},
    {"cu_seqlens_k", &T::cu_seqlens_k},
    {"seqlens_q", &T::seqlens_q},
    {"seqlens_k", &T::seqlens_k},
    {"kv_num_blocks", &T::kv_num_blocks},
    {"kv_indices", &T::kv_indices},
    {"full_kv_num_blocks", &T::full_kv_num_blocks},
    {"full_kv_indices", &T::full_kv_indices},
    {"block_table", &T::block_table},
    {"cache_batch_idx", &T::cache_batch_idx},
    {"cache_leftpad", &T::cache_leftpad},
    {"k_new", &T::k_new},
    {"v_new", &T::v_new},
    {"rotary_cos", &T::rotary_cos},
    {"rotary_sin", &T::rotary_sin},
    {"q_descale", &T::q_descale},
    {"k_descale", &T::k_descale},
    {"v_descale", &T::v_descale},
    {"k_scales", &T::k_scales},
    {"v_scales", &T::v_scales},
};

/// Core's list and the table above have the same names; what one of them lacked would come to light
/// at every call.
const Field* field_called(std::string_view name) {
  for (const Field& field : fields)
    if (name == field.name) return &field;
  return nullptr;
}

Part part_of(const Field& field, bool backward) {
  return backward ? field.backward : field.forward;
}

bool is_output(Part part) {
  return part == Part::output || part == Part::optional_output;
}

Status take(const Check& check, const char* name, TensorView& view) {
  const Field* const field = field_called(name);
  if (field == nullptr) return failure(Code::failed, "%s is no field of the interface", name);
  const Part part = part_of(*field, check.backward);
  if (part == Part::none) return {};
  const tilewise_tensor& given = check.given.*field->given;
  if (given.ndim == 0 && given.data == nullptr) {
    if (part == Part::optional || part == Part::optional_output) return {};
    return bad("%s is absent; the %s pass needs it", name, check.backward ? "backward" : "forward");
  }
  Status status = check_tensor(name, given, check.scope, view);
  if (status.ok() && is_output(part)) status = check_output(name, view);
  return status;
}

/// Where a tensor is, and where a context computes.
struct DeviceText {
  char text[32];
  DeviceText(std::int32_t type, std::int32_t id) {
    if (type == TILEWISE_CPU)
      std::snprintf(text, sizeof text, "the CPU");
    else
      std::snprintf(text, sizeof text, "CUDA device %d", static_cast<int>(id));
  }
};

Status check_device(const char* name, const tilewise_tensor& given, const Device& device) {
  const auto expected = static_cast<std::int32_t>(device.type);
  if (given.device_type != TILEWISE_CPU && given.device_type != TILEWISE_CUDA)
    return bad("%s has device type %d; expected %d, as the context's", name,
               static_cast<int>(given.device_type), static_cast<int>(expected));
  // There is one CPU: of tensors there, the number is not looked at.
  if (given.device_type == expected && (given.device_id == device.id || expected == TILEWISE_CPU))
    return {};
  return failure(Code::unsupported, "%s is on %s; this context computes on %s", name,
                 DeviceText(given.device_type, given.device_id).text,
                 DeviceText(expected, device.id).text);
}

/// What views of nothing point at, so that they exist().
alignas(64) constexpr unsigned char nothing[64] = {};

}  // namespace

NamedTensors::NamedTensors(const AttentionTensors& tensors) {
  for_each_tensor(tensors, [this](const char* name, const TensorView& view) {
    all[count++] = {name, &view};
  });
}
static_assert(std::size(fields) <= NamedTensors::most);

Status take_tensors(Check& check) {
  for (const auto& [name, view] : NamedTensors(check.call.tensors))
    // The list may be of a call that is finished; this one is not.
    if (Status status = take(check, name, const_cast<TensorView&>(*view)); !status.ok())
      return status;
  return {};
}

Status check_overlaps(Check& check) {
  if (check.scope.depth == Depth::shapes) return {};
  struct Member {
    const char* name;
    const TensorView* view;
    bool written;
  } members[std::size(fields)] = {};
  int count = 0;
  const AttentionTensors& tensors = check.call.tensors;
  for (const auto& [name, view] : NamedTensors(tensors)) {
    if (!view->exists()) continue;
    const bool appended_to = tensors.cache.appends() && (view == &tensors.k || view == &tensors.v);
    const bool written = appended_to || is_output(part_of(*field_called(name), check.backward));
    members[count++] = {name, view, written};
  }
  for (int i = 0; i < count; ++i)
    for (int j = 0; members[i].written && j < count; ++j) {
      if (members[j].written && j <= i) continue;
      if (share_memory(*members[i].view, *members[j].view))
        return bad("%s shares memory with %s; expected an output that overlaps nothing",
                   members[i].name, members[j].name);
    }
  return {};
}

Status check_tensor(const char* name, const tilewise_tensor& given, const Scope& scope,
                    TensorView& view) {
  if (given.ndim < 1 || given.ndim > TensorView::max_dims)
    return bad("%s has %d dimensions; expected 1 to %d", name, static_cast<int>(given.ndim),
               TensorView::max_dims);
  if (given.dtype < TILEWISE_F64 || given.dtype > TILEWISE_Q8_0)
    return bad("%s has dtype number %d, which is none", name, static_cast<int>(given.dtype));
  if (Status status = check_device(name, given, scope.device); !status.ok()) return status;
  view = {};
  view.device = scope.device;
  view.data = given.data;
  view.dtype = static_cast<DType>(given.dtype - 1);
  view.ndim = given.ndim;
  for (int dim = 0; dim < given.ndim; ++dim) {
    view.shape[dim] = given.shape[dim];
    view.strides[dim] = given.strides[dim];
    if (given.shape[dim] < 0)
      return bad("%s has size %" PRId64 " in dimension %d; expected 0 or more", name,
                 given.shape[dim], dim);
    if (given.shape[dim] > largest_dimension)
      return bad("%s has size %" PRId64 " in dimension %d, beyond any memory", name,
                 given.shape[dim], dim);
  }
  const bool somewhere = given.data != nullptr;
  if (!somewhere) view.data = const_cast<unsigned char*>(nothing);
  ByteRange range;
  if (!byte_range(view, range))
    return bad("%s has sizes and strides that reach beyond any memory", name);
  if (!somewhere && scope.depth != Depth::shapes && range.end > range.begin)
    return bad("%s has elements and its data is null", name);
  if (reinterpret_cast<std::uintptr_t>(view.data) % alignment_of(view.dtype) != 0)
    return bad("%s is misaligned: its address is no multiple of the %zu bytes of %s", name,
               alignment_of(view.dtype), text(view.dtype));
  return {};
}

Status check_output(const char* name, const TensorView& view) {
  if (!shares_with_itself(view)) return {};
  for (int dim = 0; dim < view.ndim; ++dim)
    if (view.strides[dim] == 0 && view.shape[dim] > 1)
      return bad("%s has stride 0 in dimension %d; an output's elements each need a place", name,
                 dim);
  return bad("%s has strides by which its elements share memory; an output's each need a place",
             name);
}

Status check_workspace(const Call& call, const void* workspace, std::size_t bytes,
                       std::size_t needed) {
  if (needed == 0) return {};
  if (workspace == nullptr) return bad("workspace is null; this call needs %zu bytes", needed);
  if (reinterpret_cast<std::uintptr_t>(workspace) % 64 != 0)
    return bad("workspace is misaligned: expected an address that is a multiple of 64");
  if (bytes < needed)
    return failure(Code::no_memory, "workspace has %zu bytes; this call needs %zu", bytes, needed);
  for (const auto& [name, view] : NamedTensors(call.tensors))
    if (view->exists() && shares_with_bytes(*view, workspace, needed))
      return bad("%s lies in the workspace; expected memory of its own", name);
  return {};
}

}  // namespace tilewise::cpu
