#include "kernels/float8.h"

#include <algorithm>
#include <cmath>

#include "tests/kernels/weights_of.h"

namespace qpipe {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float nan_value = std::numeric_limits<float>::quiet_NaN();

// The value of a code from its fields, in double precision.
double field_value(int code) {
  const int exponent = (code >> 3) & 15;
  const int mantissa = code & 7;
  const double sign = code >= 128 ? -1.0 : 1.0;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<double>::quiet_NaN();
  return sign *
         (exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10));
}

// Nearest code by search over the magnitudes of all codes; ties to the even code.
int nearest_by_search(double x) {
  static const std::vector<double> magnitude = [] {
    std::vector<double> values;
    for (int code = 0; code < 127; ++code) values.push_back(field_value(code));
    return values;
  }();
  if (std::isnan(x)) return 0x7f;
  const int sign = std::signbit(x) ? 128 : 0;
  const auto above = std::lower_bound(magnitude.begin(), magnitude.end(), std::fabs(x));
  const int high = static_cast<int>(above - magnitude.begin());
  if (high == 0) return sign;
  if (high == 127) return sign | 126;
  const double to_high = magnitude[high] - std::fabs(x);
  const double to_low = std::fabs(x) - magnitude[high - 1];
  if (to_high == to_low) return sign | (high % 2 == 0 ? high : high - 1);
  return sign | (to_high < to_low ? high : high - 1);
}

TEST(E4m3, EveryCodeDecodesAndRoundTrips) {
  for (int code = 0; code < 256; ++code) {
    const float value = e4m3_to_float(static_cast<std::uint8_t>(code));
    if (std::isnan(field_value(code))) {
      EXPECT_TRUE(std::isnan(value));
      continue;
    }
    EXPECT_EQ(static_cast<double>(value), field_value(code)) << code;
    EXPECT_EQ(std::signbit(value), code >= 128) << code;
    EXPECT_EQ(int{to_e4m3(value)}, code);
  }
  EXPECT_EQ(e4m3_to_float(0x7e), 448.0f);
  EXPECT_EQ(e4m3_to_float(0x01), 0x1p-9f);
  EXPECT_EQ(e4m3_to_float(0x38), 1.0f);
}

TEST(E4m3, RoundsHalfToEvenBetweenAllNeighbours) {
  for (int code = 0; code < 126; ++code) {
    const auto mid = static_cast<float>(0.5 * (field_value(code) + field_value(code + 1)));
    const int even = code % 2 == 0 ? code : code + 1;
    for (const int sign : {0, 128}) {
      const float factor = sign != 0 ? -1.0f : 1.0f;
      EXPECT_EQ(int{to_e4m3(factor * mid)}, even | sign) << code;
      EXPECT_EQ(int{to_e4m3(factor * std::nextafter(mid, 0.0f))}, code | sign) << code;
      EXPECT_EQ(int{to_e4m3(factor * std::nextafter(mid, infinity))}, (code + 1) | sign) << code;
    }
  }
}

TEST(E4m3, Extremes) {
  for (const float big :
       {448.0f, 464.0f, 465.0f, 1e9f, std::numeric_limits<float>::max(), infinity}) {
    EXPECT_EQ(int{to_e4m3(big)}, 0x7e);
    EXPECT_EQ(int{to_e4m3(-big)}, 0xfe);
  }
  EXPECT_EQ(int{to_e4m3(std::numeric_limits<float>::denorm_min())}, 0);
  EXPECT_EQ(int{to_e4m3(-0.0f)}, 0x80);
  EXPECT_EQ(int{to_e4m3(nan_value)}, 0x7f);
  EXPECT_EQ(int{to_e4m3(-nan_value)}, 0x7f);
  EXPECT_EQ(int{to_e4m3(std::bit_cast<float>(0x7f800001u))}, 0x7f);
}

class Float8Test : public WeightsTest {
 protected:
  // Scale and codes by the header's equations: the largest magnitude of rows [row, row + rows) ×
  // columns [col, col + cols).
  void expect_block(const std::vector<float>& w, std::int64_t width, std::int64_t row,
                    std::int64_t rows, std::int64_t col, std::int64_t cols, DType scale_dtype,
                    float scale, const std::vector<std::uint8_t>& code) {
    float largest = 0.0f;
    for (std::int64_t r = row; r < row + rows; ++r)
      for (std::int64_t c = col; c < col + cols; ++c)
        largest = std::max(largest, std::fabs(w[r * width + c]));
    float wanted = rounded_to(scale_dtype, largest / 448.0f);
    if (wanted == 0.0f)
      wanted = scale_dtype == DType::f32   ? 0x1p-23f
               : scale_dtype == DType::f16 ? 0x1p-10f
                                           : 0x1p-7f;
    ASSERT_EQ(scale, wanted);
    for (std::int64_t r = row; r < row + rows; ++r)
      for (std::int64_t c = col; c < col + cols; ++c)
        ASSERT_EQ(int{code[r * width + c]}, nearest_by_search(w[r * width + c] / scale))
            << r << ", " << c;
  }
};

TEST_P(Float8Test, Rows) {
  for (const DType dtype : types)
    for (const DType scale_dtype : types)
      for (const std::int64_t cols : {1, 7, 8, 130, 1000, 4104}) {
        const std::int64_t rows = 5;
        auto w = random_normal(rows * cols, static_cast<unsigned>(cols), 0.03f);
        for (std::int64_t c = 0; c < cols; ++c) {
          w[cols + c] = 0.0f;
          w[2 * cols + c] *= 1e-6f;  // the scale underflows in float16
        }
        w = rounded_to(dtype, w);
        for (const std::int64_t stride : {cols, cols + 8, cols + 3}) {
          const TensorArray on_device = upload_weights(w, rows, cols, dtype, stride);
          const Array<std::uint8_t> code(rows, cols, stream);
          const Array<float> scale(rows, 1, stream);
          quantize_float8_rows(on_device, scale_dtype, code, scale, stream);
          const auto codes = download_as(code.view);
          const auto scales = download_as(scale.view);
          for (std::int64_t r = 0; r < rows; ++r)
            expect_block(w, cols, r, 1, 0, cols, scale_dtype, scales[r], codes);
          for (const DType out_dtype : types) {
            const TensorArray back(out_dtype, rows, cols, stream);
            dequantize_float8(code, scale, 1, cols, back, stream);
            const auto values = download_weights(back);
            for (std::int64_t i = 0; i < rows * cols; ++i)
              ASSERT_EQ(values[i], rounded_to(out_dtype, static_cast<float>(field_value(codes[i])) *
                                                             scales[i / cols]));
          }
        }
      }
}

TEST_P(Float8Test, Blocks) {
  for (const DType dtype : types)
    for (const auto& [rows, cols] : {std::pair<std::int64_t, std::int64_t>{1, 1},
                                     {3, 200},
                                     {128, 128},
                                     {130, 264},
                                     {257, 131}}) {
      auto w = random_normal(rows * cols, static_cast<unsigned>(cols), 0.03f);
      if (rows == 257)
        for (std::int64_t c = 0; c < cols; ++c) w[256 * cols + c] = 0.0f;
      w = rounded_to(dtype, w);
      const TensorArray on_device = upload_weights(w, rows, cols, dtype, cols + 8);
      const Array<std::uint8_t> code(rows, cols, stream);
      const Array<float> scale((rows + 127) / 128, (cols + 127) / 128, stream);
      quantize_float8_blocks(on_device, code, scale, stream);
      const auto codes = download_as(code.view);
      const auto scales = download_as(scale.view);
      for (std::int64_t i = 0; i < scale.view.rows; ++i)
        for (std::int64_t j = 0; j < scale.view.cols; ++j)
          expect_block(w, cols, 128 * i, std::min<std::int64_t>(128, rows - 128 * i), 128 * j,
                       std::min<std::int64_t>(128, cols - 128 * j), DType::f32,
                       scales[i * scale.view.cols + j], codes);
      const TensorArray back(DType::f32, rows, cols, stream);
      dequantize_float8(code, scale, 128, 128, back, stream);
      const auto values = download_weights(back);
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t c = 0; c < cols; ++c)
          ASSERT_EQ(values[r * cols + c], static_cast<float>(field_value(codes[r * cols + c])) *
                                              scales[r / 128 * scale.view.cols + c / 128]);
    }
}

TEST_P(Float8Test, EveryCodeFromTheDevice) {
  // With 448 in the row the scale is 1: codes are the e4m3 of the values themselves.
  std::vector<float> values{448.0f};
  for (int code = 0; code < 126; ++code) {
    const auto mid = static_cast<float>(0.5 * (field_value(code) + field_value(code + 1)));
    for (const float value : {static_cast<float>(field_value(code)), mid, std::nextafter(mid, 0.0f),
                              std::nextafter(mid, infinity)}) {
      values.push_back(value);
      values.push_back(-value);
    }
  }
  const auto count = static_cast<std::int64_t>(values.size());
  const Array<float> w = upload_as(values, 1, count);
  const Array<std::uint8_t> code(1, count, stream);
  const Array<float> scale(1, 1, stream);
  quantize_float8_rows(w.view, DType::f32, code, scale, stream);
  const auto codes = download_as(code.view);
  for (std::int64_t i = 0; i < count; ++i)
    ASSERT_EQ(int{codes[i]}, nearest_by_search(values[i])) << values[i];

  std::vector<std::uint8_t> all(256);
  for (int i = 0; i < 256; ++i) all[i] = static_cast<std::uint8_t>(i);
  const Array<std::uint8_t> every = upload_as(all, 1, 256);
  const Array<float> one = upload_as(std::vector<float>{1.0f}, 1, 1);
  const Array<float> back(1, 256, stream);
  dequantize_float8(every, one, 1, 256, back.view, stream);
  const auto decoded = download_as(back.view);
  for (int i = 0; i < 256; ++i) {
    if (std::isnan(field_value(i)))
      EXPECT_TRUE(std::isnan(decoded[i])) << i;
    else
      EXPECT_EQ(static_cast<double>(decoded[i]), field_value(i)) << i;
  }
}

TEST_P(Float8Test, WeightsThatAreNotFiniteShowInTheScale) {
  std::vector<float> w(3 * 16, 0.5f);
  w[5] = nan_value;
  w[6] = infinity;
  w[16 + 3] = -infinity;
  const Array<float> on_device = upload_as(w, 3, 16);
  const Array<std::uint8_t> code(3, 16, stream);
  const Array<float> scale(3, 1, stream);
  quantize_float8_rows(on_device.view, DType::bf16, code, scale, stream);
  const auto scales = download_as(scale.view);
  EXPECT_TRUE(std::isnan(scales[0]));
  EXPECT_TRUE(std::isinf(scales[1]));
  EXPECT_TRUE(std::isfinite(scales[2]));
}

TEST_P(Float8Test, RefusesInconsistentArguments) {
  const Array<float> w(4, 8, stream), scale(4, 1, stream), wide(4, 2, stream);
  const Array<std::uint8_t> code(4, 8, stream), tall(5, 8, stream);
  EXPECT_THROW(quantize_float8_rows(w.view, DType::f32, tall, scale, stream),
               std::invalid_argument);
  EXPECT_THROW(quantize_float8_rows(w.view, DType::f32, code, wide, stream), std::invalid_argument);
  EXPECT_THROW(quantize_float8_rows(w.view, DType::i32, code, scale, stream),
               std::invalid_argument);
  EXPECT_THROW(quantize_float8_rows(code.view, DType::f32, code, scale, stream),
               std::invalid_argument);
  EXPECT_THROW(quantize_float8_blocks(w.view, code, wide, stream), std::invalid_argument);
  EXPECT_THROW(dequantize_float8(code, scale, 1, 4, w.view, stream), std::invalid_argument);
  const Array<float> empty(0, 8, stream), no_scale(0, 1, stream);
  const Array<std::uint8_t> no_code(0, 8, stream);
  quantize_float8_rows(empty.view, DType::f32, no_code, no_scale, stream);
  quantize_float8_blocks(empty.view, no_code, no_scale, stream);
  dequantize_float8(no_code, no_scale, 1, 8, empty.view, stream);
}

INSTANTIATE_TEST_SUITE_P(Backends, Float8Test, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace qpipe
