#include "kernels/column_statistics.h"

#include <algorithm>
#include <cmath>

#include "kernels/weights.h"

namespace qpipe {

namespace {

constexpr std::int64_t run = 256;

template <class T>
void add_relative_magnitudes(Matrix<const T> w, std::int64_t group_size, Matrix<std::int64_t> sum) {
  const std::int64_t groups = w.cols / group_size;
#pragma omp parallel for schedule(static)
  for (std::int64_t g = 0; g < groups; ++g)
    for (std::int64_t r = 0; r < w.rows; ++r) {
      const T* row = w.row(r) + g * group_size;
      float largest = 0.0f;
      for (std::int64_t i = 0; i < group_size; ++i)
        largest = std::max(largest, std::fabs(to_float(row[i])));
      const float scale = largest + 1e-6f;
      for (std::int64_t i = 0; i < group_size; ++i)
        sum(0, g * group_size + i) +=
            std::llrint(static_cast<double>(std::fabs(to_float(row[i])) / scale) * 0x1p40);
    }
}

}  // namespace

void accumulate_column_abs(ConstTensor x, Matrix<const std::int32_t> exponent, int log2_tokens,
                           Matrix<std::int64_t> sum, Stream& stream) {
  require(x.dtype == stream.compute_dtype(), "accumulate_column_abs: x must have the compute type");
  require(exponent.cols == x.cols && sum.cols == x.cols,
          "accumulate_column_abs: exponent and sum must be [1, d]");
  require(log2_tokens >= 0 && log2_tokens <= 40,
          "accumulate_column_abs: log2_tokens must be in [0, 40]");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::accumulate_column_abs(x, exponent, log2_tokens, sum, stream);
  const auto values = x.as<const float>();
  constexpr std::int64_t width = 256;
  const std::int64_t strips = (x.cols + width - 1) / width;
#pragma omp parallel for schedule(static)
  for (std::int64_t strip = 0; strip < strips; ++strip) {
    const std::int64_t c0 = strip * width;
    const std::int64_t count = std::min(width, x.cols - c0);
    for (std::int64_t begin = 0; begin < values.rows; begin += run) {
      float partial[width] = {};
      for (std::int64_t t = begin; t < std::min(begin + run, values.rows); ++t)
        for (std::int64_t i = 0; i < count; ++i) partial[i] += std::fabs(values(t, c0 + i));
      for (std::int64_t i = 0; i < count; ++i)
        sum(0, c0 + i) += std::llrint(
            std::ldexp(static_cast<double>(partial[i]), 62 - log2_tokens - exponent(0, c0 + i)));
    }
  }
}

void accumulate_relative_magnitude(ConstTensor w, std::int64_t group_size, Matrix<std::int64_t> sum,
                                   Stream& stream) {
  require(group_size > 0 && w.cols % group_size == 0,
          "accumulate_relative_magnitude: group_size must divide the number of columns");
  require_weights(w.dtype, "accumulate_relative_magnitude: w must be f32, f16 or bf16");
  require(sum.cols == w.cols, "accumulate_relative_magnitude: sum must be [1, d]");
  require(w.rows < std::int64_t{1} << 22, "accumulate_relative_magnitude: too many rows");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::accumulate_relative_magnitude(w, group_size, sum, stream);
  with_type(w, [&](auto weights) { add_relative_magnitudes(weights, group_size, sum); });
}

}  // namespace qpipe
