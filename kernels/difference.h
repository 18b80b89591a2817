// The loss of a scale search, added up in float64. Deterministic: the same bits for the same
// arguments.
#pragma once

#include "kernels/stream.h"

namespace qpipe {

// total[0, 0] += Σ (a − b)².   a, b [rows, d] of f32, f16 or bf16 (each its own), total [1, 1] on
// the device.
void add_squared_difference(ConstTensor a, ConstTensor b, Matrix<double> total, Stream& stream);

namespace cuda {
decltype(qpipe::add_squared_difference) add_squared_difference;
}  // namespace cuda

}  // namespace qpipe
