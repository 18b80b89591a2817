// Moving a factor of each column from the input of a linear into its weight: x Wᵀ = (x diag(s)⁻¹)
// (W diag(s))ᵀ.
#pragma once

#include "kernels/stream.h"

namespace qpipe {

// out[r, c] = w[r, c] · column[0, c] / row[0, r] in float32, each operation rounded.   w [rows, d]
// of f32, f16 or bf16; column [1, d] or empty (ones); row [1, rows] or empty (ones); out [rows, d].
void scale_weight(ConstTensor w, Matrix<const float> column, Matrix<const float> row,
                  Matrix<float> out, Stream& stream);

// h_ij ← h_ij / (s_i s_j): the Hessian of x becomes that of x diag(s)⁻¹, as symmetric as before. h
// [d, d], s [1, d].
void unscale_hessian(Matrix<float> h, Matrix<const float> s, Stream& stream);

namespace cuda {
decltype(qpipe::scale_weight) scale_weight;
decltype(qpipe::unscale_hessian) unscale_hessian;
}  // namespace cuda

}  // namespace qpipe
