// float16 in vector loops of the CPU kernels: the values of to_float and to_f16 (dtype.h), without
// branches.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/dtype.h"

namespace qpipe {

[[gnu::always_inline]] inline float simd_to_float(float x) { return x; }

[[gnu::always_inline]] inline float simd_to_float(bf16 x) { return to_float(x); }

// Exponent and mantissa moved to float's places are too small by 2^112; the product is exact, for
// subnormals too.
[[gnu::always_inline]] inline float simd_to_float(f16 x) {
  const std::uint32_t magnitude = x.bits & 0x7fffu;
  const auto scaled =
      std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude << 13) * 0x1p112f);
  const std::uint32_t special = magnitude >= 0x7c00u ? 0x7f800000u : 0u;  // infinity and NaN
  return std::bit_cast<float>(scaled | special | (std::uint32_t{x.bits} & 0x8000u) << 16);
}

// x rounded to float16 (half to even), as a float.
[[gnu::always_inline]] inline float simd_round_to_half(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  const float a = std::bit_cast<float>(magnitude);
  const std::uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u)) & ~0x1fffu;
  const auto subnormal =
      std::bit_cast<std::uint32_t>((a + 0.5f) - 0.5f);  // the floats next to 0.5 are 2^-24 apart
  std::uint32_t rounded = magnitude < 0x38800000u ? subnormal : normal;
  rounded = magnitude >= 0x477ff000u ? 0x7f800000u : rounded;  // 65520 and more
  rounded = magnitude > 0x7f800000u ? magnitude : rounded;
  return std::bit_cast<float>(rounded | (bits & 0x80000000u));
}

// x rounded to float16 (half to even).
[[gnu::always_inline]] inline f16 simd_to_f16(float x) {
  const auto rounded = std::bit_cast<std::uint32_t>(simd_round_to_half(x));
  const std::uint32_t magnitude = rounded & 0x7fffffffu;
  const auto subnormal = static_cast<std::uint32_t>(
      static_cast<std::int32_t>(std::bit_cast<float>(magnitude & 0x3fffffffu) * 0x1p24f));
  std::uint32_t half = magnitude < 0x38800000u ? subnormal : (magnitude - 0x38000000u) >> 13;
  half = magnitude >= 0x7f800000u ? 0x7c00u : half;
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  return {static_cast<std::uint16_t>(half | (rounded >> 16 & 0x8000u))};
}

}  // namespace qpipe
