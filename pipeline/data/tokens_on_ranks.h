// Work that one rank does for all: its faults become every rank's faults.
#pragma once

#include <functional>

#include "launch/comm.h"
#include "pipeline/data/dataset.h"

namespace qpipe {

// Runs `work` on rank 0; a UserError there is thrown on every rank with the same message and code.
void on_root(Comm& comm, const std::function<void()>& work);

// load_tokens on rank 0, broadcast.
Tokens load_tokens_on_all_ranks(const DatasetRequest& request, Comm& comm);

}  // namespace qpipe
