#include "kernels/cuda_handles.h"
#include "kernels/linear.h"
#include "kernels/vector_cuda.h"

namespace qpipe::cuda {

namespace {

// y[r, c] = beta · y[r, c] + alpha · bias[c], with beta 0 or 1.
template <int count, class T>
__global__ __launch_bounds__(row_threads) void add_bias_kernel(const __nv_bfloat16* bias,
                                                               float alpha, bool accumulate, T* y,
                                                               std::int64_t stride,
                                                               std::int64_t rows,
                                                               std::int64_t cols) {
  const std::int64_t c = first_column(count);
  if (c >= cols) return;
  float b[count];
  load(bias + c, b);
  for (std::int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
    float value[count] = {};
    if (accumulate) load(y + r * stride + c, value);
#pragma unroll
    for (int i = 0; i < count; ++i) value[i] += alpha * b[i];
    store(value, y + r * stride + c);
  }
}

template <class T>
void add_bias(ConstTensor bias, float alpha, bool accumulate, Tensor y, Stream& stream) {
  const auto* b = static_cast<const __nv_bfloat16*>(bias.data);
  auto* out = static_cast<T*>(y.data);
  const cudaStream_t queue = stream.cuda().stream;
  if (vectorizable(bias) && vectorizable(y))
    add_bias_kernel<8><<<row_grid(y.rows, y.cols, 8), row_threads, 0, queue>>>(
        b, alpha, accumulate, out, y.stride, y.rows, y.cols);
  else
    add_bias_kernel<1><<<row_grid(y.rows, y.cols, 1), row_threads, 0, queue>>>(
        b, alpha, accumulate, out, y.stride, y.rows, y.cols);
  check_launch();
}

void add_bias_of_any(ConstTensor bias, float alpha, bool accumulate, Tensor y, Stream& stream) {
  if (y.dtype == DType::bf16)
    add_bias<__nv_bfloat16>(bias, alpha, accumulate, y, stream);
  else
    add_bias<float>(bias, alpha, accumulate, y, stream);
}

// y = alpha x Wᵀ + beta y. Row-major [r, c] is column-major [c, r], so cuBLAS computes yᵀ = W xᵀ.
void multiply(ConstTensor x, ConstTensor weight, float alpha, float beta, Tensor y,
              Stream& stream) {
  const cudaDataType_t y_type = y.dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F;
  // Partial sums of split-k algorithms stay in float32, so that y is rounded once.
  cublasHandle_t cublas = stream.cuda().cublas();
  cublasMath_t mode_before = CUBLAS_DEFAULT_MATH;
  check(cublasGetMathMode(cublas, &mode_before));
  check(cublasSetMathMode(cublas, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION));
  check(cublasGemmEx_64(cublas, CUBLAS_OP_T, CUBLAS_OP_N, y.cols, y.rows, x.cols, &alpha,
                        weight.data, CUDA_R_16BF, weight.stride, x.data, CUDA_R_16BF, x.stride,
                        &beta, y.data, y_type, y.stride, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
  check(cublasSetMathMode(cublas, mode_before));
}

}  // namespace

void linear(ConstTensor x, ConstTensor weight, ConstTensor bias, Tensor y, Stream& stream) {
  if (y.size() == 0) return;
  // y starts as the bias, which both output types hold exactly; the product then joins it before
  // the one rounding.
  if (!bias.empty()) add_bias_of_any(bias, 1.0f, false, y, stream);
  multiply(x, weight, 1.0f, bias.empty() ? 0.0f : 1.0f, y, stream);
}

void linear_add(ConstTensor x, ConstTensor weight, ConstTensor bias, float alpha, Tensor y,
                Stream& stream) {
  if (y.size() == 0) return;
  multiply(x, weight, alpha, 1.0f, y, stream);
  if (!bias.empty()) add_bias_of_any(bias, alpha, true, y, stream);
}

}  // namespace qpipe::cuda
