// The transpose of a matrix: weights that a checkpoint has as [in, out] (Conv1D of GPT-2).
#pragma once

#include "kernels/stream.h"

namespace qpipe {

// to[c, r] = from[r, c], bits unchanged.   from [rows, cols], to [cols, rows] of one type of 2 or 4
// bytes, which do not overlap.
void transpose(ConstTensor from, Tensor to, Stream& stream);

namespace cuda {
decltype(qpipe::transpose) transpose;
}

}  // namespace qpipe
