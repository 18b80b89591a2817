// What linear attention and its relatives compute along a sequence, in double precision and one
// element at a time, written from the contracts of kernels/causal_conv.h, kernels/delta_rule.h and
// kernels/gated_norm.h. Matrices are contiguous and row-major.
#pragma once

#include "tests/reference/forward.h"

namespace qpipe::reference {

struct Convolved {
  Exact y;
  Exact magnitude;  // |bias| + Σ |weight · x|: what rounding errors of a sum are relative to
};
// x [tokens, channels], weight [channels, k], bias [channels] or empty.
Convolved causal_conv(const Values& x, const Values& weight, const Values& bias, bool silu,
                      std::int64_t seqlen, std::int64_t channels, std::int64_t k);

}  // namespace qpipe::reference
