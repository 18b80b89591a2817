// The blocked Cholesky factorisation of factor() on CUDA: float32, of large matrices with the bulk
// of the work on tensor cores.
//
// Right-looking, 512 columns P at a time. What is right of them takes C −= P Pᵀ, which is nearly
// all of the d³/3 multiplications. Up to d = 4096 these are float32's own. Beyond, P is split in
// two float16, P = hi + lo with 22 bits, and P Pᵀ = hi hiᵀ + hi loᵀ + lo hiᵀ + (below float32's
// roundoff). Tensor cores truncate as they add up. Each time they lose the same part of the sum so
// far, in expectation, whatever its sign: column k is multiplied by 1 + (what is lost from k on).
// The first columns of a correlated matrix are the largest, so they are added last, when little is
// left to lose. The diagonal, where all terms are positive, is kept apart, in float64.
//
// Beyond d = 8192 the columns are cut into units, dealt round-robin to the ranks of a team (1-D
// block-cyclic). With panel p come to all, the owner of the next one subtracts p from its 512
// columns, factors them and sends them, in float32 with what it leaves of the diagonal, while all
// subtract p from the rest of their own columns:
//
//   owner of p + 1   | take p | C(p+1) −= P Pᵀ | factor p + 1 | own C −= P Pᵀ   | take p + 1 …
//   others           | take p | own C −= P Pᵀ                                   | take p + 1 …
//   second stream                                             | broadcast p + 1 |
//
// cuBLAS may choose another kernel for another shape, which adds up in another order. So each unit
// has a product of its own, of the same shape whoever computes it, and one rank alone goes through
// the same ones: the bits do not depend on the number of ranks.
#pragma once

#include <algorithm>

#include "kernels/factor.h"

namespace qpipe::cuda {

inline constexpr std::int64_t cholesky_block = 512;
inline constexpr std::int64_t cholesky_leaf = 128;  // columns that one thread block factors
inline constexpr std::int64_t cholesky_sub = 32;    // columns that one warp factors

inline constexpr std::int64_t cholesky_float32 = 4096;  // the largest d without tensor cores
inline constexpr std::int64_t cholesky_unit =
    2048;  // columns that one rank owns, and subtracts a panel from at once
static_assert(cholesky_unit % cholesky_block == 0);

constexpr bool cholesky_by_units(std::int64_t d) { return d > largest_factor_of_one_rank; }

// Rows of P that are held as float16, 8 bytes for each element.
constexpr std::int64_t cholesky_part_rows(std::int64_t d) {
  return d <= cholesky_float32 ? 0 : d - cholesky_block;
}

// What is sent of a panel [rows, cols]: its elements in float32, then the diagonal of what is right
// of it in float64.
constexpr std::int64_t cholesky_message_bytes(std::int64_t rows, std::int64_t cols) {
  return rows * cols * 4 + (rows - cols) * 8;
}

// Device memory that cholesky() takes, while it runs: P in float16, the inverses of triangles in a
// leaf, and a message.
constexpr std::int64_t cholesky_workspace_bytes(std::int64_t d, int ranks) {
  const std::int64_t message =
      ranks > 1 && cholesky_by_units(d) ? cholesky_message_bytes(d, cholesky_block) : 0;
  return cholesky_part_rows(d) * cholesky_block * 8 + cholesky_leaf * cholesky_sub * 4 + message;
}

// a = L Lᵀ: the lower triangle of a [d, d] ← L. diagonal [1, d] holds that of a and is used up.
// What is above the diagonal is overwritten. Entries of the diagonal must lie in [2^28, 2^30),
// where float16 holds L without overflow and without a loss to subnormals. Without a check of
// pivots: one that is not positive, and whatever is not finite, makes NaN or infinity on the
// diagonal of L.
void cholesky(Matrix<float> a, Matrix<double> diagonal, const FactorTeam& team, Stream& stream);

}  // namespace qpipe::cuda
