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
  if (weight == nullptr) {
#pragma omp simd
    for (std::int64_t i = 0; i < d; ++i) y[i] = x[i] * inverse;
    return;
  }
#pragma omp simd
  for (std::int64_t i = 0; i < d; ++i) y[i] = x[i] * inverse * (offset + weight[i]);
}

QPIPE_SIMD_CLONES void layer_norm_row(const float* x, const float* weight, const float* bias,
                                      std::int64_t d, float eps, float offset, float* y) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < d; ++i) sum += x[i];
  const float mean = sum / static_cast<float>(d);
  float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
  for (std::int64_t i = 0; i < d; ++i) squares += (x[i] - mean) * (x[i] - mean);
  const float inverse = 1.0f / std::sqrt(squares / static_cast<float>(d) + eps);
  if (weight == nullptr) {
#pragma omp simd
    for (std::int64_t i = 0; i < d; ++i) y[i] = (x[i] - mean) * inverse;
  } else {
#pragma omp simd
    for (std::int64_t i = 0; i < d; ++i) y[i] = (x[i] - mean) * inverse * (offset + weight[i]);
  }
  if (bias == nullptr) return;
#pragma omp simd
  for (std::int64_t i = 0; i < d; ++i) y[i] += bias[i];
}

// Empty, or a row of d elements for all slices, or one for each of them.
void check_rows_of(ConstTensor weight, std::int64_t heads, std::int64_t d, const Stream& stream,
                   const char* message) {
  require(weight.empty() || (weight.dtype == stream.compute_dtype() && weight.cols == d &&
                             (weight.rows == 1 || weight.rows == heads)),
          message);
}

void check_rows(ConstTensor x, Tensor y, const Stream& stream) {
  require(x.dtype == stream.compute_dtype() && y.dtype == x.dtype,
          "norm: x and y must have the compute type");
  require(x.cols > 0 && y.rows == x.rows && y.cols == x.cols, "norm: x and y must be [tokens, d]");
}

void check_slices(ConstTensor x, const HeadSlices& slices, const Stream& stream) {
  require(x.dtype == stream.compute_dtype(), "norm of slices: x must have the compute type");
  require(slices.lie_in(x.cols), "norm of slices: x must hold heads slices of head_dim columns");
}

// The row of a head in a matrix with one row for all or one for each; null where it is empty.
const float* row_of(ConstTensor weight, std::int64_t head) {
  if (weight.empty()) return nullptr;
  return weight.as<const float>().row(weight.rows == 1 ? 0 : head);
}

// −0 + w is w to the bit, 0 + w is not where w = −0.
float neutral_where_zero(float offset) { return offset == 0.0f ? -0.0f : offset; }

}  // namespace

void rms_norm(ConstTensor x, ConstTensor weight, float eps, float offset, Tensor y,
              Stream& stream) {
  check_rows(x, y, stream);
  check_rows_of(weight, 1, x.cols, stream, "rms_norm: weight must be [1, d] of the compute type");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::rms_norm(x, weight, eps, offset, y, stream);
  const auto from = x.as<const float>();
  const auto to = y.as<float>();
  const float* w = row_of(weight, 0);
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < from.rows; ++t)
    rms_norm_row(from.row(t), w, from.cols, eps, offset, to.row(t));
}

void layer_norm(ConstTensor x, ConstTensor weight, ConstTensor bias, float eps, float offset,
                Tensor y, Stream& stream) {
  check_rows(x, y, stream);
  check_rows_of(weight, 1, x.cols, stream, "layer_norm: weight must be [1, d] of the compute type");
  check_rows_of(bias, 1, x.cols, stream, "layer_norm: bias must be [1, d] of the compute type");
  offset = neutral_where_zero(offset);
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::layer_norm(x, weight, bias, eps, offset, y, stream);
  const auto from = x.as<const float>();
  const auto to = y.as<float>();
  const float* w = row_of(weight, 0);
  const float* b = row_of(bias, 0);
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < from.rows; ++t)
    layer_norm_row(from.row(t), w, b, from.cols, eps, offset, to.row(t));
}

void rms_norm_heads(Tensor x, std::int64_t heads, ConstTensor weight, float eps, float offset,
                    Stream& stream) {
  require(heads > 0 && weight.cols > 0 && x.cols == heads * weight.cols,
          "rms_norm_heads: x must be [tokens, heads * head_dim]");
  require(weight.rows == 1, "rms_norm_heads: weight must be [1, head_dim]");
  rms_norm_slices(x, {heads, weight.cols, weight.cols}, weight, eps, offset, stream);
}

void rms_norm_slices(Tensor x, HeadSlices slices, ConstTensor weight, float eps, float offset,
                     Stream& stream) {
  check_slices(x, slices, stream);
  check_rows_of(weight, slices.heads, slices.head_dim, stream,
                "rms_norm_slices: weight must be [1 or heads, head_dim] of the compute type");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::rms_norm_slices(x, slices, weight, eps, offset, stream);
  const auto values = x.as<float>();
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < values.rows; ++t)
    for (std::int64_t h = 0; h < slices.heads; ++h) {
      float* head = values.row(t) + h * slices.stride;
      rms_norm_row(head, row_of(weight, h), slices.head_dim, eps, offset, head);
    }
}

void layer_norm_slices(Tensor x, HeadSlices slices, ConstTensor weight, ConstTensor bias, float eps,
                       float offset, Stream& stream) {
  check_slices(x, slices, stream);
  check_rows_of(weight, slices.heads, slices.head_dim, stream,
                "layer_norm_slices: weight must be [1 or heads, head_dim] of the compute type");
  check_rows_of(bias, slices.heads, slices.head_dim, stream,
                "layer_norm_slices: bias must be [1 or heads, head_dim] of the compute type");
  offset = neutral_where_zero(offset);
  if constexpr (has_cuda)
    if (stream.on_cuda())
      return cuda::layer_norm_slices(x, slices, weight, bias, eps, offset, stream);
  const auto values = x.as<float>();
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < values.rows; ++t)
    for (std::int64_t h = 0; h < slices.heads; ++h) {
      float* head = values.row(t) + h * slices.stride;
      layer_norm_row(head, row_of(weight, h), row_of(bias, h), slices.head_dim, eps, offset, head);
    }
}

}  // namespace qpipe
