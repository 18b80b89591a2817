// Which earlier tokens each token attends to: DeepSeek-V3.2's lightning indexer.
#pragma once

#include "kernels/stream.h"

namespace qpipe {

// Words of 32 tokens that a row of `selected` has.
constexpr std::int64_t selection_words(std::int64_t tokens) { return (tokens + 31) / 32; }

// Of one sequence of T tokens, bit j mod 32 of selected[t, j / 32] is set for the top_k tokens
// j ≤ t with the largest
//   s_tj = Σ_h weight[t, h] · max(0, q_th · k_j)
// and for all of them where there are no more; of equal scores the lower j comes first. Bits
// beyond t are 0.   q [T, heads · d], k [T, d], weight [T, heads], all of the compute type;
// selected [T, selection_words(T)]. Sums in float32, heads in ascending order.
//
// Throws std::invalid_argument for other shapes, and on CUDA for d above 128 or odd, and for more
// tokens than a block's shared memory holds (about 50,000).
void select_tokens(ConstTensor q, ConstTensor k, ConstTensor weight, std::int64_t top_k,
                   Matrix<std::uint32_t> selected, Stream& stream);

namespace cuda {
decltype(qpipe::select_tokens) select_tokens;
}  // namespace cuda

}  // namespace qpipe
