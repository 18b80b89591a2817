#include "kernels/grid.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace qpipe {

namespace {

// Errors are added in 32 interleaved partial sums, then pairwise: the order of a warp.
constexpr std::int64_t lanes = 32;

float storage_scale(float scale) {
  constexpr float smallest = 0x1p-24f;
  const float stored = to_float(to_f16(scale));
  return stored > smallest ? stored : smallest;
}

Grid grid_of_range(float lo, float hi, const GridOptions& options) {
  const float max_code = largest_code(options.bits);
  const float scale = storage_scale((hi - lo) / max_code);
  const float zero = options.symmetric ? static_cast<float>(1 << (options.bits - 1))
                                       : nearest_code(-lo, scale, 0.0f, max_code);
  return {scale, zero};
}

// x^exponent for x ≥ 0 to about 1e-6, 2^-126 or less for 0. Own, so that both backends rank the
// same errors.
[[gnu::always_inline]] inline float power(float x, float exponent) {
  // x = m · 2^e with m in [√½, √2): log2 m = 2/ln2 · (t + t³/3 + t⁵/5 + …), t = (m − 1)/(m + 1).
  const auto bits = std::bit_cast<std::int32_t>(x);
  const std::int32_t e = (bits - 0x3f3504f3) >> 23;
  const auto m = std::bit_cast<float>(bits - e * (1 << 23));
  const float t = (m - 1.0f) / (m + 1.0f);
  const float t2 = t * t;
  float series = 0.32059889f;
  series = series * t2 + 0.41219858f;
  series = series * t2 + 0.57707802f;
  series = series * t2 + 0.96179669f;
  series = series * t2 + 2.8853900f;
  const float y = exponent * (static_cast<float>(e) + series * t);
  // 2^y = 2^i · e^(f ln2), |f| ≤ ½.
  const float i = round_half_even(y);
  const float f = y - i;
  float p = 1.5403530e-4f;
  p = p * f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.0f;
  const std::int32_t shift = std::clamp(static_cast<std::int32_t>(i), -126, 127);
  return std::bit_cast<float>(std::bit_cast<std::int32_t>(p) + shift * (1 << 23));
}

template <bool square, bool weighted>
[[gnu::always_inline]] inline void add_errors(const float* w, const float* weight,
                                              std::int64_t count, Grid grid, float max_code,
                                              float norm, float* partial) {
#pragma omp simd
  for (std::int64_t lane = 0; lane < count; ++lane) {
    const float code = nearest_code(w[lane], grid.scale, grid.zero, max_code);
    const float error = w[lane] - grid.scale * (code - grid.zero);
    const float magnitude = std::fabs(error);
    const float own = square ? magnitude * magnitude : power(magnitude, norm);
    partial[lane] += weighted ? own * weight[lane] : own;
  }
}

template <bool square, bool weighted>
[[gnu::always_inline]] inline void add_all_errors(const float* w, const float* weight,
                                                  std::int64_t count, Grid grid, float max_code,
                                                  float norm, float* partial) {
  for (std::int64_t i = 0; i < count; i += lanes)
    add_errors<square, weighted>(w + i, weight + (weighted ? i : 0), std::min(lanes, count - i),
                                 grid, max_code, norm, partial);
}

QPIPE_SIMD_CLONES float grid_error(const float* w, const float* weight, std::int64_t count,
                                   Grid grid, float max_code, float norm) {
  float partial[lanes] = {};
  if (weight == nullptr && norm == 2.0f)
    add_all_errors<true, false>(w, weight, count, grid, max_code, norm, partial);
  else if (weight == nullptr)
    add_all_errors<false, false>(w, weight, count, grid, max_code, norm, partial);
  else if (norm == 2.0f)
    add_all_errors<true, true>(w, weight, count, grid, max_code, norm, partial);
  else
    add_all_errors<false, true>(w, weight, count, grid, max_code, norm, partial);
  for (std::int64_t half = lanes / 2; half > 0; half /= 2)
    for (std::int64_t lane = 0; lane < half; ++lane) partial[lane] += partial[lane + half];
  return partial[0];
}

}  // namespace

void check_bits(int bits) {
  require(bits == 2 || bits == 3 || bits == 4 || bits == 8,
          "quantization grid: bits must be 2, 3, 4 or 8");
}

Grid find_grid(const float* w, std::int64_t count, const GridOptions& options,
               const float* weight) {
  float lo = 0.0f;
  float hi = 0.0f;
  float poison = 0.0f;  // NaN when some weight is not finite
#pragma omp simd reduction(min : lo) reduction(max : hi) reduction(+ : poison)
  for (std::int64_t i = 0; i < count; ++i) {
    lo = w[i] < lo ? w[i] : lo;
    hi = w[i] > hi ? w[i] : hi;
    poison += w[i] * 0.0f;
  }
  if (options.symmetric) {
    hi = -lo > hi ? -lo : hi;
    lo = -hi;
  }
  if (lo == 0.0f && hi == 0.0f) {
    lo = -1.0f;
    hi = 1.0f;
  }
  Grid best = grid_of_range(lo, hi, options);
  if (options.mse_norm <= 0.0f || std::isnan(poison)) return {best.scale + poison, best.zero};

  constexpr int steps = 80;
  const float max_code = largest_code(options.bits);
  float best_error = std::numeric_limits<float>::infinity();
  const float first = weight != nullptr && options.symmetric ? 1.1f : 1.0f;
  for (int i = 0; i < steps; ++i) {
    const float p = first - static_cast<float>(i) / 100.0f;
    const Grid candidate = grid_of_range(p * lo, p * hi, options);
    const float error = grid_error(w, weight, count, candidate, max_code, options.mse_norm);
    if (error < best_error) {
      best_error = error;
      best = candidate;
    }
  }
  return best;
}

}  // namespace qpipe
