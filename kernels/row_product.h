// Products whose rows don't depend on one another: they can be shared over ranks in blocks of 32.
// (On the CPU a row's bits are those of its place among 32: BLAS goes through 12 rows and through
// the 4 behind them in other ways.)
#pragma once

#include "kernels/stream.h"

namespace qpipe {

inline constexpr std::int64_t product_row_block = 32;

// What b is multiplied as; of a triangular one, zeros are left out.
enum class RightFactor { plain, upper, upper_transposed };

// c = a b, or c = a bᵀ, in float32, or as exact (kernels/split_multiply.h).   a [rows, depth], b
// [depth, cols], or [d, d] and upper triangular; c [rows, cols] without gaps, which overlaps
// neither.
void multiply_rows(Matrix<const float> a, Matrix<const float> b, RightFactor kind, Matrix<float> c,
                   Stream& stream);

// The device memory that it takes while it runs.
std::int64_t multiply_rows_workspace_bytes(Backend backend, std::int64_t rows, std::int64_t depth,
                                           std::int64_t cols, RightFactor kind);

namespace cuda {
// Columns of b that are split at a time, which takes as many bytes as they have.
inline constexpr std::int64_t product_columns = 2048;
decltype(qpipe::multiply_rows) multiply_rows;
}  // namespace cuda

}  // namespace qpipe
