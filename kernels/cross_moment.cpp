#include "kernels/cross_moment.h"

#include <cblas.h>

#include <algorithm>
#include <vector>

#include "kernels/fixed_point.h"

namespace qpipe {

namespace {

constexpr std::int64_t tile = hessian_panel(Backend::cpu);

void check_range(Matrix<const std::int64_t> sum, Matrix<const std::int32_t> difference_exponent,
                 Matrix<const std::int32_t> exponent, int log2_tokens, std::int64_t begin,
                 Stream& stream) {
  const std::int64_t d = exponent.cols;
  const std::int64_t end = begin + sum.cols;
  const std::int64_t panel = hessian_panel(stream.backend());
  require(difference_exponent.cols == d && sum.rows == d && begin >= 0 && end <= d,
          "cross moment: a range of columns must be [d, columns], and exponents [1, d]");
  require(begin % panel == 0 && (end % panel == 0 || end == d),
          "cross moment: a range of columns must be made of whole panels");
  require(log2_tokens >= 0 && log2_tokens <= 40, "cross moment: log2_tokens must be in [0, 40]");
}

}  // namespace

void subtract(ConstTensor x, ConstTensor x_tilde, Tensor y, Stream& stream) {
  require(x.dtype == stream.compute_dtype() && x_tilde.dtype == x.dtype && y.dtype == x.dtype,
          "subtract: all must have the compute type");
  require(x.rows == y.rows && x.cols == y.cols && x_tilde.rows == y.rows && x_tilde.cols == y.cols,
          "subtract: all must have one shape");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::subtract(x, x_tilde, y, stream);
  const auto a = x.as<const float>();
  const auto b = x_tilde.as<const float>();
  const auto result = y.as<float>();
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < result.rows; ++t)
    for (std::int64_t c = 0; c < result.cols; ++c) result(t, c) = a(t, c) - b(t, c);
}

void accumulate_cross(ConstTensor difference, ConstTensor x,
                      Matrix<const std::int32_t> difference_exponent,
                      Matrix<const std::int32_t> exponent, int log2_tokens, std::int64_t begin,
                      Matrix<std::int64_t> sum, Stream& stream) {
  check_range(sum, difference_exponent, exponent, log2_tokens, begin, stream);
  require(difference.dtype == stream.compute_dtype() && x.dtype == difference.dtype,
          "cross moment: both inputs must have the compute type");
  require(difference.rows == x.rows && difference.cols == x.cols && x.cols == exponent.cols,
          "cross moment: both inputs must be [tokens, d]");
  require(x.rows <= std::int64_t{1} << log2_tokens, "cross moment: more tokens than 2^log2_tokens");
  if (x.rows == 0 || sum.cols == 0) return;
  if constexpr (has_cuda)
    if (stream.on_cuda())
      return cuda::accumulate_cross(difference, x, difference_exponent, exponent, log2_tokens,
                                    begin, sum, stream);
  const auto left = difference.as<const float>();
  const auto right = x.as<const float>();
  const std::int64_t d = x.cols;
  const std::int64_t rows = (d + tile - 1) / tile;
  const std::int64_t columns = (sum.cols + tile - 1) / tile;
#pragma omp parallel
  {
    std::vector<float> product(static_cast<std::size_t>(tile * tile));
#pragma omp for schedule(dynamic)
    for (std::int64_t index = 0; index < rows * columns; ++index) {
      const std::int64_t i0 = index / columns * tile;
      const std::int64_t j0 = begin + index % columns * tile;
      const std::int64_t height = std::min(tile, d - i0);
      const std::int64_t width = std::min(tile, begin + sum.cols - j0);
      cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, static_cast<int>(height),
                  static_cast<int>(width), static_cast<int>(x.rows), 1.0f, left.data + i0,
                  static_cast<int>(left.stride), right.data + j0, static_cast<int>(right.stride),
                  0.0f, product.data(), static_cast<int>(tile));
      for (std::int64_t i = i0; i < i0 + height; ++i)
        for (std::int64_t j = j0; j < j0 + width; ++j)
          sum(i, j - begin) +=
              in_units(product[static_cast<std::size_t>((i - i0) * tile + j - j0)],
                       unit_exponent(difference_exponent(0, i), exponent(0, j), log2_tokens));
    }
  }
}

void finish_cross(Matrix<const std::int64_t> sum, Matrix<const std::int32_t> difference_exponent,
                  Matrix<const std::int32_t> exponent, int log2_tokens, std::int64_t tokens,
                  std::int64_t begin, Matrix<float> c, Stream& stream) {
  check_range(sum, difference_exponent, exponent, log2_tokens, begin, stream);
  require(c.rows == exponent.cols && c.cols == exponent.cols, "finish_cross: c must be [d, d]");
  require(tokens > 0, "finish_cross: no tokens");
  if constexpr (has_cuda)
    if (stream.on_cuda())
      return cuda::finish_cross(sum, difference_exponent, exponent, log2_tokens, tokens, begin, c,
                                stream);
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < sum.rows; ++i)
    for (std::int64_t j = 0; j < sum.cols; ++j)
      c(i, begin + j) = from_units(
          sum(i, j), unit_exponent(difference_exponent(0, i), exponent(0, begin + j), log2_tokens),
          tokens);
}

}  // namespace qpipe
