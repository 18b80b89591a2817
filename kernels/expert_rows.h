// Rows of activations, sorted by the expert that reads them and put together again.
#pragma once

#include "kernels/stream.h"

namespace qpipe {

// A token t has k slots, each with an expert: T·k pairs, numbered t·k + s. Sorted by expert, and
// where that is equal by number, they are the rows that the experts read:
//   source[r] = the number of the pair in row r;
//   place[t, s] = the row of pair (t, s);
//   begin[e] = the first row of expert e; begin[experts] = T·k.
// expert, place [T, k] without gaps between rows, begin [1, experts + 1], source [1, T·k]. The
// caller has checked 0 ≤ expert < experts; what route() writes is.
void sort_by_expert(Matrix<const std::int32_t> expert, std::int64_t experts,
                    Matrix<std::int32_t> begin, Matrix<std::int32_t> source,
                    Matrix<std::int32_t> place, Stream& stream);

// y[r] = x[source[r] / k], times weight[source[r] / k, source[r] mod k] where weight is not empty,
// in float32 and rounded once.   x [T, d], y [R, d], each of the compute type or float32; source
// [1, R], usually an expert's columns of the sorted list; weight [T, k] or empty.
void gather_rows(ConstTensor x, Matrix<const std::int32_t> source, std::int64_t k,
                 Matrix<const float> weight, Tensor y, Stream& stream);

// z[t] = Σ_s weight[t, s] · y[place[t, s]] + shared_weight[t] · shared[t], in float32, slots in
// ascending order and shared last, rounded once.   y [T·k, d]; place [T, k]; weight [T, k] or empty
// (1); shared [T, d] or empty (0); shared_weight [T, 1] or empty (1); z [T, d]. y, shared and z:
// each of the compute type or float32. z may be shared.
void combine_rows(ConstTensor y, Matrix<const std::int32_t> place, Matrix<const float> weight,
                  ConstTensor shared, Matrix<const float> shared_weight, Tensor z, Stream& stream);

// g[t] = σ(x[t] · w): how much of the shared expert a token takes (Qwen2-MoE).   x [T, d], w [1,
// d], both of the compute type; g [T, 1]. The sum is in float32, in an order that depends on d
// alone.
void row_gate(ConstTensor x, ConstTensor w, Matrix<float> g, Stream& stream);

namespace cuda {
decltype(qpipe::sort_by_expert) sort_by_expert;
decltype(qpipe::gather_rows) gather_rows;
decltype(qpipe::combine_rows) combine_rows;
decltype(qpipe::row_gate) row_gate;
}  // namespace cuda

}  // namespace qpipe
