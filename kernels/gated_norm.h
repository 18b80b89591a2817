// The norm behind a delta net: of each head, times a gate.
#pragma once

#include "kernels/head_slices.h"
#include "kernels/stream.h"

namespace qpipe {

enum class NormGate {
  silu,    // z·σ(z): Qwen3-Next, Qwen 3.5
  sigmoid  // σ(z): Kimi-Linear
};

// y[t, h·d + i] = x̂ · weight[i] · f(z), x̂ = x / √(mean(x²) + eps) with the mean over head h's d
// elements; in float32, rounded once. z of channel c = h·d + i is at column c / head_dim · stride +
// c mod head_dim of gate, whose slices hold as many channels as x.
// x, y [tokens, heads · d], gate [tokens, ≥ gate_slices.width()], of the compute type; weight
// [1, d] in float32, which says d. y may be x.
void gated_rms_norm(ConstTensor x, Matrix<const float> weight, float eps, ConstTensor gate,
                    HeadSlices gate_slices, NormGate f, Tensor y, Stream& stream);

namespace cuda {
decltype(qpipe::gated_rms_norm) gated_rms_norm;
}  // namespace cuda

}  // namespace qpipe
