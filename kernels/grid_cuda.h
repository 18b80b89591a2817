// Arithmetic of one quantization grid on the device: the operations of grid.h and grid.cpp in the
// same order, with explicit rounding so that nothing is contracted to a fused multiply-add.
// Included by .cu files only.
#pragma once

#include "kernels/cuda_handles.h"
#include "kernels/quantize_groups.h"

namespace qpipe::cuda {

struct DeviceGrid {
  float scale;
  float zero;
};

inline __device__ float device_largest_code(int bits) {
  return static_cast<float>((1 << bits) - 1);
}

inline __device__ float device_nearest_code(float w, float scale, float zero, float max_code) {
  const float lowest = -zero;
  const float highest = max_code - zero;
  float quotient = __fdiv_rn(w, scale);
  quotient = quotient > lowest ? quotient : lowest;
  quotient = quotient < highest ? quotient : highest;
  return rintf(quotient) + zero;
}

inline __device__ float device_value(float code, float scale, float zero) {
  return __fmul_rn(scale, code - zero);
}

inline __device__ DeviceGrid grid_of_range(float lo, float hi, const GridOptions& options) {
  const float max_code = device_largest_code(options.bits);
  const float stored = __half2float(__float2half_rn(__fdiv_rn(__fsub_rn(hi, lo), max_code)));
  const float scale = stored > 0x1p-24f ? stored : 0x1p-24f;
  const float zero = options.symmetric ? static_cast<float>(1 << (options.bits - 1))
                                       : device_nearest_code(-lo, scale, 0.0f, max_code);
  return {scale, zero};
}

// lo = min(w, 0) and hi = max(w, 0) of a group → the range that its grid covers.
inline __device__ void complete_range(float& lo, float& hi, const GridOptions& options) {
  if (options.symmetric) {
    hi = -lo > hi ? -lo : hi;
    lo = -hi;
  }
  if (lo == 0.0f && hi == 0.0f) {
    lo = -1.0f;
    hi = 1.0f;
  }
}

inline __device__ float shrink_factor(float first, int step) {
  return __fsub_rn(first, __fdiv_rn(static_cast<float>(step), 100.0f));
}
inline constexpr int shrink_steps = 80;

// weighted: the search has weights.
inline __device__ DeviceGrid shrunk_grid(float lo, float hi, int step, const GridOptions& options,
                                         bool weighted) {
  const float p = shrink_factor(weighted && options.symmetric ? 1.1f : 1.0f, step);
  return grid_of_range(__fmul_rn(p, lo), __fmul_rn(p, hi), options);
}

// x^exponent for x ≥ 0 (grid.cpp, power).
inline __device__ float device_power(float x, float exponent) {
  const int bits = __float_as_int(x);
  const int e = (bits - 0x3f3504f3) >> 23;
  const float m = __int_as_float(bits - e * (1 << 23));
  const float t = __fdiv_rn(__fsub_rn(m, 1.0f), __fadd_rn(m, 1.0f));
  const float t2 = __fmul_rn(t, t);
  float series = 0.32059889f;
  series = __fadd_rn(__fmul_rn(series, t2), 0.41219858f);
  series = __fadd_rn(__fmul_rn(series, t2), 0.57707802f);
  series = __fadd_rn(__fmul_rn(series, t2), 0.96179669f);
  series = __fadd_rn(__fmul_rn(series, t2), 2.8853900f);
  const float y = __fmul_rn(exponent, __fadd_rn(static_cast<float>(e), __fmul_rn(series, t)));
  const float i = rintf(y);
  const float f = __fsub_rn(y, i);
  float p = 1.5403530e-4f;
  p = __fadd_rn(__fmul_rn(p, f), 1.3333558e-3f);
  p = __fadd_rn(__fmul_rn(p, f), 9.6181291e-3f);
  p = __fadd_rn(__fmul_rn(p, f), 5.5504109e-2f);
  p = __fadd_rn(__fmul_rn(p, f), 2.4022651e-1f);
  p = __fadd_rn(__fmul_rn(p, f), 6.9314718e-1f);
  p = __fadd_rn(__fmul_rn(p, f), 1.0f);
  const int shift = min(max(static_cast<int>(i), -126), 127);
  return __int_as_float(__float_as_int(p) + shift * (1 << 23));
}

// |w − Q(w)|^norm.
inline __device__ float grid_error(float w, DeviceGrid grid, float max_code, float norm) {
  const float code = device_nearest_code(w, grid.scale, grid.zero, max_code);
  const float magnitude = fabsf(__fsub_rn(w, device_value(code, grid.scale, grid.zero)));
  return norm == 2.0f ? __fmul_rn(magnitude, magnitude) : device_power(magnitude, norm);
}

}  // namespace qpipe::cuda
