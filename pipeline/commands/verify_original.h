// qpipe verify --original: what of the original is not in the output as it should be.
#pragma once

#include <string>
#include <vector>

#include "pipeline/model/checkpoint.h"
#include "stages/architecture.h"

namespace qpipe {

// One line for each tensor of the original that the output lacks or has changed. A tensor that the
// decoder doesn't read must have its dtype, shape and bytes; one that the decoder reads must be
// there with the values that its own become in the output's dtype, or as a packed linear. Not
// asked for: constants that every reader recomputes, and a tied head. rescaled: scales have moved
// between the weights of the decoder layers (AWQ), so that these may have other values.
std::vector<std::string> original_faults(const Architecture& architecture,
                                         const Checkpoint& checkpoint, const Checkpoint& original,
                                         bool rescaled);

}  // namespace qpipe
