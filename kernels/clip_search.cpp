#include "kernels/clip_search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/grid.h"

namespace qpipe {

namespace {

// δ H δᵀ over one group.
QPIPE_SIMD_CLONES float group_error(const float* delta, Matrix<const float> h, std::int64_t count) {
  float error = 0.0f;
  for (std::int64_t i = 0; i < count; ++i) {
    const float* row = h.row(i);
    float product = 0.0f;
#pragma omp simd reduction(+ : product)
    for (std::int64_t j = 0; j < count; ++j) product += row[j] * delta[j];
    error += delta[i] * product;
  }
  return error;
}

float best_limit(const float* w, Matrix<const float> h, std::int64_t count,
                 const GridOptions& options, std::vector<float>& clipped,
                 std::vector<float>& delta) {
  const float max_code = largest_code(options.bits);
  float largest = 0.0f;
  for (std::int64_t i = 0; i < count; ++i) largest = std::max(largest, std::fabs(w[i]));
  float best = largest;
  float best_error = std::numeric_limits<float>::infinity();
  for (int step = 0; step < clip_steps; ++step) {
    const float limit = largest * (1.0f - static_cast<float>(step) / 20.0f);
    for (std::int64_t i = 0; i < count; ++i)
      clipped[static_cast<std::size_t>(i)] = std::clamp(w[i], -limit, limit);
    const Grid grid = find_grid(clipped.data(), count, options);
    for (std::int64_t i = 0; i < count; ++i) {
      const auto k = static_cast<std::size_t>(i);
      delta[k] =
          grid.scale * (nearest_code(clipped[k], grid.scale, grid.zero, max_code) - grid.zero) -
          w[i];
    }
    const float error = group_error(delta.data(), h, count);
    if (error < best_error) {
      best_error = error;
      best = limit;
    }
  }
  return best;
}

}  // namespace

void search_clip(Matrix<const float> w, Matrix<const float> h, std::int64_t group_size,
                 const GridOptions& grid, Matrix<float> limit, Stream& stream) {
  check_bits(grid.bits);
  require(grid.mse_norm == 0.0f, "search_clip: no search of the grid here");
  require(group_size > 0 && w.cols % group_size == 0,
          "search_clip: group_size must divide the number of columns");
  require(group_size <= largest_clip_group, "search_clip: group_size must be at most 128");
  require(h.rows == w.cols && h.cols == w.cols, "search_clip: h must be [d, d]");
  const std::int64_t groups = w.cols / group_size;
  require(limit.rows == w.rows && limit.cols == groups,
          "search_clip: limit must be [rows, groups]");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::search_clip(w, h, group_size, grid, limit, stream);
#pragma omp parallel
  {
    std::vector<float> clipped(static_cast<std::size_t>(group_size));
    std::vector<float> delta(static_cast<std::size_t>(group_size));
#pragma omp for schedule(static)
    for (std::int64_t r = 0; r < w.rows; ++r)
      for (std::int64_t g = 0; g < groups; ++g) {
        const std::int64_t begin = g * group_size;
        const Matrix<const float> block(h.row(begin) + begin, group_size, group_size, h.stride);
        limit(r, g) = best_limit(w.row(r) + begin, block, group_size, grid, clipped, delta);
      }
  }
}

void clamp_groups(Matrix<float> w, Matrix<const float> limit, Stream& stream) {
  require(limit.rows == w.rows && limit.cols > 0 && w.cols % limit.cols == 0,
          "clamp_groups: limit must be [rows, groups]");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::clamp_groups(w, limit, stream);
  const std::int64_t group_size = w.cols / limit.cols;
#pragma omp parallel for schedule(static)
  for (std::int64_t r = 0; r < w.rows; ++r)
    for (std::int64_t c = 0; c < w.cols; ++c)
      w(r, c) = std::clamp(w(r, c), -limit(r, c / group_size), limit(r, c / group_size));
}

}  // namespace qpipe
