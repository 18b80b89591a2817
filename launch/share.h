// Who does what: pure functions of sizes. Work is cut into fixed blocks; only the owners depend on
// the number of ranks.
#pragma once

#include <cstdint>
#include <vector>

#include "launch/comm.h"

namespace qpipe {

// Blocks 0 … blocks−1 in contiguous runs, sizes differing by at most one, earlier ranks the larger.
// Empty runs when ranks > blocks.
RowRange contiguous_share(std::int64_t blocks, int rank, int ranks);

// The rows of several linears, cut into blocks of `block` rows (the last of each linear may be
// short), all blocks in order dealt in contiguous runs over the ranks. Result [linear][rank]: the
// rows of that linear that the rank owns.
std::vector<std::vector<RowRange>> share_rows(const std::vector<std::int64_t>& rows,
                                              std::int64_t block, int ranks);

// Owners of independent tasks by cost: longest first to the least loaded rank, ties to the lower
// rank. Result [task] → rank.
std::vector<int> share_by_cost(const std::vector<double>& costs, int ranks);

}  // namespace qpipe
