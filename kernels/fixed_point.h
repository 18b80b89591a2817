// Units of the exact sums over calibration tokens (kernels/hessian.h): u_ij = 2^(e_i + f_j +
// log2_tokens − 62), where 2^e_i and 2^f_j bound the factors of all tokens.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace qpipe {

constexpr int unit_exponent(std::int32_t e, std::int32_t f, int log2_tokens) {
  return e + f + log2_tokens - 62;
}

// 2^exponent, exact. |exponent| ≤ 360 here: 2 · 148 + 62 at most.
constexpr double power_of_two(int exponent) {
  return std::bit_cast<double>(static_cast<std::uint64_t>(1023 + exponent) << 52);
}

inline std::int64_t in_units(float value, int unit) {
  return std::llrint(static_cast<double>(value) * power_of_two(-unit));
}

// The mean over tokens.
inline float from_units(std::int64_t sum, int unit, std::int64_t tokens) {
  return static_cast<float>(static_cast<double>(sum) * power_of_two(unit) /
                            static_cast<double>(tokens));
}

}  // namespace qpipe
