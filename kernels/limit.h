// Elementwise limits, in float32. x has the compute type or float32; NaN stays NaN.
#pragma once

#include "kernels/stream.h"

namespace qpipe {

// x ← min(max(x, −limit), limit), limit ≥ 0 (OLMo's clip_qkv).
void clamp(Tensor x, float limit, Stream& stream);

// x ← cap · tanh(x / cap), cap > 0 (the logits of Gemma 2).
void soft_cap(Tensor x, float cap, Stream& stream);

namespace cuda {
decltype(qpipe::clamp) clamp;
decltype(qpipe::soft_cap) soft_cap;
}  // namespace cuda

}  // namespace qpipe
