// A kernel's launch, checked: the one place from which kernels are started.
#pragma once

#include "core/status.hpp"
#include "cuda/device/platform.hpp"

#include <cstddef>
#include <tuple>
#include <type_traits>

namespace tilewise::device::inline TILEWISE_TARGET {

#if TILEWISE_EMULATED

/// The emulator runs a launch to its end before it returns; streams are all the same.
using StreamHandle = void*;

template <class... Parameters>
struct Bound {
  void (*kernel)(Parameters...);
  std::tuple<Parameters...> values;
};

#else

using StreamHandle = cudaStream_t;

/// A CUDA error as a status, with CUDA's own words.
inline Status status_of(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return {};
  const Code code = error == cudaErrorMemoryAllocation ? Code::no_memory : Code::failed;
  return failure(code, "%s: %s", what, cudaGetErrorString(error));
}

#endif

/// The shape of a launch. `shared_bytes` of dynamic shared memory: above 48 KiB the kernel's
/// consent is asked for (cudaFuncAttributeMaxDynamicSharedMemorySize).
struct Grid {
  dim3 blocks, threads;
  std::size_t shared_bytes = 0;
  StreamHandle stream = nullptr;
};

/// Starts `kernel` on the stream. The status is the launch's own: what happens inside shows when
/// the stream is waited for; under the emulator it is the first finding, at once.
template <class... Parameters>
Status launch(const char* name, void (*kernel)(Parameters...), const Grid& grid,
              std::type_identity_t<Parameters>... values) {
#if TILEWISE_EMULATED
  const Bound<Parameters...> bound{kernel, {values...}};
  emulator::Launch it;
  it.name = name;
  it.grid = grid.blocks;
  it.block = grid.threads;
  it.shared_bytes = it.shared_consented = grid.shared_bytes;
  it.kernel = [](const void* parameters) {
    const auto& own = *static_cast<const Bound<Parameters...>*>(parameters);
    std::apply(own.kernel, own.values);
  };
  it.parameters = &bound;
  it.parameter_bytes = sizeof bound;
  return emulator::launch(it);
#else
  if (grid.shared_bytes > 48 * 1024) {
    const cudaError_t consent = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                     cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                     static_cast<int>(grid.shared_bytes));
    if (consent != cudaSuccess) {
      (void)cudaGetLastError();
      return failure(Code::failed, "%s: %zu bytes of shared memory: %s", name, grid.shared_bytes,
                     cudaGetErrorString(consent));
    }
  }
  std::tuple<Parameters...> copies{values...};
  const cudaError_t error = std::apply(
      [&](Parameters&... copy) {
        void* pointers[] = {static_cast<void*>(&copy)..., nullptr};
        return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid.blocks, grid.threads,
                                pointers, grid.shared_bytes, grid.stream);
      },
      copies);
  if (error != cudaSuccess) (void)cudaGetLastError();
  return status_of(error, name);
#endif
}

}  // namespace tilewise::device::inline TILEWISE_TARGET
