#include "kernels/blockwise.h"
#include "kernels/cuda_handles.h"
#include "kernels/vector_cuda.h"

namespace qpipe::cuda {

namespace {

constexpr int warp = 32;
constexpr int threads = 256;
constexpr unsigned all_lanes = 0xffffffffu;

// Thresholds in ascending order and codes, in shared memory: the 16 words of each lie in different
// banks.
struct CodeTable {
  float threshold[16];
  std::uint32_t code[16];
};

CodeTable code_table(FourBitKind kind) {
  const FourBitTable from = four_bit_table(kind);
  CodeTable table{};
  for (int i = 0; i < 15; ++i) table.threshold[i] = from.threshold[i];
  for (int i = 0; i < 16; ++i) table.code[i] = from.ordered[i];
  return table;
}

// The thresholds below x by bisection: a load, a comparison and a predicated addition each time.
// NaN is above all.
__device__ std::uint32_t find_code(float x, const CodeTable& table) {
  int at = x <= table.threshold[7] ? 0 : 8;
  if (!(x <= table.threshold[at + 3])) at += 4;
  if (!(x <= table.threshold[at + 1])) at += 2;
  if (!(x <= table.threshold[at])) at += 1;
  return table.code[at];
}

__device__ void copy_to_shared(const CodeTable& table, CodeTable& shared) {
  if (threadIdx.x < 16) {
    shared.threshold[threadIdx.x] = table.threshold[threadIdx.x];
    shared.code[threadIdx.x] = table.code[threadIdx.x];
  }
  __syncthreads();
}

__device__ unsigned magnitude_bits(float x) { return __float_as_uint(x) & 0x7fffffffu; }

__device__ float divisor_of(float absmax) {
  return absmax < 1e-38f ? 1e-38f : absmax;
}  // keeps NaN

// Whole blocks, 16-byte aligned. `lanes` neighbours share a block and take eight elements each per
// step: one 16-byte load (two for float32) and one 4-byte store. A warp holds 32 / lanes blocks.
template <int lanes, class T>
__global__ void __launch_bounds__(threads)
    quantize_kernel(const T* __restrict__ w, std::int64_t blocks, int block_size,
                    const __grid_constant__ CodeTable values, float* __restrict__ absmax,
                    std::uint32_t* __restrict__ packed) {
  __shared__ CodeTable table;
  copy_to_shared(values, table);
  const std::int64_t block = (std::int64_t{blockIdx.x} * threads + threadIdx.x) / lanes;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const bool active = block < blocks;  // the others help to reduce
  constexpr int per_step = lanes * vector_elements;
  const int steps = lanes < warp ? 1 : block_size / per_step;
  const T* from = w + block * block_size + lane * vector_elements;

  float value[vector_elements] = {};
  unsigned largest = 0;
  if (active)
    for (int s = 0; s < steps; ++s) {
      load(from + s * per_step, value);
#pragma unroll
      for (int i = 0; i < vector_elements; ++i) largest = max(largest, magnitude_bits(value[i]));
    }
#pragma unroll
  for (int half = lanes / 2; half > 0; half /= 2)
    largest = max(largest, __shfl_xor_sync(all_lanes, largest, half));
  if (!active) return;

  const float scale = __uint_as_float(largest);
  if (lane == 0) absmax[block] = scale;
  const float reciprocal = __frcp_rn(divisor_of(scale));
  std::uint32_t* to = packed + block * (block_size / vector_elements) + lane;
  for (int s = 0; s < steps; ++s) {
    if (steps > 1) load(from + s * per_step, value);  // from the cache
    std::uint32_t word = 0;
#pragma unroll
    for (int i = 0; i < vector_elements; ++i)  // byte i / 2, the high nibble first
      word |= find_code(__fmul_rn(value[i], reciprocal), table)
              << (8 * (i / 2) + (i % 2 == 0 ? 4 : 0));
    to[s * lanes] = word;
  }
}

// A warp per block, two elements a lane and step, any alignment and length: for the shorter last
// block, and for unaligned weights.
template <class T>
__global__ void __launch_bounds__(threads)
    quantize_any_kernel(const T* __restrict__ w, std::int64_t count, std::int64_t first_block,
                        int block_size, const __grid_constant__ CodeTable values,
                        float* __restrict__ absmax, std::uint8_t* __restrict__ packed) {
  __shared__ CodeTable table;
  copy_to_shared(values, table);
  const std::int64_t block =
      first_block + (std::int64_t{blockIdx.x} * threads + threadIdx.x) / warp;
  const std::int64_t begin = block * block_size;
  if (begin >= count) return;  // the whole warp
  const int lane = static_cast<int>(threadIdx.x) % warp;
  const int length = static_cast<int>(min(std::int64_t{block_size}, count - begin));
  const T* from = w + begin;

  unsigned largest = 0;
  for (int i = lane; i < length; i += warp) largest = max(largest, magnitude_bits(widen(from[i])));
  for (int half = warp / 2; half > 0; half /= 2)
    largest = max(largest, __shfl_xor_sync(all_lanes, largest, half));
  const float scale = __uint_as_float(largest);
  const float divisor = divisor_of(scale);
  const float reciprocal = __frcp_rn(divisor);
  const bool whole = length == block_size;
  if (lane == 0) absmax[block] = whole ? scale : divisor;
  const auto code = [&](int i) {
    const float value = i < length ? widen(from[i]) : 0.0f;
    return find_code(whole ? __fmul_rn(value, reciprocal) : __fdiv_rn(value, divisor), table);
  };
  for (int i = 2 * lane; i < length; i += 2 * warp)
    packed[(begin + i) / 2] = static_cast<std::uint8_t>(
        code(i) << 4 | (i + 1 < length ? code(i + 1) : find_code(0.0f, table)));
}

struct Values {
  float value[16];
};

// A thread per eight elements: a 4-byte load and a 16-byte store (two for float32).
template <class T>
__global__ void __launch_bounds__(threads)
    dequantize_kernel(const std::uint32_t* __restrict__ packed, const float* __restrict__ absmax,
                      int log2_block_size, const __grid_constant__ Values table, T* __restrict__ w,
                      std::int64_t words) {
  __shared__ float value[16];
  if (threadIdx.x < 16) value[threadIdx.x] = table.value[threadIdx.x];
  __syncthreads();
  const std::int64_t index = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  if (index >= words) return;
  const std::uint32_t word = packed[index];
  const float scale = absmax[(index * vector_elements) >> log2_block_size];
  float out[vector_elements];
#pragma unroll
  for (int i = 0; i < vector_elements; ++i)
    out[i] = __fmul_rn(value[word >> (8 * (i / 2) + (i % 2 == 0 ? 4 : 0)) & 15u], scale);
  store(out, w + index * vector_elements);
}

// Elements from `begin` (even) on, one a thread.
template <class T>
__global__ void __launch_bounds__(threads)
    dequantize_any_kernel(const std::uint8_t* __restrict__ packed, const float* __restrict__ absmax,
                          int log2_block_size, const __grid_constant__ Values table,
                          T* __restrict__ w, std::int64_t begin, std::int64_t count) {
  __shared__ float value[16];
  if (threadIdx.x < 16) value[threadIdx.x] = table.value[threadIdx.x];
  __syncthreads();
  const std::int64_t i = begin + std::int64_t{blockIdx.x} * threads + threadIdx.x;
  if (i >= count) return;
  const unsigned pair = packed[i / 2];
  narrow(__fmul_rn(value[i % 2 == 0 ? pair >> 4 : pair & 15u], absmax[i >> log2_block_size]), w[i]);
}

unsigned grid_for(std::int64_t work, std::int64_t per_block) {
  return static_cast<unsigned>((work + per_block - 1) / per_block);
}

template <class T>
void launch_quantize(const T* w, std::int64_t count, FourBitKind kind, int block_size,
                     float* absmax, std::uint8_t* packed, cudaStream_t queue) {
  const CodeTable table = code_table(kind);
  const bool vectors = aligned16(w) && reinterpret_cast<std::uintptr_t>(packed) % 4 == 0;
  const std::int64_t whole = vectors ? count / block_size : 0;
  if (whole > 0) {
    auto* words = reinterpret_cast<std::uint32_t*>(packed);
    const auto launch = [&](auto lanes) {
      constexpr int n = decltype(lanes)::value;
      quantize_kernel<n><<<grid_for(whole * n, threads), threads, 0, queue>>>(w, whole, block_size,
                                                                              table, absmax, words);
    };
    switch (block_size) {
      case 32: launch(std::integral_constant<int, 4>{}); break;
      case 64: launch(std::integral_constant<int, 8>{}); break;
      case 128: launch(std::integral_constant<int, 16>{}); break;
      default: launch(std::integral_constant<int, 32>{});
    }
    check_launch();
  }
  const std::int64_t others = block_count(count, block_size) - whole;
  if (others > 0) {
    quantize_any_kernel<<<grid_for(others * warp, threads), threads, 0, queue>>>(
        w, count, whole, block_size, table, absmax, packed);
    check_launch();
  }
}

template <class T>
void launch_dequantize(const std::uint8_t* packed, const float* absmax, FourBitKind kind,
                       int block_size, T* w, std::int64_t count, cudaStream_t queue) {
  const FourBitTable table = four_bit_table(kind);
  Values values{};
  for (int i = 0; i < 16; ++i) values.value[i] = table.value[i];
  int log2_block_size = 0;
  while ((1 << log2_block_size) < block_size) ++log2_block_size;
  const bool vectors = aligned16(w) && reinterpret_cast<std::uintptr_t>(packed) % 4 == 0;
  const std::int64_t words = vectors ? count / vector_elements : 0;
  if (words > 0) {
    dequantize_kernel<<<grid_for(words, threads), threads, 0, queue>>>(
        reinterpret_cast<const std::uint32_t*>(packed), absmax, log2_block_size, values, w, words);
    check_launch();
  }
  const std::int64_t begin = words * vector_elements;
  if (begin < count) {
    dequantize_any_kernel<<<grid_for(count - begin, threads), threads, 0, queue>>>(
        packed, absmax, log2_block_size, values, w, begin, count);
    check_launch();
  }
}

constexpr int nested_threads = static_cast<int>(absmax_block_size);

// x[0] ← Σ x as the CPU's tree_sum.
__device__ double tree_sum(double* x) {
  for (int half = nested_threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) x[threadIdx.x] += x[threadIdx.x + half];
  }
  __syncthreads();
  return x[0];
}

__global__ void __launch_bounds__(nested_threads)
    block_sums_kernel(const float* __restrict__ absmax, std::int64_t count,
                      double* __restrict__ sums) {
  __shared__ double lane[nested_threads];
  const std::int64_t i = std::int64_t{blockIdx.x} * nested_threads + threadIdx.x;
  lane[threadIdx.x] = i < count ? static_cast<double>(absmax[i]) : 0.0;
  const double sum = tree_sum(lane);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(nested_threads)
    mean_kernel(const double* __restrict__ sums, std::int64_t blocks, std::int64_t count,
                float* __restrict__ mean) {
  __shared__ double lane[nested_threads];
  double partial = 0.0;
  for (std::int64_t b = threadIdx.x; b < blocks; b += nested_threads) partial += sums[b];
  lane[threadIdx.x] = partial;
  const double sum = tree_sum(lane);
  if (threadIdx.x == 0) *mean = __double2float_rn(sum / static_cast<double>(count));
}

// A thread per element, a CUDA block per nested block.
__global__ void __launch_bounds__(nested_threads)
    quantize_absmax_kernel(const float* __restrict__ absmax, std::int64_t count,
                           const float* __restrict__ offset,
                           const __grid_constant__ MapThresholds table,
                           std::uint8_t* __restrict__ code, float* __restrict__ nested_absmax) {
  __shared__ float threshold[256];
  __shared__ unsigned warp_largest[nested_threads / warp];
  const int t = static_cast<int>(threadIdx.x);
  if (t < 255) threshold[t] = table.value[t];
  const std::int64_t i = std::int64_t{blockIdx.x} * nested_threads + t;
  const float y = i < count ? __fsub_rn(absmax[i], *offset) : 0.0f;
  const unsigned in_warp = __reduce_max_sync(all_lanes, magnitude_bits(y));
  if (t % warp == 0) warp_largest[t / warp] = in_warp;
  __syncthreads();
  unsigned largest_bits = 0;
  for (const unsigned bits : warp_largest) largest_bits = max(largest_bits, bits);
  const float largest = __uint_as_float(largest_bits);
  if (t == 0) nested_absmax[blockIdx.x] = largest;
  if (i >= count) return;
  float x = __fmul_rn(y, __frcp_rn(largest));
  x = x > -1.0f ? fminf(x, 1.0f) : -1.0f;
  const int step = static_cast<int>(__fmaf_rn(__fmul_rn(__fadd_rn(x, 1.0f), 0.5f), 65535.0f, 0.5f));
  const float nearest = __fadd_rn(-1.0f, __fdiv_rn(static_cast<float>(2 * step), 65535.0f));
  int below = 0;  // thresholds below `nearest`
#pragma unroll
  for (int size = 128; size > 0; size /= 2)
    if (threshold[below + size - 1] < nearest) below += size;
  code[i] = largest == 0.0f ? std::uint8_t{0} : static_cast<std::uint8_t>(below);
}

__global__ void __launch_bounds__(threads)
    dequantize_absmax_kernel(const std::uint8_t* __restrict__ code, const float* __restrict__ map,
                             const float* __restrict__ nested_absmax, std::int64_t block_size,
                             float offset, float* __restrict__ absmax, std::int64_t count) {
  const std::int64_t i = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  if (i < count)
    absmax[i] = __fadd_rn(__fmul_rn(map[code[i]], nested_absmax[i / block_size]), offset);
}

}  // namespace

void quantize_blocks(ConstTensor w, FourBitKind kind, std::int64_t block_size, Matrix<float> absmax,
                     Matrix<std::uint8_t> packed, Stream& stream) {
  const int size = static_cast<int>(block_size);
  const cudaStream_t queue = stream.cuda().stream;
  switch (w.dtype) {
    case DType::f16:
      return launch_quantize(static_cast<const __half*>(w.data), w.size(), kind, size, absmax.data,
                             packed.data, queue);
    case DType::bf16:
      return launch_quantize(static_cast<const __nv_bfloat16*>(w.data), w.size(), kind, size,
                             absmax.data, packed.data, queue);
    default:
      return launch_quantize(static_cast<const float*>(w.data), w.size(), kind, size, absmax.data,
                             packed.data, queue);
  }
}

void dequantize_blocks(Matrix<const std::uint8_t> packed, Matrix<const float> absmax,
                       FourBitKind kind, std::int64_t block_size, Tensor w, Stream& stream) {
  const int size = static_cast<int>(block_size);
  const cudaStream_t queue = stream.cuda().stream;
  switch (w.dtype) {
    case DType::f16:
      return launch_dequantize(packed.data, absmax.data, kind, size, static_cast<__half*>(w.data),
                               w.size(), queue);
    case DType::bf16:
      return launch_dequantize(packed.data, absmax.data, kind, size,
                               static_cast<__nv_bfloat16*>(w.data), w.size(), queue);
    default:
      return launch_dequantize(packed.data, absmax.data, kind, size, static_cast<float*>(w.data),
                               w.size(), queue);
  }
}

void quantize_absmax(Matrix<const float> absmax, const MapThresholds& thresholds,
                     Matrix<float> offset, Matrix<std::uint8_t> code, Matrix<float> nested_absmax,
                     Stream& stream) {
  const std::int64_t count = absmax.size();
  const std::int64_t blocks = nested_absmax.size();
  const cudaStream_t queue = stream.cuda().stream;
  const Array<double> sums(1, blocks, stream);
  block_sums_kernel<<<static_cast<unsigned>(blocks), nested_threads, 0, queue>>>(absmax.data, count,
                                                                                 sums.view.data);
  check_launch();
  mean_kernel<<<1, nested_threads, 0, queue>>>(sums.view.data, blocks, count, offset.data);
  check_launch();
  quantize_absmax_kernel<<<static_cast<unsigned>(blocks), nested_threads, 0, queue>>>(
      absmax.data, count, offset.data, thresholds, code.data, nested_absmax.data);
  check_launch();
}

void dequantize_absmax(Matrix<const std::uint8_t> code, Matrix<const float> map,
                       Matrix<const float> nested_absmax, std::int64_t block_size, float offset,
                       Matrix<float> absmax, Stream& stream) {
  dequantize_absmax_kernel<<<grid_for(code.size(), threads), threads, 0, stream.cuda().stream>>>(
      code.data, map.data, nested_absmax.data, block_size, offset, absmax.data, code.size());
  check_launch();
}

}  // namespace qpipe::cuda
