// C = Σ_t (x_t − x̃_t) x̃_tᵀ over calibration tokens: how the input x that a linear has in the
// original model differs from x̃, the one that it has in the quantized model (Li et al. 2025, GPTAQ;
// stages/original_target.h). Summed exactly, as kernels/hessian.h sums H, and with the same units
// but for the first index: u_ij = 2^(d_i + e_j + log2_tokens − 62), where 2^d_i bounds |x_ti −
// x̃_ti|.
#pragma once

#include "kernels/hessian.h"

namespace qpipe {

// y ← x − x̃, rounded once.   All [tokens, d] of the compute type, y contiguous.
void subtract(ConstTensor x, ConstTensor x_tilde, Tensor y, Stream& stream);

// sum(i, j − begin) += rint((D_bᵀ X_b)_ij / u_ij) for all i, and j in [begin, begin + sum.cols), a
// range as hessian_panel says.   difference, x [tokens, d] of the compute type;
// difference_exponent, exponent [1, d] on the device; sum [d, columns of the range].
void accumulate_cross(ConstTensor difference, ConstTensor x,
                      Matrix<const std::int32_t> difference_exponent,
                      Matrix<const std::int32_t> exponent, int log2_tokens, std::int64_t begin,
                      Matrix<std::int64_t> sum, Stream& stream);

// c(i, j) = float(sum(i, j − begin) · u_ij / tokens) for j in the range.   c [d, d].
void finish_cross(Matrix<const std::int64_t> sum, Matrix<const std::int32_t> difference_exponent,
                  Matrix<const std::int32_t> exponent, int log2_tokens, std::int64_t tokens,
                  std::int64_t begin, Matrix<float> c, Stream& stream);

namespace cuda {
decltype(qpipe::subtract) subtract;
decltype(qpipe::accumulate_cross) accumulate_cross;
decltype(qpipe::finish_cross) finish_cross;
}  // namespace cuda

}  // namespace qpipe
