// The selective scan of Mamba (Gu and Dao 2023), on a block of whole sequences.
#pragma once

#include "kernels/stream.h"

namespace qpipe {

// For each channel c, with s_0 = 0 in front of each sequence and A = −exp(a_log):
//   Δ_t = softplus(dt_t)
//   s_t[n] = exp(Δ_t A[c, n]) s_{t−1}[n] + Δ_t B_t[n] x_t
//   y_t = (Σ_n C_t[n] s_t[n] + D x_t) · silu(z_t)
// x, z, y [tokens, channels] of the compute type, dt [tokens, channels] of it or float32; b, c
// [tokens, state] of the compute type; a_log [channels, state] without gaps between rows, d [1,
// channels]; tokens a multiple of seqlen. y may be x, dt or z. s and its sums are float32, over n
// in an order that depends on the state alone. Throws where the state is wider than 64.
void selective_scan(ConstTensor x, ConstTensor dt, ConstTensor b, ConstTensor c, ConstTensor z,
                    Matrix<const float> a_log, Matrix<const float> d, std::int64_t seqlen, Tensor y,
                    Stream& stream);

namespace cuda {
decltype(qpipe::selective_scan) selective_scan;
}  // namespace cuda

}  // namespace qpipe
