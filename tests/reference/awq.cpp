#include "tests/reference/awq.h"

#include <algorithm>
#include <cmath>

#include "tests/reference/gptq.h"

namespace qpipe::reference {

std::vector<double> round_group(const std::vector<double>& w, int bits, bool symmetric) {
  const Grid grid = find_grid(w, bits, symmetric);
  std::vector<double> result;
  for (const double x : w) result.push_back(value(nearest_code(x, grid, bits), grid));
  return result;
}

double clipped_error(const std::vector<double>& w, double limit, const std::vector<double>& h,
                     int bits, bool symmetric) {
  std::vector<double> delta = w;
  for (double& x : delta) x = std::clamp(x, -limit, limit);
  delta = round_group(delta, bits, symmetric);
  for (std::size_t i = 0; i < w.size(); ++i) delta[i] -= w[i];
  return gram_loss(delta, h, static_cast<std::int64_t>(w.size()));
}

std::vector<double> relative_magnitude(const std::vector<double>& w, std::int64_t d,
                                       std::int64_t group_size) {
  std::vector<double> sum(static_cast<std::size_t>(d), 0.0);
  for (std::size_t begin = 0; begin < w.size(); begin += static_cast<std::size_t>(group_size)) {
    double largest = 0.0;
    for (std::int64_t i = 0; i < group_size; ++i)
      largest = std::max(largest, std::abs(w[begin + static_cast<std::size_t>(i)]));
    for (std::int64_t i = 0; i < group_size; ++i) {
      const std::size_t at = begin + static_cast<std::size_t>(i);
      sum[at % static_cast<std::size_t>(d)] += std::abs(w[at]) / (largest + 1e-6);
    }
  }
  return sum;
}

double gram_loss(const std::vector<double>& delta, const std::vector<double>& h, std::int64_t d) {
  double loss = 0.0;
  for (std::size_t begin = 0; begin < delta.size(); begin += static_cast<std::size_t>(d))
    for (std::int64_t i = 0; i < d; ++i)
      for (std::int64_t j = 0; j < d; ++j)
        loss += delta[begin + static_cast<std::size_t>(i)] *
                h[static_cast<std::size_t>(i * d + j)] * delta[begin + static_cast<std::size_t>(j)];
  return loss;
}

}  // namespace qpipe::reference
