// Depthwise causal convolutions along sequences: what linear attention, state-space models and
// short-convolution mixers do in front of their recurrences.
#pragma once

#include "kernels/head_slices.h"
#include "kernels/stream.h"

namespace qpipe {

// y[t, c] = f(bias[c] + Σ_{j<k} weight[c, j] · x[t − (k − 1) + j, c]), f(s) = s·σ(s) with `silu`,
// else s. Each run of seqlen rows is one sequence; rows before its first count as 0. The sum is in
// float32, j ascending, and y is rounded once.
// x, y [tokens, channels] of the compute type, not the same memory, tokens a multiple of seqlen;
// weight [channels, k] without gaps and bias [1, channels] or empty, in float32.
void causal_conv(ConstTensor x, Matrix<const float> weight, Matrix<const float> bias, bool silu,
                 std::int64_t seqlen, Tensor y, Stream& stream);

// The same of channels that lie in slices of x, one behind the other in y: channel c is column
// c / head_dim · stride + c mod head_dim (projections that are fused by head). y [tokens,
// heads · head_dim].
void causal_conv_slices(ConstTensor x, HeadSlices slices, Matrix<const float> weight,
                        Matrix<const float> bias, bool silu, std::int64_t seqlen, Tensor y,
                        Stream& stream);

namespace cuda {
decltype(qpipe::causal_conv_slices) causal_conv_slices;
}  // namespace cuda

}  // namespace qpipe
