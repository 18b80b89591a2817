#include "kernels/gated_norm.h"

#include <cmath>

namespace qpipe {

namespace {

float apply(NormGate f, float z) {
  const float sigmoid = 1.0f / (1.0f + std::exp(-z));
  return f == NormGate::silu ? z * sigmoid : sigmoid;
}

}  // namespace

void gated_rms_norm(ConstTensor x, Matrix<const float> weight, float eps, ConstTensor gate,
                    HeadSlices gate_slices, NormGate f, Tensor y, Stream& stream) {
  require(x.dtype == stream.compute_dtype() && gate.dtype == x.dtype && y.dtype == x.dtype,
          "gated_rms_norm: x, gate and y must have the compute type");
  require(y.rows == x.rows && y.cols == x.cols, "gated_rms_norm: y must be as x");
  require(weight.rows == 1 && weight.cols > 0 && x.cols % weight.cols == 0,
          "gated_rms_norm: weight must be [1, d] and x [tokens, heads d]");
  require(gate.rows == x.rows && gate_slices.lie_in(gate.cols) && gate_slices.channels() == x.cols,
          "gated_rms_norm: gate must hold slices with as many channels as x");
  if constexpr (has_cuda)
    if (stream.on_cuda())
      return cuda::gated_rms_norm(x, weight, eps, gate, gate_slices, f, y, stream);
  const auto from = x.as<const float>();
  const auto gates = gate.as<const float>();
  const auto to = y.as<float>();
  const std::int64_t d = weight.cols;
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < to.rows; ++t)
    for (std::int64_t begin = 0; begin < to.cols; begin += d) {
      double squares = 0.0;
      for (std::int64_t c = begin; c < begin + d; ++c)
        squares += static_cast<double>(from(t, c)) * static_cast<double>(from(t, c));
      const auto inverse = static_cast<float>(
          1.0 / std::sqrt(squares / static_cast<double>(d) + static_cast<double>(eps)));
      for (std::int64_t c = begin; c < begin + d; ++c) {
        const float z = gates(t, gate_slices.column(c));
        to(t, c) = from(t, c) * inverse * weight(0, c - begin) * apply(f, z);
      }
    }
}

}  // namespace qpipe
