// The door to the backends: which one, and whether the workspace suffices.
#include "cpu/call.hpp"
#include "cpu/flash/flash.hpp"
#include "cpu/portable/portable.hpp"

#include <cstdint>

namespace tilewise::cpu {
namespace {

#if defined(TILEWISE_FORWARD_ONLY)
constexpr bool has_double = false;
#else
constexpr bool has_double = true;
#endif

bool in_double(const Call& call) {
  return has_double && call.tensors.q.dtype == DType::f64;
}

bool by_tile_kernels(const Call& call) {
  return call.kernels != nullptr && flash::refuses(call) == nullptr;
}

Status suffices(const void* workspace, std::size_t bytes, std::size_t wanted) {
  if (workspace == nullptr || bytes < wanted)
    return failure(Code::no_memory, "the workspace has %zu bytes, this call needs %zu",
                   workspace == nullptr ? std::size_t{0} : bytes, wanted);
  if (reinterpret_cast<std::uintptr_t>(workspace) % 64 != 0)
    return failure(Code::bad_argument, "the workspace must start at a multiple of 64 bytes");
  return {};
}

}  // namespace

Status left_out(bool float64, bool backward) {
#if defined(TILEWISE_FORWARD_ONLY)
  constexpr const char* other = "it was made with TILEWISE_FORWARD_ONLY";
  if (backward) return failure(Code::unsupported, "this build has no backward pass; %s", other);
  if (float64)
    return failure(Code::unsupported, "this build does not compute in float64; %s", other);
#else
  (void)float64, (void)backward;
#endif
  return {};
}

Choice choose(const Call& call, bool backward) {
  constexpr const char* portable_name = "cpu.portable";
  if (call.kernels == nullptr)
    return {portable_name, "this processor, or this context, has the portable kernel alone", false};
  if (backward) return {portable_name, "the backward pass is computed in plain C++", false};
  if (const char* const why = flash::refuses(call)) return {portable_name, why, false};
  return {call.kernels->name, "the fastest that this processor and this library have", true};
}

std::size_t forward_workspace(const Call& call, int max_workers) {
  if (by_tile_kernels(call)) return flash::forward_workspace(*call.kernels, call, max_workers);
  return in_double(call) ? portable::forward_workspace<double>(call, max_workers)
                         : portable::forward_workspace<float>(call, max_workers);
}

std::size_t forward_fast_workspace(const Call& call, int max_workers) {
  return by_tile_kernels(call) ? flash::forward_fast_workspace(*call.kernels, call, max_workers)
                               : forward_workspace(call, max_workers);
}

Status forward(const Call& call, const Workers& workers, void* workspace, std::size_t bytes) {
  const Status status = suffices(workspace, bytes, forward_workspace(call, workers.max_workers));
  if (!status.ok()) return status;
  if (by_tile_kernels(call))
    flash::forward(*call.kernels, call, workers, workspace, bytes);
  else if (in_double(call))
    portable::forward<double>(call, workers, workspace);
  else
    portable::forward<float>(call, workers, workspace);
  return {};
}

#if defined(TILEWISE_FORWARD_ONLY)

std::size_t backward_workspace(const Call&, int) {
  return 0;
}

Status backward(const Call&, const Workers&, void*, std::size_t) {
  return left_out(false, true);
}

#else

std::size_t backward_workspace(const Call& call, int max_workers) {
  return in_double(call) ? portable::backward_workspace<double>(call, max_workers)
                         : portable::backward_workspace<float>(call, max_workers);
}

Status backward(const Call& call, const Workers& workers, void* workspace, std::size_t bytes) {
  const Status status = suffices(workspace, bytes, backward_workspace(call, workers.max_workers));
  if (!status.ok()) return status;
  if (in_double(call))
    portable::backward<double>(call, workers, workspace);
  else
    portable::backward<float>(call, workers, workspace);
  return {};
}

#endif

}  // namespace tilewise::cpu
