// Weights as AWQ's scales would leave them: W' = Q(W diag(s)) diag(s)⁻¹, the effect of scaling the
// inputs down and the weights up around the quantizer Q. Source: Lin et al. 2024 (AWQ),
// section 3.2.
#pragma once

#include "kernels/quantize_groups.h"

namespace qpipe {

// out[r, c] = Q(w[r, c] · s[0, c]) / s[0, c] in float32, rounded once to out's type. Q is the grid
// of quantize_groups.h found for each row and each run of group_size columns (scale rounded to
// float16 first); grid.mse_norm must be 0. w [rows, d] of f32, f16 or bf16; s [1, d] positive and
// finite; group_size divides d; out [rows, d] f32 or bf16.
void scaled_rounding(ConstTensor w, Matrix<const float> s, std::int64_t group_size,
                     const GridOptions& grid, Tensor out, Stream& stream);

namespace cuda {
decltype(qpipe::scaled_rounding) scaled_rounding;
}

}  // namespace qpipe
