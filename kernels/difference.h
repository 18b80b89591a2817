// Losses of a scale or clip search, added up in float64. Deterministic: the same bits for the same arguments.
#pragma once

#include "kernels/stream.h"

namespace qpipe {

// total[0, 0] += Σ (a − b)².   a, b [rows, d] of f32, f16 or bf16 (each its own), total [1, 1] on the device.
void add_squared_difference(ConstTensor a, ConstTensor b, Matrix<double> total, Stream& stream);

// total[0, 0] += Σ_r δ_r H δ_rᵀ, δ = a − b: the squared error of the outputs that H = Σ x xᵀ saw, without the tokens.
// a, b [rows, d] of f32, f16 or bf16 (each its own); h [d, d] symmetric; scratch [2 · rows, d] float32 (contents lost); total [1, 1] on the
// device. CUDA: TF32 products (relative error about 2^-11 of the loss), float32 accumulation; CPU: float32.
void add_gram_loss(ConstTensor a, ConstTensor b, Matrix<const float> h, Matrix<float> scratch, Matrix<double> total, Stream& stream);

namespace cuda {
decltype(qpipe::add_squared_difference) add_squared_difference;
decltype(qpipe::add_gram_loss) add_gram_loss;
}  // namespace cuda

}  // namespace qpipe
