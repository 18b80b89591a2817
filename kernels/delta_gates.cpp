#include "kernels/delta_gates.h"

#include <cmath>

#include "kernels/softplus.h"

namespace qpipe {

namespace {

void check_gates(ConstTensor x, const HeadSlices& slices, Matrix<float> y, const Stream& stream) {
  require(x.dtype == stream.compute_dtype(), "delta gates: x must have the compute type");
  require(slices.lie_in(x.cols), "delta gates: x must hold the slices");
  require(y.rows == x.rows && y.cols == slices.channels(),
          "delta gates: the result must be [tokens, heads head_dim]");
}

float read(Matrix<const float> x, const HeadSlices& slices, std::int64_t t, std::int64_t c) {
  return x(t, slices.column(c));
}

}  // namespace

void log_decay(ConstTensor x, HeadSlices slices, Matrix<const float> a_log,
               Matrix<const float> dt_bias, Matrix<float> g, Stream& stream) {
  check_gates(x, slices, g, stream);
  require(a_log.rows == 1 && a_log.cols > 0 && g.cols % a_log.cols == 0,
          "log_decay: a_log must be [1, heads]");
  require(dt_bias.rows == 1 && dt_bias.cols == g.cols, "log_decay: dt_bias must be as wide as g");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::log_decay(x, slices, a_log, dt_bias, g, stream);
  const auto from = x.as<const float>();
  const std::int64_t width = g.cols / a_log.cols;
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < g.rows; ++t)
    for (std::int64_t c = 0; c < g.cols; ++c)
      g(t, c) = -std::exp(a_log(0, c / width)) * softplus(read(from, slices, t, c) + dt_bias(0, c));
}

void write_strength(ConstTensor x, HeadSlices slices, Matrix<float> beta, Stream& stream) {
  check_gates(x, slices, beta, stream);
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::write_strength(x, slices, beta, stream);
  const auto from = x.as<const float>();
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < beta.rows; ++t)
    for (std::int64_t c = 0; c < beta.cols; ++c)
      beta(t, c) = 1.0f / (1.0f + std::exp(-read(from, slices, t, c)));
}

}  // namespace qpipe
