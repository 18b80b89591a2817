#include "kernels/selective_scan.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/simd.h"
#include "kernels/softplus.h"

namespace qpipe {

namespace {

constexpr std::int64_t widest_state = 64;

// s ← exp(step · a) · s + input · b; the sum of s · c.
QPIPE_SIMD_CLONES float advance_channel(float step, float input, const float* a, const float* b,
                                        const float* c, std::int64_t state, float* s) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t n = 0; n < state; ++n) {
    s[n] = simd_exp(step * a[n]) * s[n] + input * b[n];
    sum += s[n] * c[n];
  }
  return sum;
}

}  // namespace

void selective_scan(ConstTensor x, ConstTensor dt, ConstTensor b, ConstTensor c, ConstTensor z,
                    Matrix<const float> a_log, Matrix<const float> d, std::int64_t seqlen, Tensor y,
                    Stream& stream) {
  const DType type = stream.compute_dtype();
  require(x.dtype == type && b.dtype == type && c.dtype == type && z.dtype == type &&
              y.dtype == type && (dt.dtype == type || dt.dtype == DType::f32),
          "selective_scan: activations must have the compute type");
  const std::int64_t channels = x.cols;
  const std::int64_t state = b.cols;
  require(state > 0 && state <= widest_state,
          "selective_scan: a state wider than 64 is not computed");
  const auto as_x = [&](const auto& m) { return m.rows == x.rows && m.cols == channels; };
  require(as_x(dt) && as_x(z) && as_x(y), "selective_scan: x, dt, z and y must have one shape");
  require(b.rows == x.rows && c.rows == x.rows && c.cols == state,
          "selective_scan: b and c must be [tokens, state]");
  require(a_log.rows == channels && a_log.cols == state && a_log.contiguous(),
          "selective_scan: a_log must be [channels, state] without gaps");
  require(d.rows == 1 && d.cols == channels, "selective_scan: d must be [1, channels]");
  require(seqlen > 0 && x.rows % seqlen == 0, "selective_scan: tokens must be whole sequences");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::selective_scan(x, dt, b, c, z, a_log, d, seqlen, y, stream);
  const auto in = x.as<const float>();
  const auto steps = dt.as<const float>();
  const auto bs = b.as<const float>();
  const auto cs = c.as<const float>();
  const auto gate = z.as<const float>();
  const auto out = y.as<float>();
  const std::int64_t sequences = in.rows / seqlen;
#pragma omp parallel for collapse(2) schedule(static)
  for (std::int64_t sequence = 0; sequence < sequences; ++sequence)
    for (std::int64_t channel = 0; channel < channels; ++channel) {
      std::vector<float> a(a_log.row(channel), a_log.row(channel) + state);
      for (float& value : a) value = -std::exp(value);
      std::vector<float> s(static_cast<std::size_t>(state), 0.0f);
      for (std::int64_t t = sequence * seqlen; t < (sequence + 1) * seqlen; ++t) {
        const float value = in(t, channel);
        const float step = softplus(steps(t, channel));
        const float g = gate(t, channel);
        const float sum =
            advance_channel(step, step * value, a.data(), bs.row(t), cs.row(t), state, s.data());
        out(t, channel) = (sum + d(0, channel) * value) * (g / (1.0f + std::exp(-g)));
      }
    }
}

}  // namespace qpipe
