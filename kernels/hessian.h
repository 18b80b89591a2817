// H = Σ_t x_t x_tᵀ over all calibration tokens, summed exactly: independent of the order and of the
// number of ranks.
//
// A block of tokens gives X_bᵀX_b in float32 (bf16 products are exact there). The block is added to
// a 64-bit fixed-point sum whose unit differs by element, u_ij = 2^(e_i + e_j + log2_tokens − 62),
// where 2^e_i ≥ max_t |x_ti|. As |H_ij| ≤ T·2^(e_i+e_j) the sum cannot overflow, and as H_ii ≥
// 2^(2e_i − 2) the diagonal keeps at least 60 − log2_tokens bits. Integer addition is associative,
// so an all-reduce over any number of ranks gives the same bits.
#pragma once

#include <vector>

#include "kernels/stream.h"

namespace qpipe {

// maximum[0, i] = max(maximum[0, i], max_t |x[t, i]|).   x [tokens, d] compute type, maximum [1, d]
// float32, NaN propagates.
void column_max_abs(ConstTensor x, Matrix<float> maximum, Stream& stream);

// Smallest e with 2^e ≥ maximum (0 for 0). Throws std::domain_error naming the column on NaN or
// infinity. Host arrays.
void hessian_exponents(Matrix<const float> maximum, Matrix<std::int32_t> exponent);

// Sums may be held for a range of columns [begin, begin + count) at a time: begin is a multiple of
// this, and begin + count, too, or d. The products are cut into panels of so many columns in any
// case, so that ranges change no bits.
constexpr std::int64_t hessian_panel(Backend backend) {
  return backend == Backend::cuda ? 2048 : 256;
}

// sum(i − begin, j − begin) += rint((X_bᵀX_b)_ij / u_ij) for i ≥ j, j in the range.   x [tokens, d]
// compute type; exponent [1, d] on the device; log2_tokens: 2^log2_tokens ≥ tokens of the whole
// calibration set (≤ 40); sum [d − begin, count].
void accumulate_hessian(ConstTensor x, Matrix<const std::int32_t> exponent, int log2_tokens,
                        std::int64_t begin, Matrix<std::int64_t> sum, Stream& stream);

// Rows that one of several sums grows by: those of x, or, where source is not empty,
// x[source[r] / slots], as gather_rows has them (kernels/expert_rows.h).
struct HessianRows {
  ConstTensor x;
  Matrix<const std::int32_t> exponent;
  int log2_tokens = 0;
  std::int64_t begin = 0;
  Matrix<std::int64_t> sum;
  Matrix<const std::int32_t> source;  // [1, rows] on the device
  std::int64_t slots = 1;

  std::int64_t rows() const { return source.empty() ? x.rows : source.cols; }
};

// The same for many small sets of rows at once: those of a block for each of a layer's experts. No
// two sums overlap. The bits of a sum don't depend on the sets beside it; on CUDA they are others
// than those of accumulate_hessian, and x of few columns or rows takes no longer than its share.
void accumulate_hessians(const std::vector<HessianRows>& all, Stream& stream);

// h_ij = h_ji = float(sum_ij · u_ij / tokens), the mean over tokens, for j in the range and i ≥ j.
// h [d, d].
void finish_hessian(Matrix<const std::int64_t> sum, Matrix<const std::int32_t> exponent,
                    int log2_tokens, std::int64_t tokens, std::int64_t begin, Matrix<float> h,
                    Stream& stream);

// The same for i ≥ j alone, j in [begin, begin + panel.cols): panel(i − begin, j − begin) = h_ij,
// others undefined.   panel [d − begin, any]; sum: of these columns, a col_range of a wider one's
// rows from the panel's first on.
void finish_hessian_panel(Matrix<const std::int64_t> sum, Matrix<const std::int32_t> exponent,
                          int log2_tokens, std::int64_t tokens, std::int64_t begin,
                          Matrix<float> panel, Stream& stream);

// h_ij = H[perm[i], perm[j]] where the smaller of perm[i], perm[j] is a column of the panel that
// finish_hessian_panel made: all panels in turn give the whole, symmetric matrix.   perm [1, d] on
// the device, or empty: as it is; h [d, d].
void place_hessian_panel(Matrix<const float> panel, std::int64_t begin,
                         Matrix<const std::int32_t> perm, Matrix<float> h, Stream& stream);

namespace cuda {
decltype(qpipe::column_max_abs) column_max_abs;
decltype(qpipe::accumulate_hessian) accumulate_hessian;
decltype(qpipe::accumulate_hessians) accumulate_hessians;
decltype(qpipe::finish_hessian) finish_hessian;
decltype(qpipe::finish_hessian_panel) finish_hessian_panel;
decltype(qpipe::place_hessian_panel) place_hessian_panel;
}  // namespace cuda

}  // namespace qpipe
