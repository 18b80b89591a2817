// Vector loops of the CPU kernels.
#pragma once

#include <bit>
#include <cstdint>

// A leaf function compiled for AVX-512, AVX2 and the baseline, chosen when the program starts.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define QPIPE_SIMD_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define QPIPE_SIMD_CLONES
#endif

namespace qpipe {

// e^x within 2 ulp; infinity from 88.7228 on, subnormal results rounded, 0 below −103.98, NaN for
// NaN. Sums, products and integer shifts only, so that a loop over it becomes vector code with the
// same bits. x = n ln 2 + r, |r| ≤ ln 2 / 2;  e^x = 2^n (1 + r + r² P(r)), P of Cephes' expf.
[[gnu::always_inline]] inline float simd_exp(float x) {
  x = x < -104.0f ? -104.0f : x;
  x = x > 89.0f ? 89.0f : x;
  constexpr float shift = 0x1.8p23f;  // leaves no room for a fraction: rounds half to even
  const float shifted = x * 1.44269504088896341f + shift;
  const std::int32_t n = static_cast<std::int32_t>(std::bit_cast<std::uint32_t>(shifted) -
                                                   std::bit_cast<std::uint32_t>(shift));
  const float whole = shifted - shift;
  const float r =
      (x - whole * 0.693359375f) - whole * -2.12194440e-4f;  // the first product is exact
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * (r * r) + r) + 1.0f;
  // 2^n in two factors: n runs from −150 to 128, beyond the exponents of normal numbers.
  const std::int32_t half = n >> 1;
  const float factor = std::bit_cast<float>(static_cast<std::uint32_t>(half + 127) << 23);
  const float other = std::bit_cast<float>(static_cast<std::uint32_t>(n - half + 127) << 23);
  return (p * factor) * other;
}

}  // namespace qpipe
