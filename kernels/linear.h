// The matrix product of a linear layer.
#pragma once

#include "kernels/stream.h"

namespace qpipe {

// y = x Wᵀ + b.   x [tokens, in], weight [out, in], bias [1, out] or empty, y [tokens, out].
// x, weight, bias: the stream's compute type; y: compute type or float32. Accumulates in float32,
// rounds once. A row of y depends on the shapes and on that row of x only through fixed tilings:
// the same shapes give the same bits.
void linear(ConstTensor x, ConstTensor weight, ConstTensor bias, Tensor y, Stream& stream);

// y += alpha (x Wᵀ + b), the residual add fused: the sum is rounded once where bias is empty.
void linear_add(ConstTensor x, ConstTensor weight, ConstTensor bias, float alpha, Tensor y,
                Stream& stream);

namespace cuda {
decltype(qpipe::linear) linear;
decltype(qpipe::linear_add) linear_add;
}  // namespace cuda

}  // namespace qpipe
