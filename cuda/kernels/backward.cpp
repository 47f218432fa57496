// The backward kernels' host side: which calls are theirs, and the workspace.
#include "cuda/kernels/families.hpp"
#include "cuda/kernels/serving.hpp"
#include "cuda/kernels/sm80/backward_tile.hpp"

#include <cstdint>
#include <limits>

namespace tilewise::cuda::backward {
namespace {

template <class Tile>
std::size_t bytes_of(const DeviceCall& call) {
  const std::int64_t seqlen_q = call.tensors.q.shape[1];
  const std::int64_t heads = call.tensors.q.shape[0] * call.tensors.q.shape[2];
  const std::int64_t tiles = heads * ((seqlen_q + Tile::Br - 1) / Tile::Br);
  return sm80::backward_head_bytes +
         static_cast<std::size_t>(tiles) * sizeof(sm80::BackwardQueries<Tile>);
}

}  // namespace

Status serves(const DeviceCall& call, const DeviceLimits& limits) {
  constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
  const AttentionTensors& t = call.tensors;
  if (!call.backward) return no("forward");
  Status status = plain(call, {"q", "k", "v", "o", "lse", "dout", "dq", "dk", "dv"});
  if (!status.ok()) return status;
  if (status = one_half_dtype(t); !status.ok()) return status;
  const std::int64_t d = t.q.shape[3];
  if (d != 64 && d != 128 && d != 256)
    return failure(Code::unsupported,
                   "head_dim is %lld; the fast backward kernels have 64, 128 and 256",
                   static_cast<long long>(d));
  if (t.v.shape[3] != d)
    return failure(Code::unsupported, "head_dim_v is %lld, and head_dim %lld; they must be equal",
                   static_cast<long long>(t.v.shape[3]), static_cast<long long>(d));
  const struct {
    const char* name;
    const TensorView& view;
  } all[] = {{"q", t.q},       {"k", t.k},   {"v", t.v},   {"o", t.o},
             {"dout", t.dout}, {"dq", t.dq}, {"dk", t.dk}, {"dv", t.dv}};
  for (const auto& [name, view] : all) {
    if (!is_there(view))
      return failure(Code::unsupported, "%s is absent; the fast backward kernels want it", name);
    if (status = in_chunks(name, view); !status.ok()) return status;
  }
  if (!is_there(t.lse))
    return failure(Code::unsupported, "lse is absent; the fast backward kernels want it");
  if (status = contiguous_lse(t.lse); !status.ok()) return status;
  const std::int64_t n = t.q.shape[1], heads = t.q.shape[0] * t.q.shape[2];
  const std::int64_t keys = t.k.shape[1], heads_k = t.k.shape[0] * t.k.shape[2];
  if (n > most - 256 || keys > most - 256 || heads * (n / 64 + 1) > most ||
      heads_k * (keys / 64 + 1) > most)
    return failure(Code::unsupported, "more than 2^31 rows, keys, or blocks of rows");
  const std::size_t least = d == 64    ? sm80::Backward64::shared_bytes
                            : d == 128 ? sm80::Backward128Small::shared_bytes
                                       : sm80::Backward256Small::shared_bytes;
  if (limits.shared_bytes_a_block < least)
    return failure(Code::unsupported, "a block has %zu bytes of shared memory, and wants %zu",
                   limits.shared_bytes_a_block, least);
  return usual_conventions(call);
}

std::size_t workspace_bytes(const DeviceCall& call, const DeviceLimits&) {
  static_assert(sizeof(sm80::BackwardQueries<sm80::Backward128>) ==
                sizeof(sm80::BackwardQueries<sm80::Backward128Small>));
  static_assert(sizeof(sm80::BackwardQueries<sm80::Backward256>) ==
                sizeof(sm80::BackwardQueries<sm80::Backward256Small>));
  const std::int64_t d = call.tensors.q.shape[3];
  return d == 64    ? bytes_of<sm80::Backward64>(call)
         : d == 128 ? bytes_of<sm80::Backward128>(call)
                    : bytes_of<sm80::Backward256>(call);
}

}  // namespace tilewise::cuda::backward
