#include "kernels/multiply.h"

#include "kernels/simd.h"

namespace qpipe {

namespace {

QPIPE_SIMD_CLONES void gate_row(const float* gate, std::int64_t count, float* x) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) x[i] = x[i] / (1.0f + simd_exp(-gate[i]));
}

}  // namespace

void scale_rows(Tensor x, Matrix<const float> factor, Stream& stream) {
  require(x.dtype == stream.compute_dtype(), "scale_rows: x must have the compute type");
  require(factor.rows == 1 && factor.cols > 0, "scale_rows: factor must be [1, seqlen]");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::scale_rows(x, factor, stream);
  const auto values = x.as<float>();
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < values.rows; ++t)
    for (std::int64_t c = 0; c < values.cols; ++c) values(t, c) *= factor(0, t % factor.cols);
}

void gate_sigmoid(ConstTensor gate, Tensor x, Stream& stream) {
  require(x.dtype == stream.compute_dtype() && gate.dtype == x.dtype,
          "gate_sigmoid: gate and x must have the compute type");
  require(gate.rows == x.rows && gate.cols > 0 && x.cols % gate.cols == 0,
          "gate_sigmoid: gate must be [tokens, heads] and x [tokens, heads width]");
  if (gate.cols == x.cols) return gate_sigmoid_slices(gate, {1, gate.cols, gate.cols}, x, stream);
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::gate_sigmoid(gate, x, stream);
  const auto gates = gate.as<const float>();
  const auto values = x.as<float>();
  const std::int64_t width = values.cols / gates.cols;
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < values.rows; ++t)
    for (std::int64_t h = 0; h < gates.cols; ++h) {
      const float divisor = 1.0f + simd_exp(-gates(t, h));
      float* head = values.row(t) + h * width;
      for (std::int64_t i = 0; i < width; ++i) head[i] /= divisor;
    }
}

void gate_sigmoid_slices(ConstTensor gate, HeadSlices slices, Tensor x, Stream& stream) {
  require(x.dtype == stream.compute_dtype() && gate.dtype == x.dtype,
          "gate_sigmoid_slices: gate and x must have the compute type");
  require(slices.lie_in(gate.cols), "gate_sigmoid_slices: gate must hold the slices");
  require(gate.rows == x.rows && x.cols == slices.channels(),
          "gate_sigmoid_slices: x must be [tokens, heads head_dim]");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::gate_sigmoid_slices(gate, slices, x, stream);
  const auto gates = gate.as<const float>();
  const auto values = x.as<float>();
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < values.rows; ++t)
    for (std::int64_t h = 0; h < slices.heads; ++h)
      gate_row(gates.row(t) + h * slices.stride, slices.head_dim,
               values.row(t) + h * slices.head_dim);
}

void multiply(ConstTensor factor, Tensor x, Stream& stream) {
  require(x.dtype == stream.compute_dtype() && factor.dtype == x.dtype,
          "multiply: factor and x must have the compute type");
  const bool one = factor.rows == 1 && factor.cols == 1;
  require(one || (factor.rows == x.rows && factor.cols == x.cols),
          "multiply: factor must be as x, or [1, 1]");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::multiply(factor, x, stream);
  const auto factors = factor.as<const float>();
  const auto values = x.as<float>();
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < values.rows; ++t)
    for (std::int64_t c = 0; c < values.cols; ++c)
      values(t, c) *= one ? factors(0, 0) : factors(t, c);
}

}  // namespace qpipe
