// Arithmetic of one quantization grid on the host: shared by quantize_groups.cpp and
// gptq_sweep.cpp. grid_cuda.h is the same on the device, operation by operation, so that both
// backends choose the same codes for the same weights.
#pragma once

#include "kernels/quantize_groups.h"
#include "kernels/simd.h"

namespace qpipe {

struct Grid {
  float scale = 1.0f;
  float zero = 0.0f;  // an integer
};

constexpr float largest_code(int bits) { return static_cast<float>((1 << bits) - 1); }

// Half to even, for |x| ≤ 2^22: adding 1.5 · 2^23 leaves no room for a fraction. Unlike rint, it
// vectorises on every CPU.
inline float round_half_even(float x) {
  constexpr float shift = 0x1.8p23f;
  return (x + shift) - shift;
}

// clamp(rne(w / scale) + zero, 0, max_code); 0 for NaN. Clamped before rounding: the bounds are
// integers, so the order does not matter, and without constants the compiler makes it a vector
// loop.
inline float nearest_code(float w, float scale, float zero, float max_code) {
  const float lowest = -zero;
  const float highest = max_code - zero;
  float quotient = w / scale;
  quotient = quotient > lowest ? quotient : lowest;
  quotient = quotient < highest ? quotient : highest;
  return round_half_even(quotient) + zero;
}

// The grid of `count` weights (quantize_groups.h). weight: of each in the search, or null: ones.
Grid find_grid(const float* w, std::int64_t count, const GridOptions& options,
               const float* weight = nullptr);

// Throws std::invalid_argument unless bits is 2, 3, 4 or 8.
void check_bits(int bits);

}  // namespace qpipe
