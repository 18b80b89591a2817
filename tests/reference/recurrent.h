// What linear attention and its relatives compute along a sequence, in double precision and one
// element at a time, written from the contracts of kernels/causal_conv.h, kernels/delta_rule.h and
// kernels/gated_norm.h. Matrices are contiguous and row-major.
#pragma once

#include <functional>

#include "kernels/delta_rule.h"
#include "kernels/gated_norm.h"
#include "tests/reference/forward.h"

namespace qpipe::reference {

struct Convolved {
  Exact y;
  Exact magnitude;  // |bias| + Σ |weight · x|: what rounding errors of a sum are relative to
};
// x [tokens, channels], weight [channels, k], bias [channels] or empty.
Convolved causal_conv(const Values& x, const Values& weight, const Values& bias, bool silu,
                      std::int64_t seqlen, std::int64_t channels, std::int64_t k);

// −exp(a_log) softplus(x + dt_bias) of x [tokens, C], a_log [heads], dt_bias [C].
Exact log_decay(const Values& x, const Values& a_log, const Values& dt_bias);
Exact write_strength(const Values& x);

// The gate of x [tokens, channels] has as many channels; weight [d].
Exact gated_rms_norm(const Values& x, const Values& weight, double eps, const Values& gate,
                     NormGate f);

struct DeltaCase {
  DeltaHeads heads;
  std::int64_t samples = 1;
  std::int64_t seqlen = 1;
  Values q, k, v, g, beta;
};
// rounded: of q̂ and k̂, of a decayed state, of a correction and of a state that is read. The
// identity makes the result exact, a rounding to a type that of a plain computation in it.
Exact delta_rule(const DeltaCase& c, const std::function<double(double)>& rounded);

}  // namespace qpipe::reference
