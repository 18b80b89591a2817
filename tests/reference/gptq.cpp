#include "tests/reference/gptq.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace qpipe::reference {

double round_to_half(double x) {
  if (x == 0.0) return x;
  const int exponent = std::max(static_cast<int>(std::floor(std::log2(std::fabs(x)))), -14);
  const double unit = std::ldexp(1.0, exponent - 10);
  const double rounded = std::nearbyint(x / unit) * unit;
  return std::fabs(rounded) > 65504.0 ? std::copysign(std::numeric_limits<double>::infinity(), x)
                                      : rounded;
}

int nearest_code(double w, Grid grid, int bits) {
  return static_cast<int>(std::clamp(std::nearbyint(w / grid.scale) + grid.zero, 0.0,
                                     static_cast<double>((1 << bits) - 1)));
}

double value(int code, Grid grid) { return grid.scale * (code - grid.zero); }

Grid find_grid(const std::vector<double>& w, int bits, bool symmetric, double p) {
  double lo = 0.0;
  double hi = 0.0;
  for (const double x : w) {
    lo = std::min(lo, x);
    hi = std::max(hi, x);
  }
  if (symmetric) {
    hi = std::max(-lo, hi);
    lo = -hi;
  }
  if (lo == 0.0 && hi == 0.0) {
    lo = -1.0;
    hi = 1.0;
  }
  lo *= p;
  hi *= p;
  const int levels = (1 << bits) - 1;
  Grid grid;
  grid.scale = std::max(round_to_half((hi - lo) / levels), 0x1p-24);
  grid.zero = symmetric ? 1 << (bits - 1)
                        : static_cast<int>(std::clamp(std::nearbyint(-lo / grid.scale), 0.0,
                                                      static_cast<double>(levels)));
  return grid;
}

std::optional<std::vector<double>> cholesky(std::vector<double> a, std::int64_t d) {
  for (std::int64_t i = 0; i < d; ++i)
    for (std::int64_t j = 0; j <= i; ++j) {
      double sum = a[i * d + j];
      for (std::int64_t k = 0; k < j; ++k) sum -= a[i * d + k] * a[j * d + k];
      if (i == j && !(sum > 0.0)) return std::nullopt;
      a[i * d + j] = i == j ? std::sqrt(sum) : sum / a[j * d + j];
    }
  for (std::int64_t i = 0; i < d; ++i)
    std::fill(a.begin() + i * d + i + 1, a.begin() + (i + 1) * d, 0.0);
  return a;
}

namespace {

// (L Lᵀ)⁻¹.
std::vector<double> inverse_from_cholesky(const std::vector<double>& l, std::int64_t d) {
  std::vector<double> inverse_l(static_cast<std::size_t>(d * d), 0.0);
  for (std::int64_t j = 0; j < d; ++j)
    for (std::int64_t i = j; i < d; ++i) {
      double sum = i == j ? 1.0 : 0.0;
      for (std::int64_t k = j; k < i; ++k) sum -= l[i * d + k] * inverse_l[k * d + j];
      inverse_l[i * d + j] = sum / l[i * d + i];
    }
  std::vector<double> inverse(static_cast<std::size_t>(d * d), 0.0);
  for (std::int64_t k = 0; k < d; ++k)
    for (std::int64_t i = 0; i <= k; ++i)
      for (std::int64_t j = 0; j <= k; ++j)
        inverse[i * d + j] += inverse_l[k * d + i] * inverse_l[k * d + j];
  return inverse;
}

std::int64_t unit_of(std::int64_t group_size) {
  return group_size < 128 ? 128 / group_size * group_size : group_size;
}

// Grids of the groups of the columns [begin, end) of a row.
void set_grids(const double* row, std::int64_t begin, std::int64_t end, std::int64_t group_size,
               int bits, bool symmetric, Grid* grid) {
  for (std::int64_t k = begin; k < end; k += group_size)
    grid[k / group_size] = find_grid({row + k, row + k + group_size}, bits, symmetric);
}

}  // namespace

std::optional<Gptq> gptq(std::vector<double> w, std::int64_t rows, const std::vector<double>& h,
                         std::int64_t d, int bits, bool symmetric, std::int64_t group_size) {
  const auto l = cholesky(h, d);
  if (!l) return std::nullopt;
  const auto lower = cholesky(inverse_from_cholesky(*l, d), d);  // H⁻¹ = Uᵀ U with U = lowerᵀ
  if (!lower) return std::nullopt;
  const auto u = [&](std::int64_t i, std::int64_t j) { return (*lower)[j * d + i]; };
  const std::int64_t groups = d / group_size;
  const std::int64_t unit = unit_of(group_size);
  Gptq result{std::vector<int>(w.size()),
              std::vector<Grid>(static_cast<std::size_t>(rows * groups)),
              std::vector<double>(static_cast<std::size_t>(rows))};
  for (std::int64_t r = 0; r < rows; ++r) {
    double* row = w.data() + r * d;
    Grid* grids = result.grid.data() + r * groups;
    for (std::int64_t k = 0; k < d; ++k) {
      if (k % unit == 0)
        set_grids(row, k, std::min(d, k + unit), group_size, bits, symmetric, grids);
      const Grid grid = grids[k / group_size];
      const int code = nearest_code(row[k], grid, bits);
      const double error = (row[k] - value(code, grid)) / u(k, k);
      result.code[r * d + k] = code;
      result.loss[r] += error * error;
      for (std::int64_t j = k + 1; j < d; ++j) row[j] -= error * u(k, j);
    }
  }
  return result;
}

Gptq gptq_by_factor(const std::vector<double>& w, std::int64_t rows, const std::vector<double>& n,
                    const std::vector<double>& pivot, std::int64_t d, int bits, bool symmetric,
                    std::int64_t group_size, const std::vector<Grid>& static_grid,
                    const std::vector<std::int32_t>& group_of) {
  const std::int64_t groups = d / group_size;
  const std::int64_t unit = unit_of(group_size);
  Gptq result{std::vector<int>(w.size()),
              std::vector<Grid>(static_cast<std::size_t>(rows * groups)),
              std::vector<double>(static_cast<std::size_t>(rows))};
  if (!static_grid.empty()) result.grid = static_grid;
  for (std::int64_t r = 0; r < rows; ++r) {
    std::vector<double> v(w.begin() + r * d, w.begin() + (r + 1) * d);
    for (std::int64_t k = 0; k < d; ++k) {
      if (static_grid.empty() && k % unit == 0) {
        // v counts the errors of earlier columns only; u also lets the columns of the unit follow,
        // as the updated weights do.
        std::vector<double> u = v;
        const std::int64_t end = std::min(d, k + unit);
        for (std::int64_t i = k; i < end; ++i)
          for (std::int64_t j = i + 1; j < end; ++j) u[j] += (w[r * d + i] - u[i]) * n[i * d + j];
        set_grids(u.data(), k, end, group_size, bits, symmetric, result.grid.data() + r * groups);
      }
      const Grid grid =
          result.grid[r * groups + (static_grid.empty() ? k / group_size : group_of[k])];
      const int code = nearest_code(v[k], grid, bits);
      result.code[r * d + k] = code;
      const double q = value(code, grid);
      result.loss[r] += pivot[k] * pivot[k] * (v[k] - q) * (v[k] - q);
      const double error = w[r * d + k] - q;
      for (std::int64_t j = k + 1; j < d; ++j) v[j] += error * n[k * d + j];
    }
  }
  return result;
}

}  // namespace qpipe::reference
