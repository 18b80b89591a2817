// Negative log-likelihood of the next token.
#pragma once

#include "kernels/stream.h"

namespace qpipe {

// nll[t] = log Σ_v exp(logits[t, v]) − logits[t, target[t]];  0 where target[t] = −1.
// logits float32 [tokens, vocab], target and nll [1, tokens], all on the device. Subtracts the row
// maximum first.
void cross_entropy(Matrix<const float> logits, Matrix<const std::int32_t> target, Matrix<float> nll,
                   Stream& stream);

namespace cuda {
decltype(qpipe::cross_entropy) cross_entropy;
}

}  // namespace qpipe
