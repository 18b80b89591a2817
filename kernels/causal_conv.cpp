#include "kernels/causal_conv.h"

#include <algorithm>
#include <vector>

#include "kernels/simd.h"

namespace qpipe {

namespace {

QPIPE_SIMD_CLONES void add_product(const float* w, const float* x, std::int64_t count, float* y) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) y[i] += w[i] * x[i];
}

QPIPE_SIMD_CLONES void silu_in_place(std::int64_t count, float* y) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) y[i] = y[i] / (1.0f + simd_exp(-y[i]));
}

// [k, channels] of [channels, k]: neighbours in a row belong to neighbouring channels.
std::vector<float> transposed(Matrix<const float> weight) {
  std::vector<float> columns;
  for (std::int64_t j = 0; j < weight.cols; ++j)
    for (std::int64_t c = 0; c < weight.rows; ++c) columns.push_back(weight(c, j));
  return columns;
}

}  // namespace

void causal_conv(ConstTensor x, Matrix<const float> weight, Matrix<const float> bias, bool silu,
                 std::int64_t seqlen, Tensor y, Stream& stream) {
  causal_conv_slices(x, {1, x.cols, x.cols}, weight, bias, silu, seqlen, y, stream);
}

void causal_conv_slices(ConstTensor x, HeadSlices slices, Matrix<const float> weight,
                        Matrix<const float> bias, bool silu, std::int64_t seqlen, Tensor y,
                        Stream& stream) {
  require(x.dtype == stream.compute_dtype() && y.dtype == x.dtype,
          "causal_conv: x and y must have the compute type");
  require(slices.lie_in(x.cols), "causal_conv: x must hold the slices of channels");
  require(y.rows == x.rows && y.cols == slices.channels(),
          "causal_conv: x and y must have as many channels");
  require(weight.rows == y.cols && weight.cols > 0 && weight.contiguous(),
          "causal_conv: weight must be [channels, k] without gaps");
  require(bias.empty() || (bias.rows == 1 && bias.cols == y.cols),
          "causal_conv: bias must be [1, channels] or empty");
  require(seqlen > 0 && x.rows % seqlen == 0, "causal_conv: tokens must be whole sequences");
  require(x.data != y.data || x.size() == 0, "causal_conv: x and y must not be the same");
  if constexpr (has_cuda)
    if (stream.on_cuda())
      return cuda::causal_conv_slices(x, slices, weight, bias, silu, seqlen, y, stream);
  const auto from = x.as<const float>();
  const auto to = y.as<float>();
  const std::vector<float> columns = transposed(weight);
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < to.rows; ++t) {
    float* row = to.row(t);
    if (bias.empty())
      std::fill(row, row + to.cols, 0.0f);
    else
      std::copy(bias.data, bias.data + to.cols, row);
    const std::int64_t before = std::min(t % seqlen, weight.cols - 1);
    for (std::int64_t j = weight.cols - 1 - before; j < weight.cols; ++j)
      for (std::int64_t h = 0; h < slices.heads; ++h) {
        const std::int64_t c = h * slices.head_dim;
        add_product(columns.data() + j * to.cols + c,
                    from.row(t - (weight.cols - 1) + j) + h * slices.stride, slices.head_dim,
                    row + c);
      }
    if (silu) silu_in_place(to.cols, row);
  }
}

}  // namespace qpipe
