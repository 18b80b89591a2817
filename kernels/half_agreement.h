// How far two halves of the samples say the same.
#pragma once

#include "kernels/stream.h"

namespace qpipe {

// agreement[0, k] = max(0, 1 − Σ_r (a_rk − b_rk)² / Σ_r (a_rk + b_rk)²), 0 where both are 0: the
// part of a + b that is not chance, where a and b are what each half of the samples contributes. If
// a = s/2 + m and b = s/2 + n with independent errors, E(a − b)² is the power of m + n, and (1 −
// noise/power) (a + b) is the estimate of s of least squared error that is a multiple of a + b.
// Sums in float64.   a, b [rows, d] float32; agreement [1, d] float32.
void half_agreement(Matrix<const float> a, Matrix<const float> b, Matrix<float> agreement,
                    Stream& stream);

namespace cuda {
decltype(qpipe::half_agreement) half_agreement;
}

}  // namespace qpipe
