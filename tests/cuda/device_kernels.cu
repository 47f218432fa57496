#include "device_kernels.hpp"

#include "cuda/device/copy.hpp"
#include "cuda/device/epilogue.hpp"
#include "cuda/device/fragment.hpp"
#include "cuda/device/launch.hpp"
#include "cuda/device/mask.hpp"
#include "cuda/device/memory.hpp"
#include "cuda/device/operands.hpp"
#include "cuda/device/ptx/barrier.hpp"
#include "cuda/device/ptx/vector_access.hpp"
#include "cuda/device/scheduler.hpp"
#include "cuda/device/shared.hpp"
#include "cuda/device/softmax.hpp"
#include "cuda/device/swizzle.hpp"

#include <type_traits>

namespace tilewise::tests::inline TILEWISE_TARGET {
namespace {

using device::bf16;
using device::f16;
using device::Memory;

template <class T>
Status uploaded(Memory<T>& memory, const std::vector<T>& values, const char* name) {
  Status status = memory.allocate(values.size(), name);
  if (status.ok()) status = memory.upload(values.data());
  return status;
}

template <class T>
Status downloaded(Status status, const Memory<T>& memory, std::vector<T>& values) {
  values.resize(memory.size());
  return status.ok() ? memory.download(values.data()) : status;
}

/// Launches kernel(in, out, more...), which fills all of `out`, of the size that it has.
template <class In, class Out, class... More>
Status mapped(const char* name, void (*kernel)(const In*, Out*, More...), unsigned threads,
              std::size_t shared_bytes, const std::vector<In>& in, std::vector<Out>& out,
              std::type_identity_t<More>... more) {
  Memory<In> from;
  Memory<Out> to;
  Status status = uploaded(from, in, "in");
  if (status.ok()) status = to.allocate(out.size(), "out");
  if (status.ok())
    status = device::launch(name, kernel, {{1}, {threads}, shared_bytes}, from.data(), to.data(),
                            more...);
  return downloaded(status, to, out);
}

/// Numbers as T, or as they are.
template <class T>
Status uploaded_as(Memory<T>& memory, const Floats& values, const char* name) {
  std::vector<T> converted(values.size());
  for (std::size_t n = 0; n < values.size(); ++n) converted[n] = T(values[n]);
  return uploaded(memory, converted, name);
}

// ---------------------------------------------------------------------------------------- products

template <class T>
__global__ void multiply_kernel(const float* a, const float* b, const float* c, float* d) {
  constexpr bool tf32 = std::is_same_v<T, float>;
  constexpr int depth = tf32 ? 8 : 16;
  const int lane = device::lane_index();
  a += blockIdx.x * 16 * depth;
  b += blockIdx.x * depth * 8;
  c += blockIdx.x * 16 * 8;
  d += blockIdx.x * 16 * 8;
  device::OperandA of_a;
  device::OperandB of_b;
  device::Accumulator of_d;
  for (int n = 0; n < 4; ++n) {
    const device::Position at = device::accumulator_at(lane, n);
    of_d.value[n] = c[at.row * 8 + at.column];
  }
  if constexpr (tf32) {
    for (int n = 0; n < 4; ++n) {
      const device::Position at = device::tf32_operand_a_at(lane, n);
      of_a.value[n] = device::to_tf32(a[at.row * depth + at.column]);
    }
    for (int n = 0; n < 2; ++n) {
      const device::Position at = device::tf32_operand_b_at(lane, n);
      of_b.value[n] = device::to_tf32(b[at.row * 8 + at.column]);
    }
  } else {
    for (int n = 0; n < 4; ++n) {
      const device::Position low = device::operand_a_at(lane, n, 0);
      const device::Position high = device::operand_a_at(lane, n, 1);
      of_a.value[n] =
          device::pack<T>(a[low.row * depth + low.column], a[high.row * depth + high.column]);
    }
    for (int n = 0; n < 2; ++n) {
      const device::Position low = device::operand_b_at(lane, n, 0);
      const device::Position high = device::operand_b_at(lane, n, 1);
      of_b.value[n] = device::pack<T>(b[low.row * 8 + low.column], b[high.row * 8 + high.column]);
    }
  }
  device::multiply<T>(of_d, of_a, of_b);
  for (int n = 0; n < 4; ++n) {
    const device::Position at = device::accumulator_at(lane, n);
    d[at.row * 8 + at.column] = of_d.value[n];
  }
}

// ---------------------------------------------------------------------------------------- ldmatrix

struct Matrices {
  alignas(16) std::uint16_t rows[32][8];
};

template <int count, bool transposed>
__global__ void load_kernel(const std::uint16_t* in, std::uint32_t* out) {
  Matrices& shared = device::shared_memory<Matrices>();
  const int lane = device::lane_index();
  if (lane < 8 * count)
    for (int n = 0; n < 8; ++n) shared.rows[lane][n] = in[lane * 8 + n];
  __syncwarp();
  std::uint32_t registers[count];
  if constexpr (transposed)
    device::ldmatrix_transposed(registers, shared.rows[lane]);
  else
    device::ldmatrix(registers, shared.rows[lane]);
  for (int n = 0; n < count; ++n) out[lane * count + n] = registers[n];
}

// ---------------------------------------------------------------------------------- swizzled tiles

template <class T>
struct ProductTiles {
  device::SwizzledTile<T, 16, 32> a;
  device::SwizzledTile<T, 16, 32> b_transposed;
  device::SwizzledTile<T, 32, 16> b;
};

template <class T, bool b_transposed>
__global__ void multiply_tiles_kernel(const T* a, const T* b, float* d) {
  auto& shared = device::shared_memory<ProductTiles<T>>();
  using Tile = device::SwizzledTile<T, 16, 32>;
  device::copy_tile_async<32>(shared.a, a, 32, 16, 32);
  if constexpr (b_transposed)
    device::copy_tile_async<32>(shared.b_transposed, b, 32, 16, 32);
  else
    device::copy_tile_async<32>(shared.b, b, 16, 32, 16);
  device::cp_async_commit();
  device::cp_async_wait<0>();
  __syncwarp();
  device::WarpTile<16> sum;
  sum.clear();
  for (int chunk = 0; chunk < Tile::chunks; chunk += 2) {
    const device::OperandA of_a = device::load_operand_a(shared.a, 0, chunk);
    device::OperandB of_b[2];
    if constexpr (b_transposed)
      device::load_operands_b(of_b, shared.b_transposed, 0, chunk);
    else
      device::load_operands_b_transposed(of_b, shared.b, chunk * Tile::chunk_size, 0);
    for (int n = 0; n < 2; ++n) device::multiply<T>(sum.piece[n], of_a, of_b[n]);
  }
  device::store_tile(sum, d, 16, 16, 16);
}

template <class T, bool b_transposed>
Status product_of_tiles_as(const Floats& a, const Floats& b, Floats& d) {
  Memory<T> of_a, of_b;
  Memory<float> of_d;
  Status status = uploaded_as(of_a, a, "a");
  if (status.ok()) status = uploaded_as(of_b, b, "b");
  if (status.ok()) status = of_d.allocate(16 * 16, "d");
  if (status.ok())
    status =
        device::launch("multiply_tiles", multiply_tiles_kernel<T, b_transposed>,
                       {{1}, {32}, sizeof(ProductTiles<T>)}, of_a.data(), of_b.data(), of_d.data());
  return downloaded(status, of_d, d);
}

// ----------------------------------------------------------------------------------------- softmax

__global__ void softmax_kernel(const float* scores, const int* keys, int most_keys,
                               float log2_scale, float* o, float* lse) {
  constexpr int Bc = 32;
  const int lane = device::lane_index();
  device::OnlineSoftmax rows;
  device::WarpTile<8> sums;
  sums.clear();
  for (int first = 0; first < most_keys; first += Bc) {
    device::WarpTile<Bc> s;
    for (int piece = 0; piece < s.pieces; ++piece)
      for (int n = 0; n < 4; ++n) {
        const device::Position at = device::accumulator_at(lane, n);
        const int key = first + 8 * piece + at.column;
        s.piece[piece].value[n] = key < keys[at.row] ? scores[at.row * most_keys + key] : -INFINITY;
      }
    device::rescale(sums, rows.absorb(s, log2_scale));
    for (const device::Accumulator& piece : s.piece)
      for (int n = 0; n < 4; ++n) sums.piece[0].value[n] += piece.value[n];
  }
  const device::OfRows of_rows = rows.finish(sums);
  device::store_tile(sums, o, 8, 16, 8);
  device::store_lse(of_rows, lse, 16);
}

// --------------------------------------------------------------------------------------- attention

constexpr int Br = 32, Bc = 32, threads = 64, padded = 96;

template <class T>
struct AttentionTiles {
  device::SwizzledTile<T, Br, padded> q;
  device::SwizzledTile<T, Bc, padded> k, v;
};

template <class T, class Out>
__global__ void attention_kernel(Attention problem, const T* q, const T* k, const T* v, Out* o,
                                 float* lse) {
  auto& shared = device::shared_memory<AttentionTiles<T>>();
  const device::Schedule schedule{problem.batch, problem.nheads_q, problem.nheads_k,
                                  (problem.seqlen_q + Br - 1) / Br, problem.causal};
  const device::Work work = schedule.work_of(blockIdx.x);
  const device::Mask mask{problem.seqlen_q, problem.seqlen_k, problem.causal};
  const int head_dim = problem.head_dim;
  const std::int64_t q_stride = problem.nheads_q * head_dim;
  const std::int64_t k_stride = problem.nheads_k * head_dim;
  const int first_row = work.row_block * Br;
  const std::int64_t q_at =
      (std::int64_t{work.batch} * problem.seqlen_q + first_row) * q_stride + work.head_q * head_dim;
  const std::int64_t k_at =
      std::int64_t{work.batch} * problem.seqlen_k * k_stride + work.head_k * head_dim;
  const int warp_row = 16 * device::warp_index();

  device::copy_tile_async<threads>(shared.q, q + q_at, q_stride, problem.seqlen_q - first_row,
                                   head_dim);
  device::WarpTile<padded> sum;
  sum.clear();
  device::OnlineSoftmax rows;
  const float log2_scale = device::log2_scale_of(problem.softmax_scale);
  const int tiles = mask.tiles_of(first_row, Br, Bc);
  for (int tile = 0; tile < tiles; ++tile) {
    const int first_key = tile * Bc;
    const std::int64_t at = k_at + first_key * k_stride;
    device::copy_tile_async<threads>(shared.k, k + at, k_stride, problem.seqlen_k - first_key,
                                     head_dim);
    device::cp_async_commit();
    device::copy_tile_async<threads>(shared.v, v + at, k_stride, problem.seqlen_k - first_key,
                                     head_dim);
    device::cp_async_commit();
    device::cp_async_wait<1>();
    __syncthreads();
    device::WarpTile<Bc> s;
    s.clear();
    for (int chunk = 0; chunk < padded / 8; chunk += 2) {
      device::OperandA of_q = device::load_operand_a(shared.q, warp_row, chunk);
      if (problem.softmax_scale < 0) device::negate(of_q);
      for (int key = 0; key < Bc; key += 16) {
        device::OperandB of_k[2];
        device::load_operands_b(of_k, shared.k, key, chunk);
        for (int n = 0; n < 2; ++n) device::multiply<T>(s.piece[key / 8 + n], of_q, of_k[n]);
      }
    }
    if (mask.cuts(first_row + warp_row, first_key, Bc))
      mask.apply(s, first_row + warp_row, first_key);
    device::rescale(sum, rows.absorb(s, log2_scale));
    device::cp_async_wait<0>();
    __syncthreads();
    for (int key = 0; key < Bc; key += 16) {
      const device::OperandA p = device::as_operand_a<T>(s.piece[key / 8], s.piece[key / 8 + 1]);
      for (int chunk = 0; chunk < padded / 8; chunk += 2) {
        device::OperandB of_v[2];
        device::load_operands_b_transposed(of_v, shared.v, key, chunk);
        for (int n = 0; n < 2; ++n) device::multiply<T>(sum.piece[chunk + n], p, of_v[n]);
      }
    }
    __syncthreads();
  }
  const device::OfRows of_rows = rows.finish(sum);
  const int row = first_row + warp_row;
  device::store_tile(sum, o + q_at + warp_row * q_stride, q_stride, problem.seqlen_q - row,
                     head_dim);
  const std::int64_t head = std::int64_t{work.batch} * problem.nheads_q + work.head_q;
  device::store_lse(of_rows, lse + head * problem.seqlen_q + row, problem.seqlen_q - row);
}

template <class T, class Out>
Status attention_as(const Attention& problem, const Floats& q, const Floats& k, const Floats& v,
                    Floats& o, Floats& lse) {
  Memory<T> of_q, of_k, of_v;
  Memory<Out> of_o;
  Memory<float> of_lse;
  Status status = uploaded_as(of_q, q, "Q");
  if (status.ok()) status = uploaded_as(of_k, k, "K");
  if (status.ok()) status = uploaded_as(of_v, v, "V");
  if (status.ok()) status = of_o.allocate(q.size(), "O");
  if (status.ok()) status = of_lse.allocate(lse.size(), "LSE");
  if (!status.ok()) return status;
  const device::Schedule schedule{problem.batch, problem.nheads_q, problem.nheads_k,
                                  (problem.seqlen_q + Br - 1) / Br, problem.causal};
  status = device::launch("attention", attention_kernel<T, Out>,
                          {{schedule.blocks()}, {threads}, sizeof(AttentionTiles<T>)}, problem,
                          of_q.data(), of_k.data(), of_v.data(), of_o.data(), of_lse.data());
  std::vector<Out> rounded;
  status = downloaded(status, of_o, rounded);
  o.resize(rounded.size());
  for (std::size_t n = 0; n < rounded.size(); ++n) o[n] = static_cast<float>(rounded[n]);
  return downloaded(status, of_lse, lse);
}

// ------------------------------------------------------------------------------------------ copies

template <int Columns>
__global__ void copy_kernel(const std::uint16_t* in, std::uint16_t* out, int stride, int rows,
                            int there) {
  auto& tile = device::shared_memory<device::SwizzledTile<std::uint16_t, 32, Columns>>();
  device::copy_tile_async<threads>(tile, in, stride, rows, there);
  device::cp_async_commit();
  device::cp_async_wait<0>();
  __syncthreads();
  for (int n = static_cast<int>(threadIdx.x); n < 32 * Columns; n += threads)
    out[n] = tile.at(n / Columns, n % Columns);
}

template <int Columns>
Status copied_tile_of(const std::vector<std::uint16_t>& tensor, int stride, int rows, int there,
                      std::vector<std::uint16_t>& tile) {
  tile.resize(32 * Columns);
  return mapped("copy", copy_kernel<Columns>, threads,
                sizeof(device::SwizzledTile<std::uint16_t, 32, Columns>), tensor, tile, stride,
                rows, there);
}

struct TwoTiles {
  device::SwizzledTile<float, 32, 32> tile[2];
};

template <bool waits>
__global__ void pipeline_kernel(const float* in, float* out) {
  TwoTiles& shared = device::shared_memory<TwoTiles>();
  for (int n = 0; n < 2; ++n) {
    device::copy_tile_async<threads>(shared.tile[n], in + n * 32 * 32, 32, 32, 32);
    device::cp_async_commit();
  }
  device::cp_async_wait<waits ? 1 : 2>();
  __syncthreads();
  for (int n = static_cast<int>(threadIdx.x); n < 32 * 32; n += threads)
    out[n] = shared.tile[0].at(n / 32, n % 32);
  device::cp_async_wait<0>();
  __syncthreads();
  for (int n = static_cast<int>(threadIdx.x); n < 32 * 32; n += threads)
    out[32 * 32 + n] = shared.tile[1].at(n / 32, n % 32);
}

struct Words {
  alignas(16) std::uint32_t word[32 * 4];
};

template <int bytes>
__global__ void copy_words_kernel(const std::uint32_t* in, std::uint32_t* out) {
  Words& shared = device::shared_memory<Words>();
  constexpr int each = bytes / 4;
  const int lane = device::lane_index();
  device::cp_async<bytes>(shared.word + lane * each, in + lane * each, lane % 3 != 0);
  device::cp_async_commit();
  device::cp_async_wait<0>();
  __syncwarp();
  for (int n = lane; n < 32 * each; n += 32) out[n] = shared.word[n];
}

template <int Columns, bool is_swizzled>
__global__ void read_rows_kernel(const std::uint16_t*, std::uint32_t* out) {
  using Tile = device::SwizzledTile<std::uint16_t, 32, Columns>;
  auto& tile = device::shared_memory<Tile>();
  const int lane = device::lane_index();
  const auto place = [&](int row, int chunk) {
    return is_swizzled ? tile.chunk(row, chunk) : tile.element + row * Columns + chunk * 8;
  };
  for (int n = lane; n < 32 * Tile::chunks; n += 32)
    device::store_vector(place(n / Tile::chunks, n % Tile::chunks), make_uint4(1, 2, 3, 4));
  __syncwarp();
  std::uint32_t sum = 0;
  for (int chunk = 0; chunk < Tile::chunks; ++chunk) {
    std::uint32_t four[4];
    device::ldmatrix(four, place(lane, chunk));
    for (const std::uint32_t each : four) sum += each;
    device::ldmatrix_transposed(four, place(lane, chunk));
    for (const std::uint32_t each : four) sum += each;
  }
  out[lane] = sum;
}

template <int Columns, bool is_swizzled>
Status read_rows_of() {
  std::vector<std::uint32_t> sums(32);
  return mapped("read_rows", read_rows_kernel<Columns, is_swizzled>, 32,
                sizeof(device::SwizzledTile<std::uint16_t, 32, Columns>),
                std::vector<std::uint16_t>(1), sums);
}

// ------------------------------------------------------------------------------------ instructions

__global__ void hand_over_kernel(const float* in, float* out) {
  auto& shared = device::shared_memory<float[32]>();
  const int lane = device::lane_index();
  if (device::warp_index() == 0) {
    shared[lane] = in[lane];
    device::barrier_arrive(1, 64);
  } else {
    device::barrier_sync(1, 64);
    out[lane] = shared[31 - lane];
  }
}

__global__ void exp2_kernel(const float* in, float* out, int count) {
  for (int n = static_cast<int>(threadIdx.x); n < count; n += 32)
    out[n] = device::exp2_approx(in[n]);
}

template <class T>
__global__ void pack_kernel(const float* in, std::uint32_t* out, int count) {
  for (int n = static_cast<int>(threadIdx.x); n < count; n += 32) {
    if constexpr (std::is_same_v<T, float>)
      out[n] = device::to_tf32(in[n]);
    else
      out[n] = device::pack<T>(in[2 * n], in[2 * n + 1]);
  }
}

template <class T>
__global__ void unpack_kernel(const std::uint32_t* in, float* out, int count) {
  for (int n = static_cast<int>(threadIdx.x); n < count; n += 32)
    device::store_vector(out + 2 * n, device::unpack<T>(in[n]));
}

struct Vectors {
  alignas(16) float number[128];
};

__global__ void reverse_kernel(const float* in, float* out, int offset) {
  Vectors& shared = device::shared_memory<Vectors>();
  const int lane = device::lane_index();
  const bool inside = lane < 31;  // the last four are not there
  device::store_vector(shared.number + 4 * lane,
                       device::load_vector_if<float4>(inside, in + offset + 4 * lane));
  __syncwarp();
  for (int n = 2 * lane; n < 128; n += 64) {
    const auto two = device::load_vector<float2>(shared.number + 126 - n);
    device::store_vector_if(n < 126, out + n, make_float2(two.y, two.x));
  }
  if (lane == 0) out[126] = out[127] = -1;
}

}  // namespace

// --------------------------------------------------------------------------------------- host side

Status products(Format format, const Floats& a, const Floats& b, const Floats& c, Floats& d) {
  Memory<float> of_a, of_b, of_c, of_d;
  Status status = uploaded(of_a, a, "a");
  if (status.ok()) status = uploaded(of_b, b, "b");
  if (status.ok()) status = uploaded(of_c, c, "c");
  if (status.ok()) status = of_d.allocate(c.size(), "d");
  if (!status.ok()) return status;
  const auto kernel = format == Format::f16    ? multiply_kernel<f16>
                      : format == Format::bf16 ? multiply_kernel<bf16>
                                               : multiply_kernel<float>;
  status = device::launch("multiply", kernel, {{static_cast<unsigned>(c.size() / 128)}, {32}},
                          of_a.data(), of_b.data(), of_c.data(), of_d.data());
  return downloaded(status, of_d, d);
}

Status loaded_matrices(int matrices, bool transposed, const std::vector<std::uint16_t>& rows,
                       std::vector<std::uint32_t>& registers) {
  const auto kernel = matrices == 1   ? transposed ? load_kernel<1, true> : load_kernel<1, false>
                        : matrices == 2 ? transposed ? load_kernel<2, true> : load_kernel<2, false>
                        : transposed ? load_kernel<4, true>
                                      : load_kernel<4, false>;
  registers.resize(static_cast<std::size_t>(32 * matrices));
  return mapped("ldmatrix", kernel, 32, sizeof(Matrices), rows, registers);
}

Status product_of_tiles(Format format, bool b_transposed, const Floats& a, const Floats& b,
                        Floats& d) {
  if (format == Format::f16)
    return b_transposed ? product_of_tiles_as<f16, true>(a, b, d)
                        : product_of_tiles_as<f16, false>(a, b, d);
  if (format == Format::bf16)
    return b_transposed ? product_of_tiles_as<bf16, true>(a, b, d)
                        : product_of_tiles_as<bf16, false>(a, b, d);
  return product_of_tiles_as<float, true>(a, b, d);
}

Status softmax(const Floats& scores, const std::vector<int>& keys, float softmax_scale, Floats& o,
               Floats& lse) {
  Memory<float> of_scores, of_o, of_lse;
  Memory<int> of_keys;
  Status status = uploaded(of_scores, scores, "S");
  if (status.ok()) status = uploaded(of_keys, keys, "keys");
  if (status.ok()) status = of_o.allocate(16 * 8, "O");
  if (status.ok()) status = of_lse.allocate(16, "LSE");
  if (!status.ok()) return status;
  status = device::launch("softmax", softmax_kernel, {{1}, {32}}, of_scores.data(), of_keys.data(),
                          static_cast<int>(scores.size() / 16),
                          device::log2_scale_of(softmax_scale), of_o.data(), of_lse.data());
  status = downloaded(status, of_o, o);
  return downloaded(status, of_lse, lse);
}

Status attention(Format format, const Attention& problem, const Floats& q, const Floats& k,
                 const Floats& v, Floats& o, Floats& lse) {
  lse.resize(static_cast<std::size_t>(problem.batch) * problem.nheads_q * problem.seqlen_q);
  if (format == Format::f16)
    return problem.rounded ? attention_as<f16, f16>(problem, q, k, v, o, lse)
                           : attention_as<f16, float>(problem, q, k, v, o, lse);
  return problem.rounded ? attention_as<bf16, bf16>(problem, q, k, v, o, lse)
                         : attention_as<bf16, float>(problem, q, k, v, o, lse);
}

Status copied_tile(int columns, const std::vector<std::uint16_t>& tensor, int stride, int rows,
                   int there, std::vector<std::uint16_t>& tile) {
  const auto copy = columns == 32   ? copied_tile_of<32>
                    : columns == 40 ? copied_tile_of<40>
                    : columns == 64 ? copied_tile_of<64>
                                    : copied_tile_of<96>;
  return copy(tensor, stride, rows, there, tile);
}

Status pipelined(bool waits, const Floats& in, Floats& out) {
  out.resize(in.size());
  return mapped("pipeline", waits ? pipeline_kernel<true> : pipeline_kernel<false>, threads,
                sizeof(TwoTiles), in, out);
}

Status copied_words(int bytes, const std::vector<std::uint32_t>& in,
                    std::vector<std::uint32_t>& out) {
  out.resize(in.size());
  const auto kernel = bytes == 4   ? copy_words_kernel<4>
                      : bytes == 8 ? copy_words_kernel<8>
                                   : copy_words_kernel<16>;
  return mapped("copy_words", kernel, 32, sizeof(Words), in, out);
}

Status read_rows(int row_bytes, bool swizzled) {
  if (row_bytes == 64) return swizzled ? read_rows_of<32, true>() : read_rows_of<32, false>();
  if (row_bytes == 128) return swizzled ? read_rows_of<64, true>() : read_rows_of<64, false>();
  return swizzled ? read_rows_of<96, true>() : read_rows_of<96, false>();
}

Status handed_over(const Floats& in, Floats& out) {
  out.resize(32);
  return mapped("hand_over", hand_over_kernel, 64, sizeof(float[32]), in, out);
}

Status exp2_of(const Floats& in, Floats& out) {
  out.resize(in.size());
  return mapped("exp2", exp2_kernel, 32, 0, in, out, static_cast<int>(in.size()));
}

Status packed(Format format, const Floats& in, std::vector<std::uint32_t>& out) {
  out.resize(format == Format::tf32 ? in.size() : in.size() / 2);
  const auto kernel = format == Format::f16    ? pack_kernel<f16>
                      : format == Format::bf16 ? pack_kernel<bf16>
                                               : pack_kernel<float>;
  return mapped("pack", kernel, 32, 0, in, out, static_cast<int>(out.size()));
}

Status unpacked(Format format, const std::vector<std::uint32_t>& in, Floats& out) {
  out.resize(2 * in.size());
  return mapped("unpack", format == Format::f16 ? unpack_kernel<f16> : unpack_kernel<bf16>, 32, 0,
                in, out, static_cast<int>(in.size()));
}

Status reversed(const Floats& in, int offset, Floats& out) {
  out.resize(128);
  return mapped("reverse", reverse_kernel, 32, sizeof(Vectors), in, out, offset);
}

}  // namespace tilewise::tests::inline TILEWISE_TARGET
