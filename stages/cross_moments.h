// How far the inputs of a group of linears have drifted from those of the original model:
// C = (1/T) Σ (x − x̃) x̃ᵀ over the tokens of all ranks, x the original model's input of the group
// and x̃ the quantized one's (kernels/cross_moment.h); bit-identical for any number of ranks.
#pragma once

#include <array>
#include <string>

#include "launch/comm.h"
#include "stages/activations.h"

namespace qpipe {

// C is the sum of two halves, each of half of the samples, so that what is chance in it can be told
// from what is not (stages/original_target.h).
struct CrossMoments {
  std::array<Array<float>, 2> halves;  // [d, d], or both empty

  bool empty() const { return halves.front().empty(); }
};

// C itself, in the memory of the first half; the other's is freed.
Array<float> sum_of_halves(CrossMoments&& moments, Stream& stream);

// Of a group that is no expert's. Both sets of activations stand at the same step. tokens: as
// calibrate() has it. places: of the columns that are summed at once. Collective. Throws
// std::domain_error naming the step and the column when an input of the original model is NaN or
// infinite.
CrossMoments cross_moments(const Activations& original, const Activations& quantized,
                           const Group& group, const std::string& what, std::int64_t tokens,
                           const Places& places, Comm& comm, Stream& stream);

}  // namespace qpipe
