// kernels/fixed_point.h in kernels.
#pragma once

#include <cstdint>

namespace qpipe::cuda {

__device__ inline double power_of_two(int exponent) {
  return __longlong_as_double(static_cast<long long>(1023 + exponent) << 52);
}

__device__ inline int unit_exponent(std::int32_t e, std::int32_t f, int log2_tokens) {
  return e + f + log2_tokens - 62;
}

__device__ inline std::int64_t in_units(float value, int unit) {
  return __double2ll_rn(static_cast<double>(value) * power_of_two(-unit));
}

__device__ inline float from_units(std::int64_t sum, int unit, double tokens) {
  return static_cast<float>(static_cast<double>(sum) * power_of_two(unit) / tokens);
}

}  // namespace qpipe::cuda
