// Elementwise functions of the MLP and of the embedding, in float32, rounded once.
#pragma once

#include "kernels/stream.h"

namespace qpipe {

enum class Activation {
  silu,        // x·σ(x)
  gelu,        // x·Φ(x) with erf
  gelu_tanh,   // its tanh form
  relu,        // max(x, 0)
  relu2,       // max(x, 0)²
  quick_gelu,  // x·σ(1.702 x)
};

// How far gate and up of an MLP may go, and what is added to up.
struct GatedLimits {
  float limit = 0.0f;      // 0: none
  bool after = false;      // gate is limited after f, not before it
  float up_offset = 0.0f;  // 1 for gpt-oss
  bool operator==(const GatedLimits&) const = default;
};

// y = f(min(gate, limit)) · (clamp(up, ±limit) + up_offset), or with `after`
// y = min(f(gate), limit) · (clamp(up, ±limit) + up_offset).
// gate is the left and up the right half of gate_up [tokens, 2·ffn]; y [tokens, ffn]. NaN passes
// through min and clamp.
void gated_activation(ConstTensor gate_up, Activation f, const GatedLimits& limits, Tensor y,
                      Stream& stream);

// y = f(x), both [tokens, ffn]; in place allowed.
void activation(ConstTensor x, Activation f, Tensor y, Stream& stream);

// y = α_p x² + β x for x > 0, else α_n (expm1(min(x, ε)) − x) + β x, both [tokens, ffn]; in place
// allowed. α_p = softplus(alpha_p) and α_n = β + softplus(alpha_n) of the parameters as a
// checkpoint has them: [1, 1] of one float type, on the device. The reference has β = 0.5 and ε =
// −1e-6.
void xielu(ConstTensor x, ConstTensor alpha_p, ConstTensor alpha_n, float beta, float eps, Tensor y,
           Stream& stream);

// y[t, :] = multiplier · table[ids[t], :].   ids [1, tokens] on the device, table [vocab, d] in any
// float type, y compute type. The caller has checked 0 ≤ ids < vocab.
void embed(Matrix<const std::int32_t> ids, ConstTensor table, float multiplier, Tensor y,
           Stream& stream);

// to = from, element by element, between f32, f16 and bf16 (round half to even). Same shape, any
// strides.
void convert(ConstTensor from, Tensor to, Stream& stream);

// x ← alpha · x (compute type or f32).
void scale(Tensor x, float alpha, Stream& stream);

namespace cuda {
decltype(qpipe::gated_activation) gated_activation;
decltype(qpipe::activation) activation;
decltype(qpipe::xielu) xielu;
decltype(qpipe::embed) embed;
decltype(qpipe::convert) convert;
decltype(qpipe::scale) scale;
}  // namespace cuda

}  // namespace qpipe
