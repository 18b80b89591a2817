#include "kernels/int8_rows.h"

#include <bit>
#include <cmath>
#include <limits>
#include <span>

#include "kernels/simd_half.h"
#include "tests/golden/bnb_golden.h"
#include "tests/kernels/backends.h"

namespace qpipe {
namespace {

template <class T>
T narrowed(float value) {
  if constexpr (std::is_same_v<T, float>)
    return value;
  else if constexpr (std::is_same_v<T, bf16>)
    return to_bf16(value);
  else
    return to_f16(value);
}

class Int8RowsTest : public BackendTest {
 protected:
  struct Rows {
    std::vector<std::int8_t> code;
    std::vector<float> scb;
  };
  template <class T>
  Rows quantize(const std::vector<T>& w, std::int64_t rows, std::int64_t cols) {
    const auto on_device = upload_as(w, rows, cols);
    const Array<float> scb(1, rows, stream);
    const Array<std::int8_t> code(rows, cols, stream);
    quantize_int8_rows(on_device.view, scb, code, stream);
    return {download_as(code.view), download_as(scb.view)};
  }
  template <class T>
  std::vector<T> dequantize(const Rows& q, std::int64_t rows, std::int64_t cols) {
    const auto code = upload_as(q.code, rows, cols);
    const auto scb = upload_as(q.scb, 1, rows);
    const Array<T> w(rows, cols, stream);
    dequantize_int8_rows(code, scb, w.view, stream);
    return download_as(w.view);
  }

  template <class T, class Bits>
  void expect_golden(std::span<const std::uint8_t> code, std::span<const std::uint32_t> scb,
                     std::span<const Bits> value) {
    std::vector<T> w;
    for (const std::uint32_t bits : golden::rows)
      w.push_back(narrowed<T>(std::bit_cast<float>(bits)));
    const Rows q = quantize(w, 6, 40);
    const auto back = dequantize<T>(q, 6, 40);
    for (std::size_t i = 0; i < scb.size(); ++i)
      ASSERT_EQ(std::bit_cast<std::uint32_t>(q.scb[i]), scb[i]) << "row " << i;
    for (std::size_t i = 0; i < code.size(); ++i) {
      ASSERT_EQ(static_cast<std::uint8_t>(q.code[i]), code[i]) << i;
      ASSERT_EQ(std::bit_cast<Bits>(back[i]), value[i]) << i;
    }
  }
};

TEST_P(Int8RowsTest, BytesOfBitsandbytes) {
  expect_golden<float, std::uint32_t>(golden::int8_code_f32, golden::int8_scb_f32,
                                      golden::int8_value_f32);
  expect_golden<bf16, std::uint16_t>(golden::int8_code_bf16, golden::int8_scb_bf16,
                                     golden::int8_value_bf16);
  expect_golden<f16, std::uint16_t>(golden::int8_code_f16, golden::int8_scb_f16,
                                    golden::int8_value_f16);
}

TEST_P(Int8RowsTest, NearestCode) {
  for (const std::int64_t cols : {1, 7, 8, 64, 200, 4096, 5000}) {
    const std::int64_t rows = 5;
    const auto w = random_normal(rows * cols, static_cast<unsigned>(cols), 0.05f);
    const Rows q = quantize(w, rows, cols);
    const auto back = dequantize<float>(q, rows, cols);
    for (std::int64_t n = 0; n < rows; ++n) {
      double largest = 0.0;
      for (std::int64_t k = 0; k < cols; ++k)
        largest = std::max(largest, std::fabs(double{to_float(to_f16(w[n * cols + k]))}));
      ASSERT_EQ(q.scb[n], largest);
      for (std::int64_t k = 0; k < cols; ++k) {
        const double v = to_float(to_f16(w[n * cols + k]));
        // Half a step, and the three roundings of v · (127 · (1/scb)).
        ASSERT_LE(std::fabs(v * 127.0 / largest - q.code[n * cols + k]), 0.5 + 127 * 3 * 0x1p-24);
        // Three roundings, that of 1/127 included.
        ASSERT_NEAR(back[n * cols + k], q.code[n * cols + k] * largest / 127.0,
                    largest * 3 * 0x1p-24);
      }
    }
  }
}

TEST_P(Int8RowsTest, RowsThatCannotBeScaled) {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  const Rows q = quantize<float>({0, -0.0f, 65520, 1, nan, 2, 65519, 1}, 4, 2);
  EXPECT_EQ(q.scb[0], 0.0f);
  EXPECT_TRUE(std::isinf(q.scb[1]));  // beyond float16
  EXPECT_TRUE(std::isnan(q.scb[2]));
  EXPECT_EQ(q.scb[3], 65504.0f);
  EXPECT_EQ(q.code, (std::vector<std::int8_t>{0, 0, 0, 0, 0, 0, 127, 0}));
}

TEST_P(Int8RowsTest, RowsWithAStride) {
  const auto w = random_normal(6 * 48, 9);
  const auto on_device = upload_as(w, 6, 48);
  const Array<float> scb(1, 6, stream);
  const Array<std::int8_t> code(6, 40, stream);
  quantize_int8_rows(on_device.view.col_range(3, 40), scb, code, stream);
  std::vector<float> part;
  for (int n = 0; n < 6; ++n)
    part.insert(part.end(), w.begin() + n * 48 + 3, w.begin() + n * 48 + 43);
  const Rows expected = quantize(part, 6, 40);
  EXPECT_EQ(download_as(code.view), expected.code);
  EXPECT_EQ(download_as(scb.view), expected.scb);
}

TEST_P(Int8RowsTest, RefusesOtherShapes) {
  const Array<float> w(4, 8, stream);
  const Array<float> scb(1, 3, stream);
  const Array<std::int8_t> code(4, 8, stream);
  EXPECT_THROW(quantize_int8_rows(w.view, scb, code, stream), std::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(Backends, Int8RowsTest, testing::ValuesIn(backends()), backend_name);

TEST(SimdHalf, EveryHalf) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const f16 half{static_cast<std::uint16_t>(bits)};
    const float value = to_float(half);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(simd_to_float(half)));
      EXPECT_TRUE(std::isnan(simd_round_to_half(value)));
      continue;
    }
    ASSERT_EQ(std::bit_cast<std::uint32_t>(simd_to_float(half)),
              std::bit_cast<std::uint32_t>(value))
        << bits;
  }
}

TEST(SimdHalf, RoundsAsTheConversion) {
  for (std::uint32_t high = 0; high < 0x10000; ++high)
    for (const std::uint32_t low : {0x0000u, 0x0001u, 0x0fffu, 0x1000u, 0x1001u, 0x2fffu, 0x3000u,
                                    0x3001u, 0x7fffu, 0x8000u, 0xffffu}) {
      const auto x = std::bit_cast<float>(high << 16 | low);
      if (std::isnan(x)) {
        EXPECT_TRUE(std::isnan(to_float(simd_to_f16(x))));
        continue;
      }
      ASSERT_EQ(simd_to_f16(x).bits, to_f16(x).bits) << x;
      ASSERT_EQ(std::bit_cast<std::uint32_t>(simd_round_to_half(x)),
                std::bit_cast<std::uint32_t>(to_float(to_f16(x))))
          << x;
    }
}

}  // namespace
}  // namespace qpipe
