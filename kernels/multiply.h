// Activations times factors of their position, head or element, in float32, rounded once. x has the
// compute type.
#pragma once

#include "kernels/head_slices.h"
#include "kernels/stream.h"

namespace qpipe {

// x[t, :] ← x[t, :] · factor[t mod seqlen].   x [tokens, d], factor [1, seqlen] on the device.
void scale_rows(Tensor x, Matrix<const float> factor, Stream& stream);

// x[t, c] ← x[t, c] · σ(gate[t, c / w]), w = x.cols / gate.cols.   x [tokens, d], gate [tokens, d],
// or [tokens, heads] with one gate for the d / heads columns of each head; compute type.
void gate_sigmoid(ConstTensor gate, Tensor x, Stream& stream);

// x[t, c] ← x[t, c] · σ(z), z at column c / head_dim · stride + c mod head_dim of gate: the gates
// lie in slices, between the q heads for instance. gate [tokens, ≥ slices.width()].
void gate_sigmoid_slices(ConstTensor gate, HeadSlices slices, Tensor x, Stream& stream);

// x[t, c] ← x[t, c] · factor[t, c].   factor as x, or [1, 1]: one for all; compute type.
void multiply(ConstTensor factor, Tensor x, Stream& stream);

namespace cuda {
decltype(qpipe::scale_rows) scale_rows;
decltype(qpipe::gate_sigmoid) gate_sigmoid;
decltype(qpipe::gate_sigmoid_slices) gate_sigmoid_slices;
decltype(qpipe::multiply) multiply;
}  // namespace cuda

}  // namespace qpipe
