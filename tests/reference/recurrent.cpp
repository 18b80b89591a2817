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

}  // namespace qpipe::reference
