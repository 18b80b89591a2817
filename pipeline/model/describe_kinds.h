// What an architecture computes, in words for people.
#pragma once

#include <string>
#include <vector>

#include "stages/architecture.h"

namespace qpipe {

// "grouped-query attention", "window (some layers)", …: what the layers compute, then what stands
// before and behind them. "(some layers)" where it isn't true of all.
std::vector<std::string> describe_kinds(const Architecture& architecture);

}  // namespace qpipe
