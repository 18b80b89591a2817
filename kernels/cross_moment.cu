#include <algorithm>

#include "kernels/cross_moment.h"
#include "kernels/cuda_handles.h"
#include "kernels/fixed_point_cuda.h"

namespace qpipe::cuda {

namespace {

constexpr std::int64_t panel_columns = hessian_panel(Backend::cuda);
constexpr int threads = 256;

struct Units {
  const std::int32_t* rows;
  const std::int32_t* columns;
  int log2_tokens;

  __device__ int operator()(std::int64_t i, std::int64_t j) const {
    return unit_exponent(rows[i], columns[j], log2_tokens);
  }
};

__global__ void subtract_rows(Matrix<const __nv_bfloat16> a, Matrix<const __nv_bfloat16> b,
                              Matrix<__nv_bfloat16> y) {
  const std::int64_t c = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  const std::int64_t t = blockIdx.y;
  if (c >= y.cols) return;
  y.data[t * y.stride + c] = __float2bfloat16_rn(__bfloat162float(a.data[t * a.stride + c]) -
                                                 __bfloat162float(b.data[t * b.stride + c]));
}

// A row of the sum per block of y; columns count from `begin`, the first of the range.
__global__ void add_to_sum(Matrix<const float> product, Units units, std::int64_t begin,
                           Matrix<std::int64_t> sum) {
  const std::int64_t j = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  const std::int64_t i = blockIdx.y;
  if (j >= product.cols) return;
  sum.data[i * sum.stride + j] +=
      in_units(product.data[i * product.stride + j], units(i, begin + j));
}

__global__ void scale(Matrix<const std::int64_t> sum, Units units, double tokens,
                      std::int64_t begin, Matrix<float> c) {
  const std::int64_t j = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  const std::int64_t i = blockIdx.y;
  if (j >= sum.cols) return;
  c.data[i * c.stride + begin + j] =
      from_units(sum.data[i * sum.stride + j], units(i, begin + j), tokens);
}

dim3 rows_by_columns(std::int64_t rows, std::int64_t cols) {
  return {static_cast<unsigned>((cols + threads - 1) / threads), static_cast<unsigned>(rows)};
}

Matrix<const __nv_bfloat16> values(ConstTensor x) {
  return {static_cast<const __nv_bfloat16*>(x.data), x.rows, x.cols, x.stride};
}

}  // namespace

void subtract(ConstTensor x, ConstTensor x_tilde, Tensor y, Stream& stream) {
  constexpr std::int64_t most = 65535;  // blocks of y
  for (std::int64_t begin = 0; begin < y.rows; begin += most) {
    const std::int64_t count = std::min(most, y.rows - begin);
    const Tensor part = y.row_range(begin, count);
    subtract_rows<<<rows_by_columns(count, y.cols), threads, 0, stream.cuda().stream>>>(
        values(x.row_range(begin, count)), values(x_tilde.row_range(begin, count)),
        {static_cast<__nv_bfloat16*>(part.data), part.rows, part.cols, part.stride});
    check_launch();
  }
}

void accumulate_cross(ConstTensor difference, ConstTensor x,
                      Matrix<const std::int32_t> difference_exponent,
                      Matrix<const std::int32_t> exponent, int log2_tokens, std::int64_t begin,
                      Matrix<std::int64_t> sum, Stream& stream) {
  const std::int64_t d = x.cols;
  const float one = 1.0f;
  const float zero = 0.0f;
  const Units units{difference_exponent.data, exponent.data, log2_tokens};
  const Array<float> product(d, std::min(panel_columns, sum.cols), stream);
  for (std::int64_t j0 = 0; j0 < sum.cols; j0 += panel_columns) {
    const std::int64_t count = std::min(panel_columns, sum.cols - j0);
    const Matrix<float> part(product.view.data, d, count);
    // Row-major [i, j] is column-major [j, i].
    check(cublasGemmEx_64(stream.cuda().cublas(), CUBLAS_OP_N, CUBLAS_OP_T, count, d, x.rows, &one,
                          static_cast<const __nv_bfloat16*>(x.data) + begin + j0, CUDA_R_16BF,
                          x.stride, difference.data, CUDA_R_16BF, difference.stride, &zero,
                          part.data, CUDA_R_32F, part.stride, CUBLAS_COMPUTE_32F,
                          CUBLAS_GEMM_DEFAULT));
    add_to_sum<<<rows_by_columns(d, count), threads, 0, stream.cuda().stream>>>(
        part, units, begin + j0, sum.col_range(j0, count));
    check_launch();
  }
}

void finish_cross(Matrix<const std::int64_t> sum, Matrix<const std::int32_t> difference_exponent,
                  Matrix<const std::int32_t> exponent, int log2_tokens, std::int64_t tokens,
                  std::int64_t begin, Matrix<float> c, Stream& stream) {
  if (sum.size() == 0) return;
  const Units units{difference_exponent.data, exponent.data, log2_tokens};
  scale<<<rows_by_columns(sum.rows, sum.cols), threads, 0, stream.cuda().stream>>>(
      sum, units, static_cast<double>(tokens), begin, c);
  check_launch();
}

}  // namespace qpipe::cuda
