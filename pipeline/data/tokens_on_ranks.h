// Tokens that rank 0 reads for all.
#pragma once

#include "launch/comm.h"
#include "pipeline/data/dataset.h"

namespace qpipe {

// load_tokens or load_mix on rank 0, broadcast.
Tokens load_tokens_on_all_ranks(const DatasetRequest& request, Comm& comm);
Tokens load_mix_on_all_ranks(const std::vector<MixPart>& parts, std::int64_t samples, Comm& comm);

}  // namespace qpipe
