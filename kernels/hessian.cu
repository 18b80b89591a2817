#include <algorithm>

#include "kernels/cuda_handles.h"
#include "kernels/fixed_point_cuda.h"
#include "kernels/hessian.h"

namespace qpipe::cuda {

namespace {

constexpr int column_threads = 128;
constexpr std::int64_t rows_per_chunk = 256;
constexpr std::int64_t panel_columns = hessian_panel(Backend::cuda);
constexpr int edge = 32;  // tiles of the element-wise kernels
constexpr int edge_rows = 8;

// Bits of |x| are ordered like |x|, with NaN above infinity: the integer maximum keeps NaN and is
// independent of order.
__global__ void maximise_columns(Matrix<const std::uint16_t> x, Matrix<float> maximum) {
  const std::int64_t column = std::int64_t{blockIdx.x} * column_threads + threadIdx.x;
  if (column >= x.cols) return;
  const std::int64_t begin = std::int64_t{blockIdx.y} * rows_per_chunk;
  const std::int64_t end = min(begin + rows_per_chunk, x.rows);
  unsigned bits = 0;
#pragma unroll 8
  for (std::int64_t t = begin; t < end; ++t)
    bits = max(bits, unsigned{x.data[t * x.stride + column]} & 0x7fffu);
  atomicMax(reinterpret_cast<unsigned*>(maximum.data + column), bits << 16);
}

// One 32 x 32 tile of a panel per block: rows and columns count from `begin`, the panel's first
// column. sum: from there on.
__global__ void add_to_sum(Matrix<const float> product, Matrix<const std::int32_t> exponent,
                           int log2_tokens, std::int64_t begin, Matrix<std::int64_t> sum) {
  const std::int64_t c = std::int64_t{blockIdx.x} * edge + threadIdx.x;
  if (c >= product.cols) return;
  for (int k = threadIdx.y; k < edge; k += edge_rows) {
    const std::int64_t r = std::int64_t{blockIdx.y} * edge + k;
    if (r >= product.rows || r < c) continue;
    const int unit = unit_exponent(exponent.data[begin + r], exponent.data[begin + c], log2_tokens);
    sum.data[r * sum.stride + c] += in_units(product.data[r * product.stride + c], unit);
  }
}

// Columns from `begin` on, as many as the sum has.
__global__ void scale_and_mirror(Matrix<const std::int64_t> sum,
                                 Matrix<const std::int32_t> exponent, int log2_tokens,
                                 double tokens, std::int64_t begin, Matrix<float> h) {
  if (blockIdx.x > blockIdx.y) return;  // the whole block: no thread is left waiting at the barrier
  __shared__ float values[edge][edge + 1];
  const std::int64_t r0 = std::int64_t{blockIdx.y} * edge;
  const std::int64_t c0 = std::int64_t{blockIdx.x} * edge;
  for (int k = threadIdx.y; k < edge; k += edge_rows) {
    const std::int64_t r = r0 + k;
    const std::int64_t c = c0 + threadIdx.x;
    if (r >= sum.rows || c >= sum.cols || c > r) continue;
    const int unit = unit_exponent(exponent.data[begin + r], exponent.data[begin + c], log2_tokens);
    const float value = from_units(sum.data[r * sum.stride + c], unit, tokens);
    h.data[(begin + r) * h.stride + begin + c] = value;
    values[k][threadIdx.x] = value;
  }
  __syncthreads();
  for (int k = threadIdx.y; k < edge; k += edge_rows) {
    const std::int64_t r = r0 + threadIdx.x;  // h[c, r] ← h[r, c], contiguous in r
    const std::int64_t c = c0 + k;
    if (r < sum.rows && c < sum.cols && c < r)
      h.data[(begin + c) * h.stride + begin + r] = values[threadIdx.x][k];
  }
}

__global__ void scale_panel(Matrix<const std::int64_t> sum, Matrix<const std::int32_t> exponent,
                            int log2_tokens, double tokens, std::int64_t begin,
                            Matrix<float> panel) {
  const std::int64_t c = std::int64_t{blockIdx.x} * edge + threadIdx.x;
  if (c >= panel.cols) return;
  for (int k = threadIdx.y; k < edge; k += edge_rows) {
    const std::int64_t r = std::int64_t{blockIdx.y} * edge + k;
    if (r >= panel.rows || r < c) continue;
    panel.data[r * panel.stride + c] = from_units(
        sum.data[r * sum.stride + c],
        unit_exponent(exponent.data[begin + r], exponent.data[begin + c], log2_tokens), tokens);
  }
}

__global__ void place_panel(Matrix<const float> panel, std::int64_t begin,
                            Matrix<const std::int32_t> perm, Matrix<float> h) {
  const std::int64_t j = std::int64_t{blockIdx.x} * edge + threadIdx.x;
  if (j >= h.cols) return;
  const std::int64_t column = perm.data == nullptr ? j : perm.data[j];
  for (int k = threadIdx.y; k < edge; k += edge_rows) {
    const std::int64_t i = std::int64_t{blockIdx.y} * edge + k;
    if (i >= h.rows) continue;
    const std::int64_t row = perm.data == nullptr ? i : perm.data[i];
    const std::int64_t low = min(row, column) - begin;
    if (low >= 0 && low < panel.cols)
      h.data[i * h.stride + j] = panel.data[(max(row, column) - begin) * panel.stride + low];
  }
}

unsigned blocks(std::int64_t count, std::int64_t size) {
  return static_cast<unsigned>((count + size - 1) / size);
}

}  // namespace

void column_max_abs(ConstTensor x, Matrix<float> maximum, Stream& stream) {
  if (x.rows == 0 || x.cols == 0) return;
  const Matrix<const std::uint16_t> bits(static_cast<const std::uint16_t*>(x.data), x.rows, x.cols,
                                         x.stride);
  const dim3 grid(blocks(x.cols, column_threads), blocks(x.rows, rows_per_chunk));
  maximise_columns<<<grid, column_threads, 0, stream.cuda().stream>>>(bits, maximum);
  check_launch();
}

void accumulate_hessian(ConstTensor x, Matrix<const std::int32_t> exponent, int log2_tokens,
                        std::int64_t begin, Matrix<std::int64_t> sum, Stream& stream) {
  const std::int64_t d = x.cols;
  const std::int64_t end = begin + sum.cols;
  const auto* values = static_cast<const __nv_bfloat16*>(x.data);
  const float one = 1.0f;
  const float zero = 0.0f;
  const Buffer memory(
      static_cast<std::size_t>((d - begin) * std::min(panel_columns, sum.cols)) * sizeof(float),
      stream);
  // Columns j0 … j1 of the lower triangle. Row-major [i, j] is column-major [j, i].
  for (std::int64_t j0 = begin; j0 < end; j0 += panel_columns) {
    const std::int64_t j1 = std::min(end, j0 + panel_columns);
    const Matrix<float> product(static_cast<float*>(memory.data()), d - j0, j1 - j0);
    check(cublasGemmEx_64(stream.cuda().cublas(), CUBLAS_OP_N, CUBLAS_OP_T, j1 - j0, d - j0, x.rows,
                          &one, values + j0, CUDA_R_16BF, x.stride, values + j0, CUDA_R_16BF,
                          x.stride, &zero, product.data, CUDA_R_32F, product.stride,
                          CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
    const dim3 grid(blocks(j1 - j0, edge), blocks(d - j0, edge));
    const Matrix<std::int64_t> part(sum.row(j0 - begin) + j0 - begin, d - j0, j1 - j0, sum.stride);
    add_to_sum<<<grid, dim3(edge, edge_rows), 0, stream.cuda().stream>>>(product, exponent,
                                                                         log2_tokens, j0, part);
    check_launch();
  }
}

void finish_hessian(Matrix<const std::int64_t> sum, Matrix<const std::int32_t> exponent,
                    int log2_tokens, std::int64_t tokens, std::int64_t begin, Matrix<float> h,
                    Stream& stream) {
  if (sum.size() == 0) return;
  const dim3 grid(blocks(sum.cols, edge), blocks(sum.rows, edge));
  scale_and_mirror<<<grid, dim3(edge, edge_rows), 0, stream.cuda().stream>>>(
      sum, exponent, log2_tokens, static_cast<double>(tokens), begin, h);
  check_launch();
}

void finish_hessian_panel(Matrix<const std::int64_t> sum, Matrix<const std::int32_t> exponent,
                          int log2_tokens, std::int64_t tokens, std::int64_t begin,
                          Matrix<float> panel, Stream& stream) {
  if (panel.size() == 0) return;
  const dim3 grid(blocks(panel.cols, edge), blocks(panel.rows, edge));
  scale_panel<<<grid, dim3(edge, edge_rows), 0, stream.cuda().stream>>>(
      sum, exponent, log2_tokens, static_cast<double>(tokens), begin, panel);
  check_launch();
}

void place_hessian_panel(Matrix<const float> panel, std::int64_t begin,
                         Matrix<const std::int32_t> perm, Matrix<float> h, Stream& stream) {
  if (h.size() == 0) return;
  const dim3 grid(blocks(h.cols, edge), blocks(h.rows, edge));
  place_panel<<<grid, dim3(edge, edge_rows), 0, stream.cuda().stream>>>(panel, begin, perm, h);
  check_launch();
}

}  // namespace qpipe::cuda
