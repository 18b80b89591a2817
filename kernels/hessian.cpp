#include "kernels/hessian.h"

#include <cblas.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "kernels/expert_rows.h"
#include "kernels/fixed_point.h"

namespace qpipe {

namespace {

constexpr std::int64_t tile = hessian_panel(Backend::cpu);

// m: a sum or a panel [d − begin, columns of the range].
template <class T>
void check_range(const Matrix<T>& m, const Matrix<const std::int32_t>& exponent, int log2_tokens,
                 std::int64_t begin, Stream& stream) {
  const std::int64_t d = exponent.cols;
  const std::int64_t panel = hessian_panel(stream.backend());
  const std::int64_t end = begin + m.cols;
  require(begin >= 0 && m.rows == d - begin && end <= d,
          "hessian: a range of columns must be [d - begin, columns], and exponent [1, d]");
  require(begin % panel == 0 && (end % panel == 0 || end == d),
          "hessian: a range of columns must be made of whole panels");
  require(log2_tokens >= 0 && log2_tokens <= 40, "hessian: log2_tokens must be in [0, 40]");
}

struct Tile {
  std::int64_t row = 0;
  std::int64_t col = 0;
};
// The first rows and columns of the tiles of edge `edge` that have elements i ≥ j with j in [begin,
// end), i < d.
std::vector<Tile> lower_tiles(std::int64_t begin, std::int64_t end, std::int64_t d,
                              std::int64_t edge) {
  std::vector<Tile> tiles;
  for (std::int64_t row = begin; row < d; row += edge)
    for (std::int64_t col = begin; col < std::min(end, row + edge); col += edge)
      tiles.push_back({row, col});
  return tiles;
}

float finished(std::int64_t sum, Matrix<const std::int32_t> exponent, std::int64_t i,
               std::int64_t j, int log2_tokens, std::int64_t tokens) {
  return from_units(sum, unit_exponent(exponent(0, i), exponent(0, j), log2_tokens), tokens);
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
    for (std::int64_t c = 0; c < count; ++c)
      bits[c] = std::bit_cast<std::uint32_t>(maximum(0, begin + c)) & 0x7fffffffu;
    for (std::int64_t t = 0; t < values.rows; ++t) {
      const float* row = values.row(t) + begin;
      for (std::int64_t c = 0; c < count; ++c)
        bits[c] = std::max(bits[c], std::bit_cast<std::uint32_t>(row[c]) & 0x7fffffffu);
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
    if (!std::isfinite(value))
      throw std::domain_error("activation " + std::to_string(i) + " is not finite");
    if (value > limit) throw std::domain_error("activation " + std::to_string(i) + " exceeds 2^48");
    int e = 0;
    const float mantissa = std::frexp(value, &e);  // value = mantissa · 2^e, mantissa in [1/2, 1)
    exponent(0, i) = mantissa == 0.5f ? e - 1 : e;
  }
}

namespace {

void accumulate(ConstTensor x, const HessianRows& to) {
  const auto values = x.as<const float>();
  const std::int64_t begin = to.begin;
  const std::vector<Tile> tiles = lower_tiles(begin, begin + to.sum.cols, x.cols, tile);
  const int tokens = static_cast<int>(x.rows);
  const int stride = static_cast<int>(values.stride);
#pragma omp parallel
  {
    std::vector<float> product(static_cast<std::size_t>(tile * tile));
#pragma omp for schedule(dynamic)
    for (std::size_t index = 0; index < tiles.size(); ++index) {
      const auto [i0, j0] = tiles[index];
      const std::int64_t height = std::min(tile, x.cols - i0);
      const std::int64_t width = std::min(tile, x.cols - j0);
      if (i0 == j0)
        cblas_ssyrk(CblasRowMajor, CblasLower, CblasTrans, static_cast<int>(height), tokens, 1.0f,
                    values.data + i0, stride, 0.0f, product.data(), static_cast<int>(tile));
      else
        cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, static_cast<int>(height),
                    static_cast<int>(width), tokens, 1.0f, values.data + i0, stride,
                    values.data + j0, stride, 0.0f, product.data(), static_cast<int>(tile));
      for (std::int64_t i = i0; i < i0 + height; ++i) {
        const std::int64_t end = std::min(j0 + width, i + 1);
        for (std::int64_t j = j0; j < end; ++j) {
          to.sum(i - begin, j - begin) +=
              in_units(product[static_cast<std::size_t>((i - i0) * tile + j - j0)],
                       unit_exponent(to.exponent(0, i), to.exponent(0, j), to.log2_tokens));
        }
      }
    }
  }
}

void check_rows(const HessianRows& to, Stream& stream) {
  require(to.x.dtype == stream.compute_dtype(), "hessian: x must have the compute type");
  require(to.x.cols == to.exponent.cols, "hessian: x must be [tokens, d] and exponent [1, d]");
  check_range(to.sum, to.exponent, to.log2_tokens, to.begin, stream);
  require(to.rows() <= std::int64_t{1} << to.log2_tokens,
          "hessian: more tokens than 2^log2_tokens");
}

}  // namespace

void accumulate_hessian(ConstTensor x, Matrix<const std::int32_t> exponent, int log2_tokens,
                        std::int64_t begin, Matrix<std::int64_t> sum, Stream& stream) {
  const HessianRows to{x, exponent, log2_tokens, begin, sum, {}, 1};
  check_rows(to, stream);
  if (x.rows == 0 || sum.cols == 0) return;
  if constexpr (has_cuda)
    if (stream.on_cuda())
      return cuda::accumulate_hessian(x, exponent, log2_tokens, begin, sum, stream);
  accumulate(x, to);
}

void accumulate_hessians(const std::vector<HessianRows>& all, Stream& stream) {
  for (const HessianRows& to : all) {
    check_rows(to, stream);
    require(to.slots > 0, "accumulate_hessians: a token has at least one slot");
  }
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::accumulate_hessians(all, stream);
  Buffer gathered;
  for (const HessianRows& to : all) {
    if (to.rows() == 0 || to.sum.cols == 0) continue;
    if (to.source.empty()) {
      accumulate(to.x, to);
      continue;
    }
    const std::size_t bytes = static_cast<std::size_t>(to.rows() * to.x.cols) * sizeof(float);
    if (gathered.bytes() < bytes) {
      gathered = {};  // not both at once
      gathered = Buffer(bytes, stream);
    }
    const Tensor rows(gathered.data(), DType::f32, to.rows(), to.x.cols);
    gather_rows(to.x, to.source, to.slots, {}, rows, stream);
    accumulate(rows, to);
  }
}

namespace {

constexpr std::int64_t edge = 64;  // of tiles whose mirrored writes stay in cache

}

void finish_hessian(Matrix<const std::int64_t> sum, Matrix<const std::int32_t> exponent,
                    int log2_tokens, std::int64_t tokens, std::int64_t begin, Matrix<float> h,
                    Stream& stream) {
  check_range(sum, exponent, log2_tokens, begin, stream);
  require(h.rows == exponent.cols && h.cols == exponent.cols, "finish_hessian: h must be [d, d]");
  require(tokens > 0, "finish_hessian: no tokens");
  if constexpr (has_cuda)
    if (stream.on_cuda())
      return cuda::finish_hessian(sum, exponent, log2_tokens, tokens, begin, h, stream);
  const std::int64_t end = begin + sum.cols;
  const std::vector<Tile> tiles = lower_tiles(begin, end, h.cols, edge);
#pragma omp parallel for schedule(dynamic)
  for (std::size_t index = 0; index < tiles.size(); ++index) {
    const auto [i0, j0] = tiles[index];
    for (std::int64_t i = i0; i < std::min(h.cols, i0 + edge); ++i)
      for (std::int64_t j = j0; j < std::min({end, j0 + edge, i + 1}); ++j) {
        h(i, j) = finished(sum(i - begin, j - begin), exponent, i, j, log2_tokens, tokens);
        h(j, i) = h(i, j);
      }
  }
}

void finish_hessian_panel(Matrix<const std::int64_t> sum, Matrix<const std::int32_t> exponent,
                          int log2_tokens, std::int64_t tokens, std::int64_t begin,
                          Matrix<float> panel, Stream& stream) {
  check_range(panel, exponent, log2_tokens, begin, stream);
  require(sum.rows == panel.rows && sum.cols == panel.cols,
          "finish_hessian_panel: sum and panel must have one shape");
  require(tokens > 0, "finish_hessian_panel: no tokens");
  if constexpr (has_cuda)
    if (stream.on_cuda())
      return cuda::finish_hessian_panel(sum, exponent, log2_tokens, tokens, begin, panel, stream);
#pragma omp parallel for schedule(static)
  for (std::int64_t r = 0; r < panel.rows; ++r)
    for (std::int64_t c = 0; c < std::min(panel.cols, r + 1); ++c)
      panel(r, c) = finished(sum(r, c), exponent, begin + r, begin + c, log2_tokens, tokens);
}

void place_hessian_panel(Matrix<const float> panel, std::int64_t begin,
                         Matrix<const std::int32_t> perm, Matrix<float> h, Stream& stream) {
  require(h.rows == h.cols && panel.rows == h.rows - begin && begin + panel.cols <= h.cols,
          "place_hessian_panel: panel must be [d - begin, columns] and h [d, d]");
  require(perm.empty() || perm.cols == h.cols, "place_hessian_panel: perm must be [1, d]");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::place_hessian_panel(panel, begin, perm, h, stream);
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < h.rows; ++i) {
    const std::int64_t row = perm.empty() ? i : perm(0, i);
    for (std::int64_t j = 0; j < h.cols; ++j) {
      const std::int64_t column = perm.empty() ? j : perm(0, j);
      const std::int64_t low = std::min(row, column);
      const std::int64_t high = std::max(row, column);
      if (low >= begin && low < begin + panel.cols) h(i, j) = panel(high - begin, low - begin);
    }
  }
}

}  // namespace qpipe
