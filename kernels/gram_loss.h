// The squared error that a change δ of a linear's weight makes in the outputs that H = Σ x xᵀ saw,
// without the tokens: Σ_r δ_r H δ_rᵀ over the weight's rows. Deterministic: the same bits for the
// same arguments.
#pragma once

#include "kernels/stream.h"

namespace qpipe {

// h [d, d] symmetric, as the losses read it. CPU: h itself, which must outlive it. CUDA: bfloat16
// in 2 d² bytes; of two panels that mirror each other only the one right of the diagonal, with
// twice its values.
struct GramMatrix {
  Buffer memory;
  ConstTensor values;
};
GramMatrix gram_matrix(Matrix<const float> h, Stream& stream);

// loss[0, 0] = Σ_r δ_r H δ_rᵀ, δ = a − b.   a, b [rows, d] of f32, f16 or bf16 (each its own); loss
// [1, 1] on the device. CPU: float32. CUDA: δ, H and their product are each rounded to the 8 bits
// of bfloat16 (they have its range), with float32 accumulation: relative errors of 2^-9 in d²
// terms, whose sum has much less.
void gram_loss(ConstTensor a, ConstTensor b, const GramMatrix& h, Matrix<double> loss,
               Stream& stream);

namespace cuda {
decltype(qpipe::gram_matrix) gram_matrix;
decltype(qpipe::gram_loss) gram_loss;
}  // namespace cuda

}  // namespace qpipe
