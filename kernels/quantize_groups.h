// Uniform integer grids of groups of weights. Source: GPTQ quantizer.py as formats.md §1 states it.
#pragma once

#include "kernels/stream.h"

namespace qpipe {

// The grid of one (row, group): value = scale · (code − zero), code in [0, 2^bits − 1].
struct GridOptions {
  int bits = 4;           // 2, 3, 4 or 8
  bool symmetric = true;  // zero = 2^(bits−1)
  float mse_norm = 0.0f;  // > 0: search the shrink factor p = 1 − i/100, i < 80, that minimises Σ|w
                          // − Q(w)|^mse_norm; first best wins
};

// For each row and each run of group_size columns: lo = min(w, 0), hi = max(w, 0); symmetric: hi =
// max(−lo, hi), lo = −hi; an all-zero group gets lo = −1, hi = 1.  scale = (hi − lo)/(2^bits − 1),
// ROUNDED TO FLOAT16 (at least the smallest positive one) before zero = rne(−lo/scale) and before
// any error is measured. w [rows, groups·group_size], scale [rows, groups], zero [rows, groups].
// group_size > 0 divides w.cols. A scale above float16's range (65504) is stored as infinity, and
// the scale of a group with a weight that is not finite as NaN: callers check.
void find_grids(Matrix<const float> w, std::int64_t group_size, const GridOptions& grid,
                Matrix<float> scale, Matrix<std::uint8_t> zero, Stream& stream);

// The same with a search that minimises Σ weight[0, c] · |w − Q(w)|^mse_norm.   weight [1, cols] on
// the device, or empty: as above. With weights the factors of a symmetric grid begin at 1.1: its
// largest code is one step below the end of the range, which p = 1 cuts off.
void find_weighted_grids(Matrix<const float> w, std::int64_t group_size, const GridOptions& grid,
                         Matrix<const float> weight, Matrix<float> scale, Matrix<std::uint8_t> zero,
                         Stream& stream);

// code = clamp(rne(w / scale) + zero, 0, 2^bits − 1).  group_of [1, cols] on the device: the group
// of each column. Round to nearest (RTN).
void round_to_grid(Matrix<const float> w, Matrix<const float> scale,
                   Matrix<const std::uint8_t> zero, Matrix<const std::int32_t> group_of, int bits,
                   Matrix<std::uint8_t> code, Stream& stream);

// w = scale[r, g] · (code − zero[r, g]), g = group_of[c], in float32, rounded once to w's type
// (f32, f16 or bf16).
void dequantize(Matrix<const std::uint8_t> code, Matrix<const float> scale,
                Matrix<const std::uint8_t> zero, Matrix<const std::int32_t> group_of, Tensor w,
                Stream& stream);

// found[0, 0] = 1 if some scale is not finite, found[0, 1] = 1 if some zero is 0; otherwise as they
// were.   scale, zero [rows, groups] contiguous, found [1, 2] on the device.
void inspect_grids(Matrix<const float> scale, Matrix<const std::uint8_t> zero,
                   Matrix<std::int32_t> found, Stream& stream);

namespace cuda {
decltype(qpipe::find_weighted_grids) find_weighted_grids;
decltype(qpipe::round_to_grid) round_to_grid;
decltype(qpipe::dequantize) dequantize;
decltype(qpipe::inspect_grids) inspect_grids;
}  // namespace cuda

}  // namespace qpipe
