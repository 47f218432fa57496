// What the copy engine has to know of a tensor: where it is, its sizes and strides, the box that is
// copied at once, how the box is swizzled in shared memory. The host makes one for a launch, and
// the kernel has it as a parameter: `const __grid_constant__ TensorMap map`. CUDA Driver API,
// "Tensor Map Object Management"; PTX ISA, "Tensors".
//
//     TensorMap map;
//     Status status = describe_tensor(map, q, {4, {d, rows, heads, batch}, {row, head, sequence}},
//                                     {64, 128, 1, 1, 1}, Swizzle::bytes_128);
//
// A box comes to shared memory densely, innermost dimension first: with a swizzle its innermost
// extent is at most the swizzle's bytes, so that a tile wider than 64 numbers of 16 bits is several
// boxes, one behind the other ("slabs").
#pragma once

#include "core/status.hpp"
#include "cuda/device/platform.hpp"

#include <cstddef>
#include <cstdint>

#if !TILEWISE_EMULATED
#include <cuda.h>
#include <cudaTypedefs.h>
#endif

namespace tilewise::device::inline TILEWISE_TARGET {

/// 128 bytes that only the copy engine and the driver (or the emulator) understand.
struct alignas(64) TensorMap {
  std::uint64_t words[16];
};

/// How chunks of 16 bytes change places in every eight rows (swizzle.hpp).
enum class Swizzle : std::uint8_t { none, bytes_32, bytes_64, bytes_128 };

/// Of up to five dimensions, the innermost first. Unused ones are 1. Strides, of the second
/// dimension on, are in elements; in bytes they are multiples of 16.
struct TensorShape {
  int dimensions = 0;
  std::uint64_t size[5] = {1, 1, 1, 1, 1};
  std::uint64_t stride[4] = {};
};

#if TILEWISE_EMULATED

template <class T>
Status describe_tensor(TensorMap& map, const T* memory, const TensorShape& shape,
                       const std::uint32_t (&box)[5], Swizzle swizzle) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4, "f16, bf16, float");
  return emulator::describe_tensor(&map, memory, sizeof(T), shape.dimensions, shape.size,
                                   shape.stride, box, static_cast<int>(swizzle));
}

#else

namespace detail {

/// The driver's function, which the toolkit's libraries do not have.
inline Status find_encoder(PFN_cuTensorMapEncodeTiled_v12000& encode) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             12000, cudaEnableDefault, &found);
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess)
    return failure(Code::unsupported, "the driver has no cuTensorMapEncodeTiled");
  encode = reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  return {};
}

template <class T>
constexpr CUtensorMapDataType data_type = CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
template <>
inline constexpr CUtensorMapDataType data_type<f16> = CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
template <>
inline constexpr CUtensorMapDataType data_type<bf16> = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;

}  // namespace detail

/// A failure if the driver refuses: sizes of 0 or above 2^32, strides that are no multiple of 16
/// bytes or reach 2^40, an address that is no multiple of 16, a box above 256 in a dimension.
template <class T>
Status describe_tensor(TensorMap& map, const T* memory, const TensorShape& shape,
                       const std::uint32_t (&box)[5], Swizzle swizzle) {
  PFN_cuTensorMapEncodeTiled_v12000 encode = nullptr;
  const Status found = detail::find_encoder(encode);
  if (!found.ok()) return found;
  cuuint64_t stride_bytes[4];
  for (int n = 0; n < 4; ++n) stride_bytes[n] = shape.stride[n] * sizeof(T);
  const cuuint32_t dense[5] = {1, 1, 1, 1, 1};
  const CUresult result = encode(
      reinterpret_cast<CUtensorMap*>(&map), detail::data_type<T>,
      static_cast<cuuint32_t>(shape.dimensions), const_cast<T*>(memory), shape.size, stride_bytes,
      box, dense, CU_TENSOR_MAP_INTERLEAVE_NONE, static_cast<CUtensorMapSwizzle>(swizzle),
      CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    return failure(Code::failed, "the driver refuses a tensor map: error %d", int(result));
  return {};
}

#endif

}  // namespace tilewise::device::inline TILEWISE_TARGET
