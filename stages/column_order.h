// The order in which GPTQ visits the columns of a linear: pure functions of the Hessian's diagonal,
// ties in the original order. Every result has perm[k] = original column at position k.
#pragma once

#include <cstdint>
#include <vector>

namespace qpipe {

// Descending diagonal: the columns that matter most are rounded first (desc_act).
std::vector<std::int32_t> act_order(const std::vector<float>& diagonal);

// Groups keep their columns (g_idx stays trivial): groups by descending largest diagonal element,
// columns inside a group by descending diagonal (GPTQModel's act_group_aware). group_size divides
// the number of columns.
std::vector<std::int32_t> group_aware_order(const std::vector<float>& diagonal,
                                            std::int64_t group_size);

}  // namespace qpipe
