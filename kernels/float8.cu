#include <cuda_fp8.h>

#include "kernels/float8.h"
#include "kernels/weights_cuda.h"

namespace qpipe::cuda {

namespace {

constexpr int warp = 32;
constexpr unsigned all_lanes = 0xffffffffu;

__device__ std::uint8_t encode(float x) {
  return isnan(x) ? 0x7f : __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
}

__device__ float decode(std::uint8_t code) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3)));
}

// The largest of all threads' values in a block of row_threads threads, for every thread.
__device__ unsigned largest_of_block(unsigned value) {
  __shared__ unsigned largest[row_threads / warp];
  value = __reduce_max_sync(all_lanes, value);
  if (threadIdx.x % warp == 0) largest[threadIdx.x / warp] = value;
  __syncthreads();
  return __reduce_max_sync(all_lanes, largest[threadIdx.x % (row_threads / warp)]);
}

__device__ float scale_of(unsigned largest, DType scale_dtype, float zero_scale) {
  float scale = __fdiv_rn(__uint_as_float(largest), e4m3_max);
  if (scale_dtype == DType::f16) scale = __half2float(__float2half_rn(scale));
  if (scale_dtype == DType::bf16) scale = __bfloat162float(__float2bfloat16_rn(scale));
  return scale == 0.0f ? zero_scale : scale;
}

template <int count>
__device__ void encode_packet(const float (&value)[count], float scale, std::uint8_t* to) {
  Bytes<count> packet;
#pragma unroll
  for (int i = 0; i < count; ++i) packet.element[i] = encode(__fdiv_rn(value[i], scale));
  *reinterpret_cast<Bytes<count>*>(to) = packet;
}

// A block of threads per row, which is read twice: the second time from the cache.
template <int count, class T>
__global__ void quantize_rows_kernel(const T* w, std::int64_t stride, std::int64_t cols,
                                     DType scale_dtype, float zero_scale, Matrix<std::uint8_t> code,
                                     Matrix<float> scale) {
  const std::int64_t row = blockIdx.x;
  const T* from = w + row * stride;
  unsigned largest = 0;
  for (std::int64_t c = threadIdx.x * count; c < cols; c += row_threads * count) {
    float value[count];
    load(from + c, value);
#pragma unroll
    for (int i = 0; i < count; ++i) largest = max(largest, magnitude_bits(value[i]));
  }
  const float row_scale = scale_of(largest_of_block(largest), scale_dtype, zero_scale);
  if (threadIdx.x == 0) scale.data[row * scale.stride] = row_scale;
  for (std::int64_t c = threadIdx.x * count; c < cols; c += row_threads * count) {
    float value[count];
    load(from + c, value);
    encode_packet(value, row_scale, code.data + row * code.stride + c);
  }
}

// A block of threads per 128 × 128 weights, which stay in registers.
template <int count, class T>
__global__ void __launch_bounds__(row_threads)
    quantize_blocks_kernel(const T* w, std::int64_t stride, float zero_scale,
                           Matrix<std::uint8_t> code, Matrix<float> scale) {
  constexpr int side = static_cast<int>(float8_block);
  constexpr int threads_per_row = side / count;
  constexpr int rows_at_once = row_threads / threads_per_row;
  constexpr int steps = side / rows_at_once;
  const std::int64_t first_row = std::int64_t{blockIdx.y} * side + threadIdx.x / threads_per_row;
  const std::int64_t col = std::int64_t{blockIdx.x} * side + threadIdx.x % threads_per_row * count;
  Packet<T, count> held[steps];
  unsigned largest = 0;
#pragma unroll
  for (int step = 0; step < steps; ++step) {
    const std::int64_t row = first_row + step * rows_at_once;
    if (row >= code.rows || col >= code.cols) continue;
    held[step] = *reinterpret_cast<const Packet<T, count>*>(w + row * stride + col);
#pragma unroll
    for (int i = 0; i < count; ++i)
      largest = max(largest, magnitude_bits(widen(held[step].element[i])));
  }
  const float block_scale = scale_of(largest_of_block(largest), DType::f32, zero_scale);
  if (threadIdx.x == 0) scale.data[blockIdx.y * scale.stride + blockIdx.x] = block_scale;
#pragma unroll
  for (int step = 0; step < steps; ++step) {
    const std::int64_t row = first_row + step * rows_at_once;
    if (row >= code.rows || col >= code.cols) continue;
    float value[count];
#pragma unroll
    for (int i = 0; i < count; ++i) value[i] = widen(held[step].element[i]);
    encode_packet(value, block_scale, code.data + row * code.stride + col);
  }
}

template <int count, class T>
__global__ void dequantize_kernel(Matrix<const std::uint8_t> code, Matrix<const float> scale,
                                  std::int64_t block_rows, std::int64_t block_cols, T* w,
                                  std::int64_t stride) {
  const std::int64_t col = first_column(count);
  if (col >= code.cols) return;
  const std::int64_t block_col = col / block_cols;  // the same for the whole packet
  for (std::int64_t row = blockIdx.y; row < code.rows; row += gridDim.y) {
    const auto packet = *reinterpret_cast<const Bytes<count>*>(code.data + row * code.stride + col);
    const float factor = scale.data[row / block_rows * scale.stride + block_col];
    float value[count];
#pragma unroll
    for (int i = 0; i < count; ++i) value[i] = __fmul_rn(decode(packet.element[i]), factor);
    store(value, w + row * stride + col);
  }
}

}  // namespace

void quantize_float8_rows(ConstTensor w, DType scale_dtype, Matrix<std::uint8_t> code,
                          Matrix<float> scale, Stream& stream) {
  if (w.rows == 0) return;
  const float zero_scale = float8_zero_scale(scale_dtype);
  with_elements(w, [&](auto* data) {
    with_count(vectorizable(w) && rows_aligned(code, vector_elements), [&](auto count) {
      quantize_rows_kernel<count()>
          <<<static_cast<unsigned>(w.rows), row_threads, 0, stream.cuda().stream>>>(
              data, w.stride, w.cols, scale_dtype, zero_scale, code, scale);
    });
  });
  check_launch();
}

void quantize_float8_blocks(ConstTensor w, Matrix<std::uint8_t> code, Matrix<float> scale,
                            Stream& stream) {
  if (w.size() == 0) return;
  const dim3 grid(static_cast<unsigned>(scale.cols), static_cast<unsigned>(scale.rows));
  const float zero_scale = float8_zero_scale(DType::f32);
  with_elements(w, [&](auto* data) {
    with_count(vectorizable(w) && rows_aligned(code, vector_elements), [&](auto count) {
      quantize_blocks_kernel<count()>
          <<<grid, row_threads, 0, stream.cuda().stream>>>(data, w.stride, zero_scale, code, scale);
    });
  });
  check_launch();
}

void dequantize_float8(Matrix<const std::uint8_t> code, Matrix<const float> scale,
                       std::int64_t block_rows, std::int64_t block_cols, Tensor w, Stream& stream) {
  const bool vectors =
      vectorizable(w) && rows_aligned(code, vector_elements) && block_cols % vector_elements == 0;
  with_elements(w, [&](auto* data) {
    with_count(vectors, [&](auto count) {
      dequantize_kernel<count()>
          <<<row_grid(w.rows, w.cols, count()), row_threads, 0, stream.cuda().stream>>>(
              code, scale, block_rows, block_cols, data, w.stride);
    });
  });
  check_launch();
}

}  // namespace qpipe::cuda
