// AWQ's clip search: each group of a row is cut off where rounding then costs the least output
// error. Source: formats.md §2.
#pragma once

#include <string>

#include "stages/calibrate.h"
#include "stages/solve.h"

namespace qpipe {

// False for projections to queries and keys, whose errors multiply in the softmax. `module`: the
// last part of its name counts.
bool may_clip(const std::string& module);

// w ← clamp(w, ±limit) with the limits of kernels/clip_search.h. w [rows, in] float32: some rows of
// a weight; hessian: of its input, on the device. settings.group_columns must be at most
// largest_clip_group.
void clip_weight(Matrix<float> w, const Hessian& hessian, const LinearSettings& settings,
                 Stream& stream);

}  // namespace qpipe
