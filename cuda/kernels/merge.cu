// From parts as tensors to the merge kernel.
#include "cuda/kernels/merge.hpp"
#include "cuda/kernels/sm80/merge_kernel.hpp"

#include <cmath>
#include <limits>

namespace tilewise::cuda::TILEWISE_TARGET {
namespace {

Status merge_tensor_of(const char* name, const TensorView& view, sm80::MergeTensor& tensor) {
  const std::int64_t* const strides = view.strides + view.ndim - 3;  // row, head, column
  tensor = {view.data,
            sm80::MergeFormat::f32,
            view.ndim == 4 ? view.strides[0] : 0,
            strides[0],
            strides[1],
            strides[2]};
  switch (view.dtype) {
    case DType::f32: return {};
    case DType::f16: tensor.format = sm80::MergeFormat::f16; return {};
    case DType::bf16: tensor.format = sm80::MergeFormat::bf16; return {};
    default:
      return failure(Code::unsupported, "%s has dtype %s; the CUDA merge has f16, bf16 and f32",
                     name, info(view.dtype).name.data());
  }
}

Status merge_lse_of(const char* name, const TensorView& view, sm80::MergeLse& lse) {
  if (view.dtype != DType::f32)
    return failure(Code::unsupported, "%s has dtype %s; the CUDA merge has f32", name,
                   info(view.dtype).name.data());
  const std::int64_t* const strides = view.strides + view.ndim - 2;  // head, row
  lse = {static_cast<float*>(view.data), view.ndim == 3 ? view.strides[0] : 0, strides[1],
         strides[0]};
  return {};
}

}  // namespace

Status merge(const DeviceMerge& what, const DeviceLimits&, void* stream) {
  if (what.n > most_merged)
    return failure(Code::unsupported, "%lld parts; the CUDA merge has %d at most",
                   static_cast<long long>(what.n), most_merged);
  const std::int64_t* const shape = what.o.shape + what.o.ndim - 3;
  sm80::MergeProblem problem = {};
  problem.n = static_cast<int>(what.n);
  problem.seqlen = shape[0];
  problem.nheads = shape[1];
  problem.width = shape[2];
  problem.rows = (what.o.ndim == 4 ? what.o.shape[0] : 1) * shape[0] * shape[1];
  problem.base_two = what.lse_base == LseBase::two;
  problem.empty_lse = what.empty_row_lse == EmptyRowLse::plus_inf ? INFINITY : -INFINITY;
  Status status = merge_tensor_of("o", what.o, problem.o);
  if (status.ok() && what.lse.exists()) status = merge_lse_of("lse", what.lse, problem.lse);
  for (int i = 0; i < problem.n && status.ok(); ++i) {
    status = merge_tensor_of("a part of o", what.o_part(what, i), problem.o_part[i]);
    if (status.ok())
      status = merge_lse_of("a part of lse", what.lse_part(what, i), problem.lse_part[i]);
  }
  if (!status.ok() || problem.rows == 0) return status;
  const std::int64_t blocks = (problem.rows + sm80::merge_warps - 1) / sm80::merge_warps;
  if (blocks > std::numeric_limits<std::int32_t>::max())
    return failure(Code::unsupported, "more than 2^31 blocks of rows");
  return device::launch("cuda.sm80 merge", sm80::merge_kernel,
                        {{static_cast<unsigned>(blocks)},
                         {32 * sm80::merge_warps},
                         0,
                         static_cast<device::StreamHandle>(stream)},
                        problem);
}

}  // namespace tilewise::cuda::TILEWISE_TARGET
