// "Did you mean …?"
#pragma once

#include <string>
#include <vector>

namespace qpipe {

// Insertions, deletions, replacements and swaps of neighbours that lead from a to b, in bytes
// (optimal string alignment distance).
std::size_t edit_distance(const std::string& a, const std::string& b);

// The candidate that `name` was probably meant to be: within a third of its length in edits, or an
// abbreviation of it; "" when none is near.
std::string nearest_name(const std::string& name, const std::vector<std::string>& candidates);

}  // namespace qpipe
