// Sums of activations, in float32 and rounded to the type of y.
#pragma once

#include "kernels/stream.h"

namespace qpipe {

// y ← y + alpha · x.   x and y [tokens, d], each of the compute type or float32.
void add_scaled(ConstTensor x, float alpha, Tensor y, Stream& stream);

// y[t, :] ← y[t, :] + table[first_row + t mod seqlen, :]: learned positions.   table [≥ first_row +
// min(seqlen, tokens), d] in any float type, y [tokens, d] of the compute type.
void add_rows(ConstTensor table, std::int64_t first_row, std::int64_t seqlen, Tensor y,
              Stream& stream);

namespace cuda {
decltype(qpipe::add_scaled) add_scaled;
decltype(qpipe::add_rows) add_rows;
}  // namespace cuda

}  // namespace qpipe
