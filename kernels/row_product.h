// Products whose rows don't depend on one another: they can be shared over ranks at will.
#pragma once

#include "kernels/stream.h"

namespace qpipe {

// c = a b in float32, or as exact (kernels/split_multiply.h).   a [rows, depth], b [depth, cols], c
// [rows, cols] without gaps, which overlaps neither.
void multiply_rows(Matrix<const float> a, Matrix<const float> b, Matrix<float> c, Stream& stream);

// The device memory that it takes while it runs.
std::int64_t multiply_rows_workspace_bytes(Backend backend, std::int64_t rows, std::int64_t depth,
                                           std::int64_t cols);

namespace cuda {
// Columns of b that are split at a time, which takes as many bytes as b has.
inline constexpr std::int64_t product_columns = 2048;
decltype(qpipe::multiply_rows) multiply_rows;
}  // namespace cuda

}  // namespace qpipe
