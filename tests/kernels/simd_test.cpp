#include "kernels/simd.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace qpipe {

namespace {

// Distance in units of the last place of the correctly rounded result; multiples of 2^-149 among
// subnormals.
double ulp_error(float x) {
  const double exact = std::exp(static_cast<double>(x));
  int exponent = 0;
  std::frexp(exact, &exponent);
  const double ulp = std::ldexp(1.0, std::max(exponent - 24, -149));
  return std::abs(static_cast<double>(simd_exp(x)) - exact) / ulp;
}

TEST(SimdExp, IsWithinTwoUlp) {
  double worst = 0.0;
  // Bit patterns of both signs up to 88.72 and −104, every 61st.
  for (std::uint32_t bits = 0; bits < std::bit_cast<std::uint32_t>(88.72f); bits += 61)
    worst = std::max(worst, ulp_error(std::bit_cast<float>(bits)));
  for (std::uint32_t bits = 0; bits < std::bit_cast<std::uint32_t>(104.0f); bits += 61)
    worst = std::max(worst, ulp_error(-std::bit_cast<float>(bits)));
  EXPECT_LE(worst, 2.0);
  EXPECT_GT(worst, 0.4);  // the measure itself works: rounding alone costs half
}

TEST(SimdExp, Limits) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(simd_exp(0.0f), 1.0f);
  EXPECT_EQ(simd_exp(-0.0f), 1.0f);
  EXPECT_EQ(simd_exp(88.73f), infinity);
  EXPECT_EQ(simd_exp(1e30f), infinity);
  EXPECT_EQ(simd_exp(infinity), infinity);
  EXPECT_EQ(simd_exp(-104.0f), 0.0f);
  EXPECT_EQ(simd_exp(-1e30f), 0.0f);
  EXPECT_EQ(simd_exp(-infinity), 0.0f);
  EXPECT_TRUE(std::isnan(simd_exp(std::numeric_limits<float>::quiet_NaN())));
}

}  // namespace

}  // namespace qpipe
