#include "kernels/float4.h"

#include <algorithm>
#include <cmath>

#include "kernels/float8.h"
#include "tests/kernels/weights_of.h"

namespace qpipe {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float nan_value = std::numeric_limits<float>::quiet_NaN();
constexpr double magnitudes[8] = {0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0};

// Nearest by search, ties to the even index.
int nearest_by_search(double x) {
  int best = 0;
  for (int index = 1; index < 8; ++index) {
    const double error = std::fabs(std::fabs(x) - magnitudes[index]);
    const double best_error = std::fabs(std::fabs(x) - magnitudes[best]);
    if (error < best_error || (error == best_error && index % 2 == 0)) best = index;
  }
  return (std::signbit(x) ? 8 : 0) | best;
}

double value_of(int code) { return code >= 8 ? -magnitudes[code - 8] : magnitudes[code]; }

int code_at(const std::vector<std::uint8_t>& packed, std::int64_t i) {
  return i % 2 == 0 ? packed[static_cast<std::size_t>(i / 2)] & 15
                    : packed[static_cast<std::size_t>(i / 2)] >> 4;
}

TEST(E2m1, EveryCodeDecodesAndRoundTrips) {
  for (int code = 0; code < 16; ++code) {
    const float value = e2m1_to_float(static_cast<std::uint8_t>(code));
    EXPECT_EQ(static_cast<double>(value), value_of(code));
    EXPECT_EQ(std::signbit(value), code >= 8);
    EXPECT_EQ(int{to_e2m1(value)}, code);
  }
}

// compressed-tensors' thresholds, fp4_utils.py: x ≤ .25 → 0, < .75 → .5, ≤ 1.25 → 1, < 1.75 → 1.5,
// ≤ 2.5 → 2, < 3.5 → 3, ≤ 5 → 4, else 6.
TEST(E2m1, TiesGoToTheEvenIndex) {
  const float ties[7] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f};
  const int even[7] = {0, 2, 2, 4, 4, 6, 6};
  for (int i = 0; i < 7; ++i)
    for (const int sign : {0, 8}) {
      const float factor = sign != 0 ? -1.0f : 1.0f;
      EXPECT_EQ(int{to_e2m1(factor * ties[i])}, even[i] | sign);
      EXPECT_EQ(int{to_e2m1(factor * std::nextafter(ties[i], 0.0f))}, i | sign);
      EXPECT_EQ(int{to_e2m1(factor * std::nextafter(ties[i], infinity))}, (i + 1) | sign);
    }
  EXPECT_EQ(int{to_e2m1(6.5f)}, 7);
  EXPECT_EQ(int{to_e2m1(-infinity)}, 15);
  EXPECT_EQ(int{to_e2m1(nan_value)}, 7);
}

TEST(E8m0, EveryCode) {
  for (int code = 0; code < 255; ++code)
    EXPECT_EQ(static_cast<double>(e8m0_to_float(static_cast<std::uint8_t>(code))),
              std::ldexp(1.0, code - 127))
        << code;
  EXPECT_TRUE(std::isnan(e8m0_to_float(255)));
}

TEST(E8m0, ScaleOfAGroup) {
  for (int exponent = -120; exponent < 127; ++exponent) {
    const float power = std::ldexp(1.0f, exponent);
    EXPECT_EQ(int{mxfp4_scale(power)}, 127 + exponent - 2);
    EXPECT_EQ(int{mxfp4_scale(std::nextafter(1.75f * power, 0.0f))}, 127 + exponent - 2);
    EXPECT_EQ(int{mxfp4_scale(1.75f * power)}, 127 + exponent - 1);
  }
  EXPECT_EQ(int{mxfp4_scale(0.0f)}, 0);
  EXPECT_EQ(int{mxfp4_scale(std::numeric_limits<float>::denorm_min())}, 0);
  EXPECT_EQ(int{mxfp4_scale(0x1p-125f)}, 0);
  EXPECT_EQ(int{mxfp4_scale(0x1p-124f)}, 1);
  EXPECT_EQ(int{mxfp4_scale(std::numeric_limits<float>::max())}, 253);
  EXPECT_EQ(int{mxfp4_scale(infinity)}, 255);
  EXPECT_EQ(int{mxfp4_scale(nan_value)}, 255);
}

TEST(Nvfp4, GlobalScale) {
  EXPECT_EQ(nvfp4_global_scale(2688.0f), 1.0f);
  EXPECT_EQ(nvfp4_global_scale(0.5f), 5376.0f);
  for (const float fallback : {0.0f, std::numeric_limits<float>::denorm_min(), infinity, nan_value})
    EXPECT_EQ(nvfp4_global_scale(fallback), 1.0f);
}

class Float4Test : public WeightsTest {
 protected:
  struct Result {
    std::vector<std::uint8_t> packed;
    std::vector<std::uint8_t> scale;
  };
  // global_scale 0: MXFP4.
  Result quantize(ConstTensor w, float global_scale) {
    const Array<std::uint8_t> packed(w.rows, w.cols / 2, stream);
    const Array<std::uint8_t> scale(w.rows, w.cols / (global_scale > 0.0f ? 16 : 32), stream);
    if (global_scale > 0.0f)
      quantize_nvfp4(w, global_scale, packed, scale, stream);
    else
      quantize_mxfp4(w, packed, scale, stream);
    return {download_as(packed.view), download_as(scale.view)};
  }

  std::vector<float> weights(std::int64_t rows, std::int64_t cols, DType dtype) {
    auto w = random_normal(rows * cols, static_cast<unsigned>(cols), 0.03f);
    for (std::int64_t c = 0; c < 32; ++c) {
      w[c] = 0.0f;
      w[cols + c] *= 1e-5f;  // far below the tensor's largest: the group's e4m3 scale is subnormal
    }
    w[2 * cols] = 1.5f;  // an outlier
    return rounded_to(dtype, w);
  }
};

TEST_P(Float4Test, GoldenBytes) {
  std::vector<float> w;
  for (const double m : magnitudes) w.push_back(static_cast<float>(m));
  for (const double m : magnitudes) w.push_back(-static_cast<float>(m));
  const std::vector<std::uint8_t> golden{0x10, 0x32, 0x54, 0x76,
                                         0x98, 0xba, 0xdc, 0xfe};  // formats.md §5
  const Result nv = quantize(upload_as(w, 1, 16).view, 1.0f);
  EXPECT_EQ(nv.packed, golden);
  EXPECT_EQ(nv.scale, std::vector<std::uint8_t>{0x38});  // 1
  w.insert(w.end(), 16, 0.0f);
  const Result mx = quantize(upload_as(w, 1, 32).view, 0.0f);
  EXPECT_TRUE(std::equal(golden.begin(), golden.end(), mx.packed.begin()));
  EXPECT_EQ(mx.scale, std::vector<std::uint8_t>{127});
}

TEST_P(Float4Test, Nvfp4) {
  for (const DType dtype : types)
    for (const std::int64_t cols : {32, 48, 2064}) {
      const std::int64_t rows = 7;
      const auto w = weights(rows, cols, dtype);
      for (const std::int64_t stride : {cols, cols + 8, cols + 5}) {
        const TensorArray on_device = upload_weights(w, rows, cols, dtype, stride);
        const Array<float> largest(1, 1, stream);
        fill_zero(largest.view.data, sizeof(float), stream);
        accumulate_absmax(on_device, largest, stream);
        ASSERT_EQ(download_as(largest.view)[0], 1.5f);
        const float global = nvfp4_global_scale(1.5f);
        const Result got = quantize(on_device, global);
        for (std::int64_t g = 0; g < rows * cols / 16; ++g) {
          float group_largest = 0.0f;
          for (std::int64_t i = 16 * g; i < 16 * g + 16; ++i)
            group_largest = std::max(group_largest, std::fabs(w[i]));
          std::uint8_t wanted = to_e4m3(global * (group_largest / 6.0f));
          if (wanted == 0) wanted = 0x20;
          ASSERT_EQ(int{got.scale[g]}, int{wanted}) << g;
          const float divisor = e4m3_to_float(wanted) / global;
          for (std::int64_t i = 16 * g; i < 16 * g + 16; ++i)
            ASSERT_EQ(code_at(got.packed, i), nearest_by_search(w[i] / divisor)) << i;
        }
        for (const DType out_dtype : types) {
          const TensorArray back(out_dtype, rows, cols, stream);
          dequantize_nvfp4(upload_as(got.packed, rows, cols / 2),
                           upload_as(got.scale, rows, cols / 16), global, back, stream);
          const auto values = download_weights(back);
          for (std::int64_t i = 0; i < rows * cols; ++i)
            ASSERT_EQ(values[i],
                      rounded_to(out_dtype, static_cast<float>(value_of(code_at(got.packed, i))) *
                                                (e4m3_to_float(got.scale[i / 16]) / global)));
        }
      }
    }
}

TEST_P(Float4Test, Mxfp4) {
  for (const DType dtype : types)
    for (const std::int64_t cols : {32, 96, 2080}) {
      const std::int64_t rows = 7;
      const auto w = weights(rows, cols, dtype);
      for (const std::int64_t stride : {cols, cols + 8, cols + 5}) {
        const Result got = quantize(upload_weights(w, rows, cols, dtype, stride), 0.0f);
        for (std::int64_t g = 0; g < rows * cols / 32; ++g) {
          float largest = 0.0f;
          for (std::int64_t i = 32 * g; i < 32 * g + 32; ++i)
            largest = std::max(largest, std::fabs(w[i]));
          ASSERT_EQ(int{got.scale[g]}, int{mxfp4_scale(largest)});
          for (std::int64_t i = 32 * g; i < 32 * g + 32; ++i)
            ASSERT_EQ(code_at(got.packed, i),
                      nearest_by_search(std::ldexp(static_cast<double>(w[i]), 127 - got.scale[g])))
                << i;
        }
        for (const DType out_dtype : types) {
          const TensorArray back(out_dtype, rows, cols, stream);
          dequantize_mxfp4(upload_as(got.packed, rows, cols / 2),
                           upload_as(got.scale, rows, cols / 32), back, stream);
          const auto values = download_weights(back);
          for (std::int64_t i = 0; i < rows * cols; ++i)
            ASSERT_EQ(values[i], rounded_to(out_dtype, static_cast<float>(std::ldexp(
                                                           value_of(code_at(got.packed, i)),
                                                           got.scale[i / 32] - 127))));
        }
      }
    }
}

TEST_P(Float4Test, EveryScaleCodeDequantizes) {
  const std::int64_t rows = 256;
  std::vector<std::uint8_t> packed(rows * 16), nv_scale(rows * 2), mx_scale(rows);
  for (std::size_t i = 0; i < packed.size(); ++i) packed[i] = static_cast<std::uint8_t>(i);
  for (std::size_t i = 0; i < nv_scale.size(); ++i) nv_scale[i] = static_cast<std::uint8_t>(i);
  for (std::size_t i = 0; i < mx_scale.size(); ++i) mx_scale[i] = static_cast<std::uint8_t>(i);
  const auto equal = [](float got, float wanted) {
    return std::isnan(wanted) ? std::isnan(got) : got == wanted;
  };
  const Array<float> back(rows, 32, stream);
  dequantize_nvfp4(upload_as(packed, rows, 16), upload_as(nv_scale, rows, 2), 3.0f, back.view,
                   stream);
  auto values = download_as(back.view);
  for (std::int64_t i = 0; i < rows * 32; ++i)
    ASSERT_TRUE(equal(values[i], static_cast<float>(value_of(code_at(packed, i))) *
                                     (e4m3_to_float(nv_scale[i / 16]) / 3.0f)))
        << i;
  dequantize_mxfp4(upload_as(packed, rows, 16), upload_as(mx_scale, rows, 1), back.view, stream);
  values = download_as(back.view);
  for (std::int64_t i = 0; i < rows * 32; ++i)
    ASSERT_TRUE(equal(values[i], static_cast<float>(value_of(code_at(packed, i))) *
                                     e8m0_to_float(mx_scale[i / 32])))
        << i;
}

TEST_P(Float4Test, AbsmaxAccumulatesAndKeepsNan) {
  const Array<float> largest(1, 1, stream);
  fill_zero(largest.view.data, sizeof(float), stream);
  const auto add = [&](std::vector<float> w, std::int64_t cols, DType dtype) {
    accumulate_absmax(
        upload_weights(w, static_cast<std::int64_t>(w.size()) / cols, cols, dtype, cols), largest,
        stream);
    return download_as(largest.view)[0];
  };
  EXPECT_EQ(add({0.5f, -2.0f, 1.0f}, 3, DType::f16), 2.0f);
  EXPECT_EQ(add(std::vector<float>(1000, -1.5f), 8, DType::bf16), 2.0f);
  auto many = random_normal(5000 * 24, 3);
  many[77777] = -70.0f;
  EXPECT_EQ(add(many, 24, DType::f32), 70.0f);
  EXPECT_TRUE(std::isnan(add({nan_value, 1e30f}, 1, DType::f32)));
  EXPECT_TRUE(std::isnan(add({100.0f}, 1, DType::f32)));
}

TEST_P(Float4Test, WeightsThatAreNotFiniteShowInTheScale) {
  std::vector<float> w(64, 0.25f);
  w[3] = nan_value;
  w[35] = -infinity;
  const Array<float> on_device = upload_as(w, 1, 64);
  const Result nv = quantize(on_device.view, 4.0f);
  EXPECT_EQ(nv.scale[0], 0x7f);
  EXPECT_EQ(nv.scale[2], 0x7e);
  const Result mx = quantize(on_device.view, 0.0f);
  EXPECT_EQ(mx.scale, (std::vector<std::uint8_t>{255, 255}));
}

TEST_P(Float4Test, RefusesInconsistentArguments) {
  const Array<float> w(2, 40, stream);
  const Array<std::uint8_t> packed(2, 20, stream), scale(2, 2, stream);
  EXPECT_THROW(quantize_nvfp4(w.view, 1.0f, packed, scale, stream), std::invalid_argument);
  EXPECT_THROW(quantize_mxfp4(w.view, packed, scale, stream), std::invalid_argument);
  const Array<float> fits(2, 32, stream);
  EXPECT_THROW(quantize_nvfp4(fits.view, 1.0f, packed, scale, stream), std::invalid_argument);
  const Array<std::uint8_t> half(2, 16, stream);
  EXPECT_THROW(quantize_mxfp4(fits.view, half, scale, stream), std::invalid_argument);
  EXPECT_THROW(dequantize_nvfp4(half, scale, 1.0f, packed.view, stream), std::invalid_argument);
  const Array<float> empty(0, 32, stream);
  const Array<std::uint8_t> no_codes(0, 16, stream), no_scale(0, 2, stream);
  quantize_nvfp4(empty.view, 1.0f, no_codes, no_scale, stream);
  dequantize_nvfp4(no_codes, no_scale, 1.0f, empty.view, stream);
}

INSTANTIATE_TEST_SUITE_P(Backends, Float4Test, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace qpipe
