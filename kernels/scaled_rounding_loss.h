// What AWQ's candidates cost in the outputs that H = Σ x xᵀ saw: all candidates of one weight at
// once.
#pragma once

#include "kernels/gram_loss.h"
#include "kernels/quantize_groups.h"

namespace qpipe {

inline constexpr std::int64_t candidates_at_once = 20;

// loss[b, c] = Σ_r δ_r H δ_rᵀ, δ = Q_c(w) − w, over the rows r of block b (runs of row_block rows,
// the last may be short), where Q_c(w) is scaled_rounding (kernels/scaled_rounding.h) with row c of
// s. w [rows, d] of f32, f16 or bf16; s [n, d] positive and finite; h: of [d, d], with the
// precision that kernels/gram_loss.h states; group_size divides d; loss [⌈rows / row_block⌉, n] on
// the device. A block's losses do not depend on the other blocks. CUDA takes row_block ·
// candidates_at_once · (4 d + 8) bytes while it works.
void scaled_rounding_losses(ConstTensor w, Matrix<const float> s, std::int64_t group_size,
                            const GridOptions& grid, const GramMatrix& h, std::int64_t row_block,
                            Matrix<double> loss, Stream& stream);

namespace cuda {
decltype(qpipe::scaled_rounding_losses) scaled_rounding_losses;
}

}  // namespace qpipe
