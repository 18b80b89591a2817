// The blocked Cholesky factorisation of factor() on CUDA: float32, of large matrices with the bulk of the work on tensor cores.
//
// Right-looking, 512 columns P at a time. What is right of them takes C −= P Pᵀ, which is nearly all of the d³/3 multiplications. Up to
// d = 4096 these are float32's own. Beyond, P is split in two float16, P = hi + lo with 22 bits, and P Pᵀ = hi hiᵀ + hi loᵀ + lo hiᵀ +
// (below float32's roundoff). Tensor cores truncate as they add up. Each time they lose the same part of the sum so far, in expectation,
// whatever its sign: column k is multiplied by 1 + (what is lost from k on). The first columns of a correlated matrix are the largest, so
// they are added last, when little is left to lose. The diagonal, where all terms are positive, is kept apart, in float64.
#pragma once

#include <algorithm>

#include "kernels/stream.h"

namespace qpipe::cuda {

inline constexpr std::int64_t cholesky_block = 512;
inline constexpr std::int64_t cholesky_leaf = 128;  // columns that one thread block factors
inline constexpr std::int64_t cholesky_sub = 32;    // columns that one warp factors

inline constexpr std::int64_t cholesky_float32 = 4096;  // the largest d without tensor cores

// Rows of P that are held as float16, 8 bytes for each element.
constexpr std::int64_t cholesky_part_rows(std::int64_t d) { return d <= cholesky_float32 ? 0 : d - cholesky_block; }

// Device memory that cholesky() takes, while it runs: P in float16, and the inverses of triangles in a leaf.
constexpr std::int64_t cholesky_workspace_bytes(std::int64_t d) {
  return cholesky_part_rows(d) * cholesky_block * 8 + cholesky_leaf * cholesky_sub * 4;
}

// a = L Lᵀ: the lower triangle of a [d, d] ← L. diagonal [1, d] holds that of a and is used up. What is above the diagonal is overwritten.
// Entries of the diagonal must lie in [2^28, 2^30), where float16 holds L without overflow and without a loss to subnormals.
// Without a check of pivots: one that is not positive, and whatever is not finite, makes NaN or infinity on the diagonal of L.
void cholesky(Matrix<float> a, Matrix<double> diagonal, Stream& stream);

}  // namespace qpipe::cuda
