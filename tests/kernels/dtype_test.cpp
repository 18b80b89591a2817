// Host conversions of the 16-bit types on every code, and convert() on the device against them.
#include "kernels/dtype.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/activation.h"
#include "tests/kernels/backends.h"

namespace qpipe {

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

// The value of a code from its fields: sign, exponent (bias 2^(e−1) − 1), mantissa.
double decode(std::uint32_t code, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const auto mantissa = static_cast<int>(code & ((1u << mantissa_bits) - 1));
  const auto exponent = static_cast<int>((code >> mantissa_bits) & ((1u << exponent_bits) - 1));
  const double sign = (code >> 15) != 0 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1)
    return mantissa == 0 ? sign * infinity : std::numeric_limits<double>::quiet_NaN();
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
}

double decode(bf16 x) { return decode(x.bits, 8, 7); }
double decode(f16 x) { return decode(x.bits, 5, 10); }

template <class Half>
Half round_to(float x) {
  if constexpr (std::is_same_v<Half, bf16>)
    return to_bf16(x);
  else
    return to_f16(x);
}

template <class Half>
class HalfTest : public testing::Test {};
using Halves = testing::Types<bf16, f16>;
TYPED_TEST_SUITE(HalfTest, Halves);

TYPED_TEST(HalfTest, EveryCodeDecodesAndRoundTrips) {
  for (std::uint32_t code = 0; code < 65536; ++code) {
    const TypeParam half{static_cast<std::uint16_t>(code)};
    const double exact = decode(half);
    const float value = to_float(half);
    if (std::isnan(exact)) {
      ASSERT_TRUE(std::isnan(value)) << code;
      ASSERT_TRUE(std::isnan(to_float(round_to<TypeParam>(value)))) << code;
    } else {
      ASSERT_EQ(static_cast<double>(value), exact) << code;
      ASSERT_EQ(std::signbit(value), code >= 32768) << code;
      ASSERT_EQ(round_to<TypeParam>(value).bits, code) << code;
    }
  }
}

// Between neighbours a < b the midpoint goes to the even code, the floats beside it to the nearer
// one. Both signs.
TYPED_TEST(HalfTest, RoundsHalfToEvenBetweenAllNeighbours) {
  for (std::uint32_t code = 0; code < 32768; ++code) {
    const TypeParam low{static_cast<std::uint16_t>(code)};
    const TypeParam high{static_cast<std::uint16_t>(code + 1)};
    if (!std::isfinite(decode(low))) break;
    // The neighbour of the largest number is what infinity would be with one exponent more.
    const double top =
        std::isfinite(decode(high))
            ? decode(high)
            : 2.0 * decode(low) - decode(TypeParam{static_cast<std::uint16_t>(code - 1)});
    const double middle = 0.5 * (decode(low) + top);
    const auto mid = static_cast<float>(middle);
    ASSERT_EQ(static_cast<double>(mid), middle);
    for (const std::uint32_t sign : {0u, 0x8000u}) {
      const float factor = sign != 0 ? -1.0f : 1.0f;
      const std::uint32_t even = (code % 2 == 0 ? code : code + 1) | sign;
      ASSERT_EQ(round_to<TypeParam>(factor * mid).bits, even) << code;
      ASSERT_EQ(round_to<TypeParam>(factor * std::nextafter(mid, 0.0f)).bits, code | sign) << code;
      ASSERT_EQ(round_to<TypeParam>(factor * std::nextafter(mid, infinity)).bits, (code + 1) | sign)
          << code;
    }
  }
}

TYPED_TEST(HalfTest, Extremes) {
  for (const float sign : {1.0f, -1.0f}) {
    EXPECT_EQ(to_float(round_to<TypeParam>(sign * infinity)), sign * infinity);
    EXPECT_EQ(to_float(round_to<TypeParam>(sign * std::numeric_limits<float>::max())),
              sign * infinity);
    const float smallest =
        to_float(round_to<TypeParam>(sign * std::numeric_limits<float>::denorm_min()));
    EXPECT_EQ(smallest, 0.0f);
    EXPECT_EQ(std::signbit(smallest), sign < 0.0f);
  }
  // A NaN whose payload lies in the low bits only must not become infinity.
  EXPECT_TRUE(std::isnan(to_float(round_to<TypeParam>(std::bit_cast<float>(0x7f800001u)))));
  EXPECT_TRUE(std::isnan(to_float(round_to<TypeParam>(std::bit_cast<float>(0xffffffffu)))));
}

TEST(DType, SizesAndNames) {
  EXPECT_EQ(size_of(DType::bf16), 2u);
  EXPECT_EQ(size_of(DType::f64), 8u);
  EXPECT_EQ(size_of(DType::i32), 4u);
  EXPECT_EQ(size_of(DType::u8), 1u);
  EXPECT_EQ(name_of(DType::bf16), "BF16");
  EXPECT_EQ(name_of(DType::f8_e4m3), "F8_E4M3");
}

class ConvertTest : public BackendTest {
 protected:
  // Matrices with a stride wider than their columns, poisoned with 0xff bytes (NaN in all three
  // types).
  template <class From, class To>
  std::vector<To> run(const std::vector<From>& from, std::int64_t rows, std::int64_t cols) {
    const std::int64_t wide_from = cols + 3;
    const std::int64_t wide_to = cols + 5;
    std::vector<From> from_wide(static_cast<std::size_t>(rows * wide_from));
    std::fill_n(reinterpret_cast<unsigned char*>(from_wide.data()), from_wide.size() * sizeof(From),
                std::uint8_t{0xff});
    std::vector<To> to_wide(static_cast<std::size_t>(rows * wide_to));
    std::fill_n(reinterpret_cast<unsigned char*>(to_wide.data()), to_wide.size() * sizeof(To),
                std::uint8_t{0xff});
    for (std::int64_t r = 0; r < rows; ++r)
      std::copy_n(from.begin() + r * cols, cols, from_wide.begin() + r * wide_from + 1);
    const auto source = upload_as<From>(from_wide, rows, wide_from);
    const auto target = upload_as<To>(to_wide, rows, wide_to);
    convert(source.view.col_range(1, cols), target.view.col_range(2, cols), stream);
    to_wide = download_as<To>(target.view);
    std::vector<To> to;
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < wide_to; ++c) {
        const To value = to_wide[static_cast<std::size_t>(r * wide_to + c)];
        if (c >= 2 && c < 2 + cols)
          to.push_back(value);
        else
          EXPECT_TRUE(std::isnan(to_float(value)))
              << "outside of the output, row " << r << ", column " << c;
      }
    return to;
  }

  template <class Half>
  static std::vector<Half> all_codes() {
    std::vector<Half> codes;
    for (std::uint32_t code = 0; code < 65536; ++code)
      codes.push_back({static_cast<std::uint16_t>(code)});
    return codes;
  }

  // Every code of both types, their midpoints and the floats beside them, both signs.
  static std::vector<float> rounding_cases() {
    std::vector<float> values{infinity,
                              -infinity,
                              std::numeric_limits<float>::max(),
                              std::numeric_limits<float>::denorm_min(),
                              65519.99f,
                              65520.0f};
    for (std::uint32_t code = 0; code < 32767; ++code)
      for (const auto& [low, high] :
           {std::pair{to_float(f16{static_cast<std::uint16_t>(code)}),
                      to_float(f16{static_cast<std::uint16_t>(code + 1)})},
            std::pair{to_float(bf16{static_cast<std::uint16_t>(code)}),
                      to_float(bf16{static_cast<std::uint16_t>(code + 1)})}}) {
        if (!std::isfinite(low) || !std::isfinite(high)) continue;
        const float mid = low + 0.5f * (high - low);
        for (const float value :
             {low, mid, std::nextafter(mid, 0.0f), std::nextafter(mid, infinity)}) {
          values.push_back(value);
          values.push_back(-value);
        }
      }
    return values;
  }

  template <class Half>
  void check_rounding() {
    const auto values = rounding_cases();
    const auto got = run<float, Half>(values, 1, static_cast<std::int64_t>(values.size()));
    for (std::size_t i = 0; i < values.size(); ++i)
      ASSERT_EQ(got[i].bits, round_to<Half>(values[i]).bits) << values[i];
  }

  template <class Half>
  void check_widening() {
    const auto codes = all_codes<Half>();
    const auto got = run<Half, float>(codes, 256, 256);
    for (std::size_t i = 0; i < codes.size(); ++i) {
      const float want = to_float(codes[i]);
      if (std::isnan(want))
        ASSERT_TRUE(std::isnan(got[i])) << i;
      else
        ASSERT_EQ(std::bit_cast<std::uint32_t>(got[i]), std::bit_cast<std::uint32_t>(want)) << i;
    }
  }

  template <class From, class To>
  void check_crossing() {
    const auto codes = all_codes<From>();
    const auto got = run<From, To>(codes, 4096, 16);
    for (std::size_t i = 0; i < codes.size(); ++i) {
      if (std::isnan(to_float(codes[i])))
        ASSERT_TRUE(std::isnan(to_float(got[i]))) << i;
      else
        ASSERT_EQ(got[i].bits, round_to<To>(to_float(codes[i])).bits) << i;
    }
  }
};

TEST_P(ConvertTest, WidensEveryCode) {
  check_widening<f16>();
  check_widening<bf16>();
}

TEST_P(ConvertTest, RoundsHalfToEven) {
  check_rounding<f16>();
  check_rounding<bf16>();
}

TEST_P(ConvertTest, CrossesBetweenTheHalves) {
  check_crossing<f16, bf16>();
  check_crossing<bf16, f16>();
  check_crossing<f16, f16>();
  check_crossing<bf16, bf16>();
}

TEST_P(ConvertTest, CopiesFloat32AndRaggedShapes) {
  for (const std::int64_t cols : {1, 2, 3, 7, 8, 255, 1025}) {
    const auto values = random_normal(3 * cols, 1, 100.0f);
    EXPECT_EQ((run<float, float>(values, 3, cols)), values);
    const auto halves = run<float, bf16>(values, 3, cols);
    for (std::size_t i = 0; i < values.size(); ++i)
      ASSERT_EQ(halves[i].bits, to_bf16(values[i]).bits);
  }
}

TEST_P(ConvertTest, RefusesInconsistentArguments) {
  const Array<float> a(4, 8, stream), tall(5, 8, stream);
  const Array<std::int32_t> integers(4, 8, stream);
  EXPECT_THROW(convert(a.view, tall.view, stream), std::invalid_argument);
  EXPECT_THROW(convert(a.view, integers.view, stream), std::invalid_argument);
  EXPECT_THROW(convert(integers.view, a.view, stream), std::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(Backends, ConvertTest, testing::ValuesIn(backends()), backend_name);

}  // namespace

}  // namespace qpipe
