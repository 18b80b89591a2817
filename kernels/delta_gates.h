// What a delta net takes from its gates' projections (kernels/delta_rule.h), in float32. The
// columns lie in slices of a wider matrix: column c of the result is c / head_dim · stride + c mod
// head_dim of x (projections that are fused by head).
#pragma once

#include "kernels/head_slices.h"
#include "kernels/stream.h"

namespace qpipe {

// g[t, c] = −exp(a_log[h]) · softplus(x[t, c] + dt_bias[c]), h = c / (C / heads): the logarithm of
// a decay in (0, 1).   x [tokens, ≥ slices.width()] of the compute type; a_log [1, heads], dt_bias
// [1, C]; g [tokens, C], C a multiple of heads: one decay a head, or one for each of its channels.
void log_decay(ConstTensor x, HeadSlices slices, Matrix<const float> a_log,
               Matrix<const float> dt_bias, Matrix<float> g, Stream& stream);

// beta[t, c] = σ(x[t, c]): how far a token overwrites what the state says of its key.   x as above;
// beta [tokens, C].
void write_strength(ConstTensor x, HeadSlices slices, Matrix<float> beta, Stream& stream);

namespace cuda {
decltype(qpipe::log_decay) log_decay;
decltype(qpipe::write_strength) write_strength;
}  // namespace cuda

}  // namespace qpipe
