// Averages over rows that AWQ weighs columns with, summed in 64-bit fixed point: the result does
// not depend on the order of the sums nor on the number of ranks (kernels/hessian.h has the same
// idea).
#pragma once

#include "kernels/stream.h"

namespace qpipe {

// sum[0, i] += Σ_t |x[t, i]| in units of 2^(exponent[0, i] + log2_tokens − 62); each run of 256
// rows is added in float32 first, in order. x [tokens, d] compute type; 2^exponent ≥ max_t |x[t,
// i]| (hessian_exponents); 2^log2_tokens ≥ tokens of all calls; all on the device.
void accumulate_column_abs(ConstTensor x, Matrix<const std::int32_t> exponent, int log2_tokens,
                           Matrix<std::int64_t> sum, Stream& stream);

// sum[0, c] += Σ_r |w[r, c]| / (max_{c' in the group of c} |w[r, c']| + 1e-6) in units of 2^-40;
// rows added as integers. w [rows, d] f32, f16 or bf16; group_size divides d. Fewer than 2^22 rows.
void accumulate_relative_magnitude(ConstTensor w, std::int64_t group_size, Matrix<std::int64_t> sum,
                                   Stream& stream);
inline constexpr double relative_magnitude_unit = 0x1p-40;

namespace cuda {
decltype(qpipe::accumulate_column_abs) accumulate_column_abs;
decltype(qpipe::accumulate_relative_magnitude) accumulate_relative_magnitude;
}  // namespace cuda

}  // namespace qpipe
