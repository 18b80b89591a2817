// The Hessian of one step: H = (1/T) Σ x xᵀ over the tokens of all ranks, bit-identical for any number of ranks.
#pragma once

#include <string>
#include <vector>

#include "launch/comm.h"
#include "stages/activations.h"

namespace qpipe {

struct Hessian {
  Array<float> matrix;          // [d, d], on every rank
  std::vector<float> diagonal;  // host
};

// `what` names the step in messages ("layer 3, input of self_attn.o_proj"). Collective. Throws std::domain_error naming it, the column and
// the first sample when an activation is NaN or infinite (every rank throws the same).
Hessian calibrate(const Activations& activations, const std::string& what, Comm& comm, Stream& stream);

// mean_t |x[t, i]| over the tokens of all ranks, [d] on every rank, bit-identical for any number of ranks. Collective; throws as
// calibrate().
std::vector<double> mean_magnitude(const Activations& activations, const std::string& what, Comm& comm, Stream& stream);

}  // namespace qpipe
