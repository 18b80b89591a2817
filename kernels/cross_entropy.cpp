#include "kernels/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/simd.h"

namespace qpipe {

namespace {

// log Σ_v exp(x[v]), the sum in float64.
QPIPE_SIMD_CLONES double log_sum_exp(const float* x, std::int64_t count) {
  float maximum = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : maximum)
  for (std::int64_t i = 0; i < count; ++i) maximum = x[i] > maximum ? x[i] : maximum;
  double sum = 0.0;
  constexpr std::int64_t block = 256;
  float terms[block];
  for (std::int64_t begin = 0; begin < count; begin += block) {
    const std::int64_t width = std::min(block, count - begin);
#pragma omp simd
    for (std::int64_t i = 0; i < width; ++i) terms[i] = simd_exp(x[begin + i] - maximum);
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = 0; i < width; ++i) sum += static_cast<double>(terms[i]);
  }
  return static_cast<double>(maximum) + std::log(sum);
}

}  // namespace

void cross_entropy(Matrix<const float> logits, Matrix<const std::int32_t> target, Matrix<float> nll,
                   Stream& stream) {
  require(logits.cols > 0, "cross_entropy: logits must be [tokens, vocab]");
  require(
      target.rows == 1 && nll.rows == 1 && target.cols == logits.rows && nll.cols == logits.rows,
      "cross_entropy: target and nll must be [1, tokens]");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::cross_entropy(logits, target, nll, stream);
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < logits.rows; ++t) {
    const std::int32_t chosen = target(0, t);
    const float* row = logits.row(t);
    nll(0, t) =
        chosen == -1
            ? 0.0f
            : static_cast<float>(log_sum_exp(row, logits.cols) - static_cast<double>(row[chosen]));
  }
}

}  // namespace qpipe
