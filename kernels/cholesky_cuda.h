// The blocked Cholesky factorisation of factor() on CUDA: float32, with the bulk of the work on tensor cores.
//
// Right-looking, 512 columns P at a time. What is right of them takes C −= P Pᵀ, which is nearly all of the d³/3 multiplications. Its
// float32 values are split in two float16, P = hi + lo with 22 bits, and P Pᵀ = hi hiᵀ + hi loᵀ + lo hiᵀ + (below float32's roundoff).
// Tensor cores truncate as they add up, a loss that grows with the number of columns in one product and that is largest where all terms are
// positive. So small matrices, which have the time, take fewer columns at once, and the diagonal is kept apart, in float64.
#pragma once

#include <algorithm>

#include "kernels/stream.h"

namespace qpipe::cuda {

inline constexpr std::int64_t cholesky_block = 512;
inline constexpr std::int64_t cholesky_leaf = 128;  // columns that one thread block factors
inline constexpr std::int64_t cholesky_sub = 32;    // columns that one warp factors

// Device memory that cholesky() takes, while it runs: 8 bytes for each element of P, and the inverses of triangles in a leaf.
constexpr std::int64_t cholesky_workspace_bytes(std::int64_t d) {
  return std::max<std::int64_t>(0, d - cholesky_block) * cholesky_block * 8 + cholesky_leaf * cholesky_sub * 4;
}

// a = L Lᵀ: the lower triangle of a [d, d] ← L. diagonal [1, d] holds that of a and is used up. What is above the diagonal is overwritten.
// Entries of the diagonal must lie in [2^28, 2^30), where float16 holds L without overflow and without a loss to subnormals.
// Without a check of pivots: one that is not positive, and whatever is not finite, makes NaN or infinity on the diagonal of L.
void cholesky(Matrix<float> a, Matrix<double> diagonal, Stream& stream);

}  // namespace qpipe::cuda
