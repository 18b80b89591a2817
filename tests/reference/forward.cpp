#include "tests/reference/forward.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

namespace qpipe::reference {

namespace {

std::size_t at(std::int64_t row, std::int64_t col, std::int64_t cols) {
  return static_cast<std::size_t>(row * cols + col);
}

double read(const Values& values, std::int64_t row, std::int64_t col, std::int64_t cols) {
  return values[at(row, col, cols)];
}

// Row t mod n of values [n, cols].
double read_cyclic(const Values& values, std::int64_t row, std::int64_t col, std::int64_t cols) {
  return read(values, row % (static_cast<std::int64_t>(values.size()) / cols), col, cols);
}

double factor(const Values& weight, std::int64_t row, std::int64_t col, std::int64_t cols,
              double offset) {
  return weight.empty() ? 1.0 : offset + read_cyclic(weight, row, col, cols);
}

}  // namespace

Exact linear(const Values& x, const Values& weight, const Values& bias, std::int64_t tokens,
             std::int64_t in, std::int64_t out) {
  Exact y(static_cast<std::size_t>(tokens * out));
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t o = 0; o < out; ++o) {
      double sum = bias.empty() ? 0.0 : read(bias, 0, o, out);
      for (std::int64_t i = 0; i < in; ++i) sum += read(x, t, i, in) * read(weight, o, i, in);
      y[at(t, o, out)] = sum;
    }
  return y;
}

Exact rms_norm(const Values& x, const Values& weight, std::int64_t rows, std::int64_t d, double eps,
               double offset) {
  Exact y(x.size());
  for (std::int64_t t = 0; t < rows; ++t) {
    double squares = 0.0;
    for (std::int64_t i = 0; i < d; ++i) squares += read(x, t, i, d) * read(x, t, i, d);
    const double rms = std::sqrt(squares / static_cast<double>(d) + eps);
    for (std::int64_t i = 0; i < d; ++i)
      y[at(t, i, d)] = read(x, t, i, d) / rms * factor(weight, t, i, d, offset);
  }
  return y;
}

Exact layer_norm(const Values& x, const Values& weight, const Values& bias, std::int64_t rows,
                 std::int64_t d, double eps, double offset) {
  Exact y(x.size());
  for (std::int64_t t = 0; t < rows; ++t) {
    double mean = 0.0;
    for (std::int64_t i = 0; i < d; ++i) mean += read(x, t, i, d) / static_cast<double>(d);
    double variance = 0.0;
    for (std::int64_t i = 0; i < d; ++i)
      variance += std::pow(read(x, t, i, d) - mean, 2) / static_cast<double>(d);
    for (std::int64_t i = 0; i < d; ++i) {
      const double normal = (read(x, t, i, d) - mean) / std::sqrt(variance + eps);
      y[at(t, i, d)] = normal * factor(weight, t, i, d, offset) +
                       (bias.empty() ? 0.0 : read_cyclic(bias, t, i, d));
    }
  }
  return y;
}

double activation(Activation f, double x) {
  switch (f) {
    case Activation::silu: return x / (1.0 + std::exp(-x));
    case Activation::gelu: return 0.5 * x * std::erfc(-x / std::numbers::sqrt2);
    case Activation::gelu_tanh:
      return 0.5 * x *
             (1.0 + std::tanh(std::sqrt(2.0 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
    case Activation::relu: return std::max(x, 0.0);
    case Activation::relu2: return std::pow(std::max(x, 0.0), 2);
    case Activation::quick_gelu: return x / (1.0 + std::exp(-1.702 * x));
  }
  return 0.0;
}

double xielu(double x, double alpha_p, double alpha_n, double beta, double eps) {
  const auto softplus = [](double value) { return std::log1p(std::exp(value)); };
  if (x > 0.0) return softplus(alpha_p) * x * x + beta * x;
  return (std::expm1(std::min(x, eps)) - x) * (beta + softplus(alpha_n)) + beta * x;
}

Exact rope(const Values& qkv, const HeadLayout& layout, const Values& inverse_frequencies,
           double amplitude, bool interleaved, std::int64_t seqlen) {
  const std::int64_t width = layout.width();
  const auto pairs = static_cast<std::int64_t>(inverse_frequencies.size());
  Exact y(qkv.begin(), qkv.end());
  std::vector<std::int64_t> columns;
  for (std::int64_t h = 0; h < layout.heads; ++h) columns.push_back(layout.q_column(h));
  for (std::int64_t g = 0; g < layout.kv_heads; ++g) columns.push_back(layout.k_column(g));
  for (std::int64_t t = 0; t < static_cast<std::int64_t>(qkv.size()) / width; ++t)
    for (const std::int64_t column : columns)
      for (std::int64_t i = 0; i < pairs; ++i) {
        const float angle =
            static_cast<float>(t % seqlen) * inverse_frequencies[static_cast<std::size_t>(i)];
        const double c = amplitude * std::cos(static_cast<double>(angle));
        const double s = amplitude * std::sin(static_cast<double>(angle));
        const std::int64_t first = column + (interleaved ? 2 * i : i);
        const std::int64_t second = interleaved ? first + 1 : first + pairs;
        const double a = read(qkv, t, first, width);
        const double b = read(qkv, t, second, width);
        y[at(t, first, width)] = a * c - b * s;
        y[at(t, second, width)] = b * c + a * s;
      }
  return y;
}

AttentionResult attention(const Values& qkv, const AttentionCase& c) {
  const HeadLayout& layout = c.layout;
  const std::int64_t width = layout.width();
  const std::int64_t d = layout.head_dim;
  const std::int64_t dv = layout.value_dim();
  const std::int64_t tokens = c.samples * c.seqlen;
  AttentionResult result;
  result.out.assign(static_cast<std::size_t>(tokens * layout.heads * dv), 0.0);
  result.magnitude = result.out;
  result.score.assign(static_cast<std::size_t>(tokens * layout.heads), 0.0);
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t h = 0; h < layout.heads; ++h) {
      const std::int64_t sample = t / c.seqlen * c.seqlen;
      const std::int64_t i = t % c.seqlen;
      const std::int64_t g = h / (layout.heads / layout.kv_heads);
      double& magnitude = result.score[at(t, h, layout.heads)];
      std::vector<double> p;
      std::vector<std::int64_t> rows;
      for (std::int64_t j = 0; j <= i; ++j) {
        if (c.window > 0 && j <= i - c.window) continue;
        if (c.chunk > 0 && j / c.chunk != i / c.chunk) continue;
        if (!c.selected.empty() &&
            (c.selected[at(t, j / 32, (c.seqlen + 31) / 32)] >> j % 32 & 1u) == 0)
          continue;
        double dot = 0.0;
        double absolute = 0.0;
        for (std::int64_t e = 0; e < d; ++e) {
          const double product = read(qkv, t, layout.q_column(h) + e, width) *
                                 read(qkv, sample + j, layout.k_column(g) + e, width);
          dot += product;
          absolute += std::abs(product);
        }
        double score = c.scale * dot;
        if (c.soft_cap > 0.0) score = c.soft_cap * std::tanh(score / c.soft_cap);
        const double bias = c.key_bias.empty() ? 0.0 : read(c.key_bias, h, j, c.seqlen);
        p.push_back(score + bias);
        rows.push_back(sample + j);
        magnitude = std::max(magnitude, std::abs(c.scale) * absolute + std::abs(bias));
      }
      double maximum = *std::max_element(p.begin(), p.end());
      double sum = 0.0;
      if (!c.sinks.empty()) {
        const double sink = read(c.sinks, 0, h, layout.heads);
        magnitude = std::max(magnitude, std::abs(sink));
        maximum = std::max(maximum, sink);
        sum = std::exp(sink - maximum);
      }
      for (double& value : p) sum += value = std::exp(value - maximum);
      for (std::size_t j = 0; j < p.size(); ++j)
        for (std::int64_t e = 0; e < dv; ++e) {
          const double v = c.value_scale * read(qkv, rows[j], layout.v_column(g) + e, width);
          result.out[at(t, h * dv + e, layout.heads * dv)] += p[j] / sum * v;
          result.magnitude[at(t, h * dv + e, layout.heads * dv)] += p[j] / sum * std::abs(v);
        }
    }
  return result;
}

Exact cross_entropy(const Values& logits, const std::vector<std::int32_t>& target,
                    std::int64_t tokens, std::int64_t vocab) {
  Exact nll(static_cast<std::size_t>(tokens), 0.0);
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int32_t chosen = target[static_cast<std::size_t>(t)];
    if (chosen < 0) continue;
    double maximum = -std::numeric_limits<double>::infinity();
    for (std::int64_t v = 0; v < vocab; ++v) maximum = std::max(maximum, read(logits, t, v, vocab));
    double sum = 0.0;
    for (std::int64_t v = 0; v < vocab; ++v) sum += std::exp(read(logits, t, v, vocab) - maximum);
    nll[static_cast<std::size_t>(t)] = maximum + std::log(sum) - read(logits, t, chosen, vocab);
  }
  return nll;
}

}  // namespace qpipe::reference
