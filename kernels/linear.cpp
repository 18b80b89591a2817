#include "kernels/linear.h"

#include <cblas.h>

#include <algorithm>

#include "kernels/simd.h"

namespace qpipe {

namespace {

// Tiles of y, one single-threaded sgemm each.
constexpr std::int64_t token_tile = 256;
constexpr std::int64_t output_tile = 256;

void check_arguments(ConstTensor x, ConstTensor weight, ConstTensor bias, Tensor y,
                     const Stream& stream) {
  const DType compute = stream.compute_dtype();
  require(x.dtype == compute && weight.dtype == compute,
          "linear: x and weight must have the compute type");
  require(y.dtype == compute || y.dtype == DType::f32,
          "linear: y must have the compute type or be float32");
  require(x.cols > 0 && weight.cols == x.cols, "linear: weight must be [out, in] with the in of x");
  require(y.rows == x.rows && y.cols == weight.rows, "linear: y must be [tokens, out]");
  require(bias.empty() || (bias.dtype == compute && bias.rows == 1 && bias.cols == weight.rows),
          "linear: bias must be [1, out] of the compute type");
}

QPIPE_SIMD_CLONES void add_scaled(const float* from, float alpha, std::int64_t count, float* to) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) to[i] += alpha * from[i];
}

// y ← beta y + alpha (x Wᵀ + b)
void multiply(Matrix<const float> x, Matrix<const float> weight, const float* bias, float alpha,
              float beta, Matrix<float> y) {
  const std::int64_t token_tiles = (y.rows + token_tile - 1) / token_tile;
  const std::int64_t output_tiles = (y.cols + output_tile - 1) / output_tile;
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t tile = 0; tile < token_tiles * output_tiles; ++tile) {
    const std::int64_t token = tile % token_tiles * token_tile;
    const std::int64_t output = tile / token_tiles * output_tile;
    const std::int64_t tokens = std::min(token_tile, y.rows - token);
    const std::int64_t outputs = std::min(output_tile, y.cols - output);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<int>(tokens),
                static_cast<int>(outputs), static_cast<int>(x.cols), alpha, x.row(token),
                static_cast<int>(x.stride), weight.row(output), static_cast<int>(weight.stride),
                beta, y.row(token) + output, static_cast<int>(y.stride));
    if (bias != nullptr)
      for (std::int64_t t = token; t < token + tokens; ++t)
        add_scaled(bias + output, alpha, outputs, y.row(t) + output);
  }
}

}  // namespace

void linear(ConstTensor x, ConstTensor weight, ConstTensor bias, Tensor y, Stream& stream) {
  check_arguments(x, weight, bias, y, stream);
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::linear(x, weight, bias, y, stream);
  multiply(x.as<const float>(), weight.as<const float>(), static_cast<const float*>(bias.data),
           1.0f, 0.0f, y.as<float>());
}

void linear_add(ConstTensor x, ConstTensor weight, ConstTensor bias, float alpha, Tensor y,
                Stream& stream) {
  check_arguments(x, weight, bias, y, stream);
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::linear_add(x, weight, bias, alpha, y, stream);
  multiply(x.as<const float>(), weight.as<const float>(), static_cast<const float*>(bias.data),
           alpha, 1.0f, y.as<float>());
}

}  // namespace qpipe
