// AWQ's searches in double precision, straight from their definitions (reference/formats.md §2).
// Matrices are row-major.
#pragma once

#include <cstdint>
#include <vector>

namespace qpipe::reference {

// Q(w) of one group: the values, on the grid of gptq.h.
std::vector<double> round_group(const std::vector<double>& w, int bits, bool symmetric);

// δ H δᵀ, δ = Q(clamp(w, −limit, limit)) − w, of one group. h [n, n].
double clipped_error(const std::vector<double>& w, double limit, const std::vector<double>& h,
                     int bits, bool symmetric);

// Σ_r |w_rc| / (max of the group + 1e-6), [d].
std::vector<double> relative_magnitude(const std::vector<double>& w, std::int64_t d,
                                       std::int64_t group_size);

// Σ_r δ_r H δ_rᵀ. delta [rows, d].
double gram_loss(const std::vector<double>& delta, const std::vector<double>& h, std::int64_t d);

}  // namespace qpipe::reference
