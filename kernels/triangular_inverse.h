// The inverse of the unit upper triangular N of a Hessian's factor (kernels/factor.h).
#pragma once

#include "kernels/stream.h"

namespace qpipe {

// inverse ← N⁻¹, zeros below the diagonal, in float32.   n, inverse [d, d], not the same memory;
// inverse without gaps. The same bits on every run.
void invert_unit_upper(Matrix<const float> n, Matrix<float> inverse, Stream& stream);

// The device memory that it takes while it runs.
std::int64_t inverse_workspace_bytes(Backend backend, std::int64_t d);

namespace cuda {
decltype(qpipe::invert_unit_upper) invert_unit_upper;
// Columns that a thread block inverts, doubled until all are done.
inline constexpr std::int64_t inverse_block = 128;
}  // namespace cuda

}  // namespace qpipe
