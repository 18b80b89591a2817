// AWQ's clip search: how far each group of weights is cut off before it is rounded (AutoAWQ,
// quantizer.py, _compute_best_clip).
#pragma once

#include "kernels/quantize_groups.h"

namespace qpipe {

inline constexpr int clip_steps = 10;  // limits (1 − i/20) · max|w|, i = 0 … 9
inline constexpr std::int64_t largest_clip_group =
    128;  // the group's block of h fits the shared memory of every GPU (64 KiB)

// For each row and each run of group_size columns: the limit m among those that minimises δ H_gg
// δᵀ, δ = Q(clamp(w, −m, m)) − w, the error of the group's part of the output; the first best wins.
// Q is the grid of quantize_groups.h (mse_norm must be 0), H_gg the diagonal block of h that
// belongs to the group. w [rows, d], h [d, d], limit [rows, groups] out. group_size divides d and
// is at most largest_clip_group.
void search_clip(Matrix<const float> w, Matrix<const float> h, std::int64_t group_size,
                 const GridOptions& grid, Matrix<float> limit, Stream& stream);

// w ← clamp(w, −limit, limit), limit [rows, groups] of runs of w.cols / groups columns.
void clamp_groups(Matrix<float> w, Matrix<const float> limit, Stream& stream);

namespace cuda {
decltype(qpipe::search_clip) search_clip;
decltype(qpipe::clamp_groups) clamp_groups;
}  // namespace cuda

}  // namespace qpipe
