#include "kernels/norm.h"

#include <cmath>

#include "kernels/simd.h"

namespace qpipe {

namespace {

QPIPE_SIMD_CLONES void rms_norm_row(const float* x, const float* weight, std::int64_t d, float eps,
                                    float offset, float* y) {
  double squares = 0.0;  // in float32 a large element swallows the small ones, unless the compiler
                         // happens to use many lanes
#pragma omp simd reduction(+ : squares)
  for (std::int64_t i = 0; i < d; ++i)
    squares += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  const auto inverse = static_cast<float>(
      1.0 / std::sqrt(squares / static_cast<double>(d) + static_cast<double>(eps)));
#pragma omp simd
  for (std::int64_t i = 0; i < d; ++i) y[i] = x[i] * inverse * (offset + weight[i]);
}

QPIPE_SIMD_CLONES void layer_norm_row(const float* x, const float* weight, const float* bias,
                                      std::int64_t d, float eps, float* y) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < d; ++i) sum += x[i];
  const float mean = sum / static_cast<float>(d);
  float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
  for (std::int64_t i = 0; i < d; ++i) squares += (x[i] - mean) * (x[i] - mean);
  const float inverse = 1.0f / std::sqrt(squares / static_cast<float>(d) + eps);
#pragma omp simd
  for (std::int64_t i = 0; i < d; ++i) y[i] = (x[i] - mean) * inverse * weight[i];
  if (bias == nullptr) return;
#pragma omp simd
  for (std::int64_t i = 0; i < d; ++i) y[i] += bias[i];
}

void check_vector(ConstTensor vector, std::int64_t d, const Stream& stream, const char* message) {
  require(vector.dtype == stream.compute_dtype() && vector.rows == 1 && vector.cols == d, message);
}

void check_rows(ConstTensor x, Tensor y, const Stream& stream) {
  require(x.dtype == stream.compute_dtype() && y.dtype == x.dtype,
          "norm: x and y must have the compute type");
  require(x.cols > 0 && y.rows == x.rows && y.cols == x.cols, "norm: x and y must be [tokens, d]");
}

}  // namespace

void rms_norm(ConstTensor x, ConstTensor weight, float eps, float offset, Tensor y,
              Stream& stream) {
  check_rows(x, y, stream);
  check_vector(weight, x.cols, stream, "rms_norm: weight must be [1, d] of the compute type");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::rms_norm(x, weight, eps, offset, y, stream);
  const auto from = x.as<const float>();
  const auto to = y.as<float>();
  const auto* w = static_cast<const float*>(weight.data);
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < from.rows; ++t)
    rms_norm_row(from.row(t), w, from.cols, eps, offset, to.row(t));
}

void layer_norm(ConstTensor x, ConstTensor weight, ConstTensor bias, float eps, Tensor y,
                Stream& stream) {
  check_rows(x, y, stream);
  check_vector(weight, x.cols, stream, "layer_norm: weight must be [1, d] of the compute type");
  if (!bias.empty())
    check_vector(bias, x.cols, stream, "layer_norm: bias must be [1, d] of the compute type");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::layer_norm(x, weight, bias, eps, y, stream);
  const auto from = x.as<const float>();
  const auto to = y.as<float>();
  const auto* w = static_cast<const float*>(weight.data);
  const auto* b = static_cast<const float*>(bias.data);
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < from.rows; ++t)
    layer_norm_row(from.row(t), w, b, from.cols, eps, to.row(t));
}

void rms_norm_heads(Tensor x, std::int64_t heads, ConstTensor weight, float eps, float offset,
                    Stream& stream) {
  require(x.dtype == stream.compute_dtype(), "rms_norm_heads: x must have the compute type");
  require(heads > 0 && weight.cols > 0 && x.cols == heads * weight.cols,
          "rms_norm_heads: x must be [tokens, heads * head_dim]");
  check_vector(weight, weight.cols, stream,
               "rms_norm_heads: weight must be [1, head_dim] of the compute type");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::rms_norm_heads(x, heads, weight, eps, offset, stream);
  const auto values = x.as<float>();
  const auto* w = static_cast<const float*>(weight.data);
  const std::int64_t head_dim = weight.cols;
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < values.rows; ++t)
    for (std::int64_t h = 0; h < heads; ++h) {
      float* head = values.row(t) + h * head_dim;
      rms_norm_row(head, w, head_dim, eps, offset, head);
    }
}

}  // namespace qpipe
