#include <algorithm>

#include "kernels/cuda_handles.h"
#include "kernels/hessian.h"

namespace qpipe::cuda {

namespace {

constexpr int column_threads = 128;
constexpr std::int64_t rows_per_chunk = 256;
constexpr std::int64_t panel = 2048;
constexpr int edge = 32;  // tiles of the element-wise kernels
constexpr int edge_rows = 8;

// Bits of |x| are ordered like |x|, with NaN above infinity: the integer maximum keeps NaN and is independent of order.
__global__ void maximise_columns(Matrix<const std::uint16_t> x, Matrix<float> maximum) {
  const std::int64_t column = std::int64_t{blockIdx.x} * column_threads + threadIdx.x;
  if (column >= x.cols) return;
  const std::int64_t begin = std::int64_t{blockIdx.y} * rows_per_chunk;
  const std::int64_t end = min(begin + rows_per_chunk, x.rows);
  unsigned bits = 0;
#pragma unroll 8
  for (std::int64_t t = begin; t < end; ++t) bits = max(bits, unsigned{x.data[t * x.stride + column]} & 0x7fffu);
  atomicMax(reinterpret_cast<unsigned*>(maximum.data + column), bits << 16);
}

__device__ double power_of_two(int exponent) { return __longlong_as_double(static_cast<long long>(1023 + exponent) << 52); }

__device__ int unit_exponent(Matrix<const std::int32_t> exponent, std::int64_t i, std::int64_t j, int log2_tokens) {
  return exponent.data[i] + exponent.data[j] + log2_tokens - 62;
}

// One 32 x 32 tile of the lower triangle per block, columns from first_column on.
__global__ void add_to_sum(Matrix<const float> product, Matrix<const std::int32_t> exponent, int log2_tokens, std::int64_t first_column,
                           std::int64_t end_column, Matrix<std::int64_t> sum) {
  const std::int64_t j = first_column + std::int64_t{blockIdx.x} * edge + threadIdx.x;
  const std::int64_t tile_row = first_column + std::int64_t{blockIdx.y} * edge;
  if (j >= end_column) return;
  for (int r = threadIdx.y; r < edge; r += edge_rows) {
    const std::int64_t i = tile_row + r;
    if (i >= sum.rows || i < j) continue;
    const int unit = unit_exponent(exponent, i, j, log2_tokens);
    sum.data[i * sum.stride + j] += __double2ll_rn(static_cast<double>(product.data[i * product.stride + j]) * power_of_two(-unit));
  }
}

__global__ void scale_and_mirror(Matrix<const std::int64_t> sum, Matrix<const std::int32_t> exponent, int log2_tokens, double tokens,
                                 Matrix<float> h) {
  if (blockIdx.x > blockIdx.y) return;  // the whole block: no thread is left waiting at the barrier
  __shared__ float values[edge][edge + 1];
  const std::int64_t i0 = std::int64_t{blockIdx.y} * edge;
  const std::int64_t j0 = std::int64_t{blockIdx.x} * edge;
  for (int r = threadIdx.y; r < edge; r += edge_rows) {
    const std::int64_t i = i0 + r;
    const std::int64_t j = j0 + threadIdx.x;
    if (i >= h.rows || j > i) continue;
    const int unit = unit_exponent(exponent, i, j, log2_tokens);
    const auto value = static_cast<float>(static_cast<double>(sum.data[i * sum.stride + j]) * power_of_two(unit) / tokens);
    h.data[i * h.stride + j] = value;
    values[r][threadIdx.x] = value;
  }
  __syncthreads();
  for (int r = threadIdx.y; r < edge; r += edge_rows) {
    const std::int64_t i = i0 + threadIdx.x;  // h[j, i] ← h[i, j], contiguous in i
    const std::int64_t j = j0 + r;
    if (i < h.rows && j < i) h.data[j * h.stride + i] = values[threadIdx.x][r];
  }
}

unsigned blocks(std::int64_t count, std::int64_t size) { return static_cast<unsigned>((count + size - 1) / size); }

}  // namespace

void column_max_abs(ConstTensor x, Matrix<float> maximum, Stream& stream) {
  if (x.rows == 0 || x.cols == 0) return;
  const Matrix<const std::uint16_t> bits(static_cast<const std::uint16_t*>(x.data), x.rows, x.cols, x.stride);
  const dim3 grid(blocks(x.cols, column_threads), blocks(x.rows, rows_per_chunk));
  maximise_columns<<<grid, column_threads, 0, stream.cuda().stream>>>(bits, maximum);
  check_launch();
}

void accumulate_hessian(ConstTensor x, Matrix<const std::int32_t> exponent, int log2_tokens, Matrix<float> scratch,
                        Matrix<std::int64_t> sum, Stream& stream) {
  const std::int64_t d = x.cols;
  const auto* values = static_cast<const __nv_bfloat16*>(x.data);
  const float one = 1.0f;
  const float zero = 0.0f;
  // Columns j0 … j1 of the lower triangle. Row-major [i, j] is column-major [j, i].
  for (std::int64_t j0 = 0; j0 < d; j0 += panel) {
    const std::int64_t j1 = std::min(d, j0 + panel);
    float* block = scratch.row(j0) + j0;
    check(cublasGemmEx_64(stream.cuda().cublas(), CUBLAS_OP_N, CUBLAS_OP_T, j1 - j0, d - j0, x.rows, &one, values + j0, CUDA_R_16BF,
                          x.stride, values + j0, CUDA_R_16BF, x.stride, &zero, block, CUDA_R_32F, scratch.stride, CUBLAS_COMPUTE_32F,
                          CUBLAS_GEMM_DEFAULT));
    const dim3 grid(blocks(j1 - j0, edge), blocks(d - j0, edge));
    add_to_sum<<<grid, dim3(edge, edge_rows), 0, stream.cuda().stream>>>(scratch, exponent, log2_tokens, j0, j1, sum);
    check_launch();
  }
}

void finish_hessian(Matrix<const std::int64_t> sum, Matrix<const std::int32_t> exponent, int log2_tokens, std::int64_t tokens,
                    Matrix<float> h, Stream& stream) {
  const dim3 grid(blocks(h.cols, edge), blocks(h.rows, edge));
  scale_and_mirror<<<grid, dim3(edge, edge_rows), 0, stream.cuda().stream>>>(sum, exponent, log2_tokens, static_cast<double>(tokens), h);
  check_launch();
}

}  // namespace qpipe::cuda
