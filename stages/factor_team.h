// How the ranks of a team come to Cholesky factors: dealt, one rank for each, or each by all ranks
// (kernels/factor.h).
#pragma once

#include <cstdint>

#include "kernels/factor.h"
#include "launch/comm.h"

namespace qpipe {

// Whether a team on CUDA works on each of the factors of a [d, d] Hessian together. Not where every
// rank has one of its own to compute.
constexpr bool factors_in_team(std::int64_t factors, std::int64_t d, int ranks) {
  return d > largest_factor_of_one_rank && factors < ranks;
}

// All ranks of comm, which outlives the team. Collective.
FactorTeam factor_team(Comm& comm, Stream& stream);

}  // namespace qpipe
