#include "tests/reference/recurrent.h"

#include <cmath>

namespace qpipe::reference {

namespace {

std::size_t at(std::int64_t row, std::int64_t col, std::int64_t cols) {
  return static_cast<std::size_t>(row * cols + col);
}

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

}  // namespace

Convolved causal_conv(const Values& x, const Values& weight, const Values& bias, bool silu,
                      std::int64_t seqlen, std::int64_t channels, std::int64_t k) {
  Convolved result;
  const std::int64_t tokens = static_cast<std::int64_t>(x.size()) / channels;
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t c = 0; c < channels; ++c) {
      double sum = bias.empty() ? 0.0 : bias[at(0, c, channels)];
      double magnitude = std::abs(sum);
      for (std::int64_t j = 0; j < k; ++j) {
        const std::int64_t back = k - 1 - j;
        if (t % seqlen < back) continue;
        const double term = static_cast<double>(weight[at(c, j, k)]) * x[at(t - back, c, channels)];
        sum += term;
        magnitude += std::abs(term);
      }
      result.y.push_back(silu ? sum * sigmoid(sum) : sum);
      result.magnitude.push_back(magnitude);
    }
  return result;
}

Exact log_decay(const Values& x, const Values& a_log, const Values& dt_bias) {
  Exact g;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const std::size_t c = i % dt_bias.size();
    const double a = a_log[c / (dt_bias.size() / a_log.size())];
    g.push_back(-std::exp(a) * std::log1p(std::exp(static_cast<double>(x[i]) + dt_bias[c])));
  }
  return g;
}

Exact write_strength(const Values& x) {
  Exact beta;
  for (const float value : x) beta.push_back(sigmoid(value));
  return beta;
}

Exact gated_rms_norm(const Values& x, const Values& weight, double eps, const Values& gate,
                     NormGate f) {
  const auto d = static_cast<std::int64_t>(weight.size());
  Exact y = rms_norm(x, weight, static_cast<std::int64_t>(x.size()) / d, d, eps, 0.0);
  for (std::size_t i = 0; i < y.size(); ++i) {
    const double z = gate[i];
    y[i] *= f == NormGate::silu ? z * sigmoid(z) : sigmoid(z);
  }
  return y;
}

namespace {

// x / √(Σ x² + 1e-6) of `count` elements from `first` on.
Exact normalised(const Values& x, std::size_t first, std::size_t count,
                 const std::function<double(double)>& rounded) {
  double squares = 0.0;
  for (std::size_t i = first; i < first + count; ++i)
    squares += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  Exact y;
  for (std::size_t i = first; i < first + count; ++i)
    y.push_back(rounded(x[i] / std::sqrt(squares + 1e-6)));
  return y;
}

}  // namespace

Exact delta_rule(const DeltaCase& c, const std::function<double(double)>& rounded) {
  const auto kd = static_cast<std::size_t>(c.heads.key_dim);
  const auto vd = static_cast<std::size_t>(c.heads.value_dim);
  const std::int64_t sharing = c.heads.value_heads / c.heads.key_heads;
  Exact out(c.v.size());
  for (std::int64_t sample = 0; sample < c.samples; ++sample)
    for (std::int64_t h = 0; h < c.heads.value_heads; ++h) {
      Exact state(kd * vd, 0.0);
      for (std::int64_t t = sample * c.seqlen; t < (sample + 1) * c.seqlen; ++t) {
        const std::size_t of_key = at(t, h / sharing * c.heads.key_dim, c.heads.keys());
        const std::size_t of_value = at(t, h * c.heads.value_dim, c.heads.values());
        const Exact q = normalised(c.q, of_key, kd, rounded);
        const Exact k = normalised(c.k, of_key, kd, rounded);
        for (std::size_t i = 0; i < kd; ++i) {
          const std::int64_t column =
              c.heads.channel_decay ? h * c.heads.key_dim + static_cast<std::int64_t>(i) : h;
          const double decay = std::exp(c.g[at(t, column, c.heads.decays())]);
          for (std::size_t j = 0; j < vd; ++j)
            state[i * vd + j] = rounded(decay * state[i * vd + j]);
        }
        for (std::size_t j = 0; j < vd; ++j) {
          double known = 0.0;
          for (std::size_t i = 0; i < kd; ++i) known += state[i * vd + j] * k[i];
          const double beta = c.beta[at(t, h, c.heads.value_heads)];
          const double correction = rounded(beta * (c.v[of_value + j] - known));
          double sum = 0.0;
          for (std::size_t i = 0; i < kd; ++i) {
            state[i * vd + j] += k[i] * correction;
            sum += rounded(state[i * vd + j]) * q[i];
          }
          out[of_value + j] = sum / std::sqrt(static_cast<double>(c.heads.key_dim));
        }
      }
    }
  return out;
}

}  // namespace qpipe::reference
