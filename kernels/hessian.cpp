#include "kernels/hessian.h"

#include <cblas.h>

#include <algorithm>
#include <bit>
#include <cmath>

namespace qpipe {

namespace {

constexpr std::int64_t tile = 256;

// 2^exponent, exact. |exponent| ≤ 360 here: 2 · 148 + 62 at most.
double power_of_two(int exponent) { return std::bit_cast<double>(static_cast<std::uint64_t>(1023 + exponent) << 52); }

void check_sum_arguments(const Matrix<const std::int64_t>& sum, const Matrix<const std::int32_t>& exponent, int log2_tokens) {
  require(sum.rows == sum.cols && exponent.cols == sum.cols, "hessian: sum must be [d, d] and exponent [1, d]");
  require(log2_tokens >= 0 && log2_tokens <= 40, "hessian: log2_tokens must be in [0, 40]");
}

// (ti, tj) of the index-th lower tile, row by row.
struct TileIndex {
  std::int64_t row = 0;
  std::int64_t col = 0;
};
TileIndex lower_tile(std::int64_t index) {
  auto row = static_cast<std::int64_t>((std::sqrt(8.0 * static_cast<double>(index) + 1.0) - 1.0) / 2.0);
  while (row * (row + 1) / 2 > index) --row;
  while ((row + 1) * (row + 2) / 2 <= index) ++row;
  return {row, index - row * (row + 1) / 2};
}

}  // namespace

void column_max_abs(ConstTensor x, Matrix<float> maximum, Stream& stream) {
  require(x.dtype == stream.compute_dtype(), "column_max_abs: x must have the compute type");
  require(maximum.cols == x.cols, "column_max_abs: maximum must be [1, d]");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::column_max_abs(x, maximum, stream);
  const auto values = x.as<const float>();
  constexpr std::int64_t width = 256;
  const std::int64_t strips = (x.cols + width - 1) / width;
#pragma omp parallel for schedule(static)
  for (std::int64_t strip = 0; strip < strips; ++strip) {
    const std::int64_t begin = strip * width;
    const std::int64_t count = std::min(width, x.cols - begin);
    // Bits of |x| are ordered like |x|, with NaN above infinity: the integer maximum keeps NaN.
    std::uint32_t bits[width];
    for (std::int64_t c = 0; c < count; ++c) bits[c] = std::bit_cast<std::uint32_t>(maximum(0, begin + c)) & 0x7fffffffu;
    for (std::int64_t t = 0; t < values.rows; ++t) {
      const float* row = values.row(t) + begin;
      for (std::int64_t c = 0; c < count; ++c) bits[c] = std::max(bits[c], std::bit_cast<std::uint32_t>(row[c]) & 0x7fffffffu);
    }
    for (std::int64_t c = 0; c < count; ++c) maximum(0, begin + c) = std::bit_cast<float>(bits[c]);
  }
}

void hessian_exponents(Matrix<const float> maximum, Matrix<std::int32_t> exponent) {
  require(maximum.cols == exponent.cols, "hessian_exponents: maximum and exponent must be [1, d]");
  // Above 2^48 a block's float32 sum of squares could overflow.
  constexpr float limit = 0x1p48f;
  for (std::int64_t i = 0; i < maximum.cols; ++i) {
    const float value = maximum(0, i);
    if (!std::isfinite(value)) throw std::domain_error("activation " + std::to_string(i) + " is not finite");
    if (value > limit) throw std::domain_error("activation " + std::to_string(i) + " exceeds 2^48");
    int e = 0;
    const float mantissa = std::frexp(value, &e);  // value = mantissa · 2^e, mantissa in [1/2, 1)
    exponent(0, i) = mantissa == 0.5f ? e - 1 : e;
  }
}

void accumulate_hessian(ConstTensor x, Matrix<const std::int32_t> exponent, int log2_tokens, Matrix<float> scratch,
                        Matrix<std::int64_t> sum, Stream& stream) {
  require(x.dtype == stream.compute_dtype(), "accumulate_hessian: x must have the compute type");
  check_sum_arguments(sum, exponent, log2_tokens);
  require(x.cols == sum.cols && scratch.rows == sum.rows && scratch.cols == sum.cols, "accumulate_hessian: scratch and sum must be [d, d]");
  require(x.rows <= std::int64_t{1} << log2_tokens, "accumulate_hessian: more tokens than 2^log2_tokens");
  if (x.rows == 0) return;
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::accumulate_hessian(x, exponent, log2_tokens, scratch, sum, stream);
  const auto values = x.as<const float>();
  const std::int64_t tiles = (x.cols + tile - 1) / tile;
  const int tokens = static_cast<int>(x.rows);
  const int stride = static_cast<int>(values.stride);
  const int scratch_stride = static_cast<int>(scratch.stride);
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t index = 0; index < tiles * (tiles + 1) / 2; ++index) {
    const auto [ti, tj] = lower_tile(index);
    const std::int64_t i0 = ti * tile;
    const std::int64_t j0 = tj * tile;
    const std::int64_t height = std::min(tile, x.cols - i0);
    const std::int64_t width = std::min(tile, x.cols - j0);
    float* block = scratch.row(i0) + j0;
    if (ti == tj)
      cblas_ssyrk(CblasRowMajor, CblasLower, CblasTrans, static_cast<int>(height), tokens, 1.0f, values.data + i0, stride, 0.0f, block,
                  scratch_stride);
    else
      cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, static_cast<int>(height), static_cast<int>(width), tokens, 1.0f,
                  values.data + i0, stride, values.data + j0, stride, 0.0f, block, scratch_stride);
    for (std::int64_t i = i0; i < i0 + height; ++i) {
      const std::int64_t end = std::min(j0 + width, i + 1);
      for (std::int64_t j = j0; j < end; ++j) {
        const int unit = exponent(0, i) + exponent(0, j) + log2_tokens - 62;
        sum(i, j) += std::llrint(static_cast<double>(scratch(i, j)) * power_of_two(-unit));
      }
    }
  }
}

void finish_hessian(Matrix<const std::int64_t> sum, Matrix<const std::int32_t> exponent, int log2_tokens, std::int64_t tokens,
                    Matrix<float> h, Stream& stream) {
  check_sum_arguments(sum, exponent, log2_tokens);
  require(h.rows == sum.rows && h.cols == sum.cols, "finish_hessian: h must be [d, d]");
  require(tokens > 0, "finish_hessian: no tokens");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::finish_hessian(sum, exponent, log2_tokens, tokens, h, stream);
  constexpr std::int64_t edge = 64;  // tiles, so that the mirrored writes stay in cache
  const std::int64_t tiles = (h.cols + edge - 1) / edge;
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t index = 0; index < tiles * (tiles + 1) / 2; ++index) {
    const auto [ti, tj] = lower_tile(index);
    for (std::int64_t i = ti * edge; i < std::min(h.cols, (ti + 1) * edge); ++i) {
      const std::int64_t end = std::min((tj + 1) * edge, i + 1);
      for (std::int64_t j = tj * edge; j < end; ++j) {
        const int unit = exponent(0, i) + exponent(0, j) + log2_tokens - 62;
        const auto value = static_cast<float>(static_cast<double>(sum(i, j)) * power_of_two(unit) / static_cast<double>(tokens));
        h(i, j) = value;
        h(j, i) = value;
      }
    }
  }
}

}  // namespace qpipe
