// Rows times the inverse of the unit upper triangular N of a Hessian's factor (kernels/factor.h).
#pragma once

#include "kernels/stream.h"

namespace qpipe {

enum class Side { inverse, inverse_of_transpose };

// x ← x N⁻¹, or x ← x N⁻ᵀ, in float32.   x [rows, d], n [d, d] with ones on the diagonal and zeros
// below it. The result of a row does not depend on which other rows are in the call.
void solve_unit_upper(Matrix<const float> n, Side side, Matrix<float> x, Stream& stream);

// The device memory that it takes while it runs.
std::int64_t solve_workspace_bytes(Backend backend, std::int64_t rows, std::int64_t d);

namespace cuda {
inline constexpr std::int64_t solved_columns = 128;  // one after the other, before a product
decltype(qpipe::solve_unit_upper) solve_unit_upper;
}  // namespace cuda

}  // namespace qpipe
