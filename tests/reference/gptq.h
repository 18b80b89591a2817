// GPTQ in double precision by the textbook route (Frantar et al. 2023, algorithm 1): H → Cholesky →
// inverse → Cholesky, one column after the other, the weights updated in place. Nothing is shared
// with the kernels. Matrices are row-major.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace qpipe::reference {

// Nearest float16, as a double; infinity above 65519.
double round_to_half(double x);

struct Grid {
  double scale = 1.0;
  int zero = 0;
};

// formats.md §1 with p = 1: lo = p·min(w, 0), hi = p·max(w, 0), symmetric lo = −hi, scale rounded
// to float16 (at least 2^-24) first.
Grid find_grid(const std::vector<double>& w, int bits, bool symmetric, double p = 1.0);
int nearest_code(double w, Grid grid, int bits);
double value(int code, Grid grid);

// a [d, d] → lower L with a = L Lᵀ; nothing when a is not positive definite.
std::optional<std::vector<double>> cholesky(std::vector<double> a, std::int64_t d);

struct Gptq {
  std::vector<int> code;     // [rows, d]
  std::vector<Grid> grid;    // [rows, groups]
  std::vector<double> loss;  // [rows], Σ (v − q)² / U_kk²
};

// h [d, d] already damped. group_size divides d; a group's grid comes from the updated weights when
// its first column is reached, or, like the peers', when the first column of the 128 / group_size
// groups that it is in a block with is reached.
std::optional<Gptq> gptq(std::vector<double> w, std::int64_t rows, const std::vector<double>& h,
                         std::int64_t d, int bits, bool symmetric, std::int64_t group_size);

// The same by kernels/factor.h's formulation, from N and the pivots: q_k = Q(w_k + Σ_{j<k} (w_j −
// q_j) N_jk). static_grid: [rows, groups], used with group_of [d] when not empty.
Gptq gptq_by_factor(const std::vector<double>& w, std::int64_t rows, const std::vector<double>& n,
                    const std::vector<double>& pivot, std::int64_t d, int bits, bool symmetric,
                    std::int64_t group_size, const std::vector<Grid>& static_grid = {},
                    const std::vector<std::int32_t>& group_of = {});

}  // namespace qpipe::reference
