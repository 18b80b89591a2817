#include "kernels/quantize_groups.h"

#include <cmath>
#include <limits>

#include "tests/kernels/backends.h"
#include "tests/reference/gptq.h"

namespace qpipe {
namespace {

class QuantizeGroupsTest : public BackendTest {
 protected:
  struct Grids {
    std::vector<float> scale;
    std::vector<std::uint8_t> zero;
  };
  Grids find(const std::vector<float>& w, std::int64_t rows, std::int64_t cols,
             std::int64_t group_size, const GridOptions& options) {
    const Array<float> on_device = upload_as(w, rows, cols);
    const Array<float> scale(rows, cols / group_size, stream);
    const Array<std::uint8_t> zero(rows, cols / group_size, stream);
    find_grids(on_device, group_size, options, scale, zero, stream);
    return {download_as(scale.view), download_as(zero.view)};
  }
};

double group_error(const std::vector<double>& group, reference::Grid grid, int bits, double norm) {
  double error = 0.0;
  for (const double w : group)
    error += std::pow(std::fabs(w - reference::value(reference::nearest_code(w, grid, bits), grid)),
                      norm);
  return error;
}

TEST_P(QuantizeGroupsTest, ScaleIsRoundedToHalfBeforeTheZero) {
  const std::int64_t rows = 13;
  for (const std::int64_t group_size : {1, 5, 32, 64, 100, 128}) {
    const std::int64_t cols = 3 * group_size;
    auto w = random_normal(rows * cols, static_cast<unsigned>(group_size), 0.05f);
    for (std::int64_t c = 0; c < group_size; ++c) {
      w[c] = std::fabs(w[c]);       // no negative weight
      w[cols + c] = 0.0f;           // all zero
      w[2 * cols + c] *= 0x1p-22f;  // scale is subnormal in float16
      w[3 * cols + c] = -std::fabs(w[3 * cols + c]);
    }
    for (const int bits : {2, 3, 4, 8})
      for (const bool symmetric : {true, false}) {
        const Grids grids = find(w, rows, cols, group_size, {bits, symmetric, 0.0f});
        for (std::int64_t i = 0; i < rows * 3; ++i) {
          const std::vector<double> group(w.begin() + i * group_size,
                                          w.begin() + (i + 1) * group_size);
          const reference::Grid exact = reference::find_grid(group, bits, symmetric);
          // The float32 range and quotient have a relative error of 2^-23, which can cross a
          // rounding boundary of float16 (2^-11).
          if (static_cast<double>(grids.scale[i]) != exact.scale) {
            ASSERT_NEAR(grids.scale[i], exact.scale, exact.scale * 0x1p-10 + 0x1p-24) << i;
            ADD_FAILURE()
                << "scale differs for a fixed input: look whether it lies on a float16 boundary";
          }
          ASSERT_EQ(int{grids.zero[i]}, exact.zero)
              << bits << " bits, group of " << group_size << ", " << i;
          ASSERT_EQ(static_cast<double>(grids.scale[i]), reference::round_to_half(grids.scale[i]));
          ASSERT_GE(grids.scale[i], 0x1p-24f);
        }
      }
  }
}

TEST_P(QuantizeGroupsTest, SearchFindsTheBestShrinkFactor) {
  const std::int64_t rows = 9;
  for (const std::int64_t group_size : {24, 32, 64, 128, 160})
    for (const float norm : {2.0f, 2.4f, 1.0f})
      for (const bool symmetric : {true, false}) {
        const std::int64_t cols = 2 * group_size;
        auto w = random_normal(rows * cols, 11, 0.02f);
        w[3] = 0.4f;  // an outlier makes shrinking worthwhile
        const int bits = symmetric ? 4 : 3;
        const Grids grids = find(w, rows, cols, group_size, {bits, symmetric, norm});
        int shrunk = 0;
        for (std::int64_t i = 0; i < rows * 2; ++i) {
          const std::vector<double> group(w.begin() + i * group_size,
                                          w.begin() + (i + 1) * group_size);
          double best = std::numeric_limits<double>::infinity();
          for (int step = 0; step < 80; ++step)
            best = std::min(
                best,
                group_error(group, reference::find_grid(group, bits, symmetric, 1.0 - step / 100.0),
                            bits, norm));
          const double found = group_error(group, {grids.scale[i], grids.zero[i]}, bits, norm);
          // Relative error of one float32 term: that of w − q near zero cancels in the sum; 3e-5
          // covers p rounded to float and the power.
          ASSERT_NEAR(found, best, 3e-5 * best) << i << " norm " << norm;
          if (grids.scale[i] < 0.99 * reference::find_grid(group, bits, symmetric).scale) ++shrunk;
        }
        EXPECT_GT(shrunk, 0);
      }
}

TEST_P(QuantizeGroupsTest, CodesAndValues) {
  const std::int64_t rows = 7;
  const std::int64_t cols = 96;
  for (const int bits : {2, 3, 4, 8}) {
    auto w = random_normal(rows * cols, static_cast<unsigned>(bits), 0.05f);
    w[5] = 1e30f;  // clamped
    w[6] = -1e30f;
    w[7] = std::numeric_limits<float>::quiet_NaN();  // defined: code 0
    const Array<float> w_device = upload_as(w, rows, cols);
    // Columns belong to groups out of order, as with act-order.
    std::vector<std::int32_t> group_of(static_cast<std::size_t>(cols));
    for (std::int64_t c = 0; c < cols; ++c) group_of[c] = static_cast<std::int32_t>((c * 7) % 3);
    std::vector<float> scale(static_cast<std::size_t>(rows * 3));
    std::vector<std::uint8_t> zero(scale.size());
    for (std::size_t i = 0; i < scale.size(); ++i) {
      scale[i] = to_float(to_f16(0.003f + 0.001f * static_cast<float>(i)));
      zero[i] = static_cast<std::uint8_t>(i % (1u << bits));
    }
    w[8] = scale[group_of[8]] * 0.5f;  // a tie goes to even
    copy_to_device(w_device.view.data, w.data(), w.size() * sizeof(float), stream);
    const Array<float> scale_device = upload_as(scale, rows, 3);
    const Array<std::uint8_t> zero_device = upload_as(zero, rows, 3);
    const Array<std::int32_t> group_device = upload_as(group_of, 1, cols);
    const Array<std::uint8_t> code_device(rows, cols, stream);
    round_to_grid(w_device, scale_device, zero_device, group_device, bits, code_device, stream);
    const auto code = download_as(code_device.view);
    EXPECT_EQ(int{code[5]}, (1 << bits) - 1);
    EXPECT_EQ(int{code[6]}, 0);
    EXPECT_EQ(int{code[7]}, 0);
    EXPECT_EQ(int{code[8]}, int{zero[group_of[8]]});
    for (std::int64_t i = 0; i < rows * cols; ++i) {
      if (std::isnan(w[i])) continue;
      const auto g = static_cast<std::size_t>(i / cols * 3 + group_of[i % cols]);
      const double quotient = static_cast<double>(w[i]) / scale[g];
      const int exact = reference::nearest_code(w[i], {scale[g], zero[g]}, bits);
      // Only a float32 quotient within its own roundoff of a tie may go the other way.
      if (int{code[i]} != exact) {
        ASSERT_LE(std::fabs(std::fabs(quotient - std::floor(quotient)) - 0.5),
                  std::fabs(quotient) * 0x1p-23)
            << i;
      }
    }

    const auto value = [&](std::int64_t i) {
      const auto g = static_cast<std::size_t>(i / cols * 3 + group_of[i % cols]);
      return scale[g] * static_cast<float>(int{code[i]} - int{zero[g]});
    };
    const Array<float> wide(rows, cols, stream);
    dequantize(code_device, scale_device, zero_device, group_device, wide.view, stream);
    const TensorArray brain(DType::bf16, rows, cols, stream);
    dequantize(code_device, scale_device, zero_device, group_device, brain, stream);
    const TensorArray half(DType::f16, rows, cols, stream);
    dequantize(code_device, scale_device, zero_device, group_device, half, stream);
    const auto wide_host = download_as(wide.view);
    const auto brain_host = download(brain);
    std::vector<f16> half_host(static_cast<std::size_t>(rows * cols));
    copy_to_host(half_host.data(), half.view.data, half_host.size() * sizeof(f16), stream);
    for (std::int64_t i = 0; i < rows * cols; ++i) {
      ASSERT_EQ(wide_host[i], value(i));
      ASSERT_EQ(brain_host[i], to_float(to_bf16(value(i))));
      ASSERT_EQ(to_float(half_host[i]), to_float(to_f16(value(i))));
    }
  }
}

TEST_P(QuantizeGroupsTest, EqualOnAllBackends) {
  Stream cpu(Backend::cpu, 0);
  const std::int64_t rows = 50;
  const std::int64_t cols = 256;
  const auto w = random_normal(rows * cols, 21, 0.03f);
  for (const float norm : {0.0f, 2.0f, 2.4f})
    for (const bool symmetric : {true, false}) {
      const GridOptions options{4, symmetric, norm};
      const Grids here = find(w, rows, cols, 64, options);
      std::vector<float> scale(here.scale.size());
      std::vector<std::uint8_t> zero(here.zero.size());
      find_grids({w.data(), rows, cols}, 64, options, {scale.data(), rows, 4},
                 {zero.data(), rows, 4}, cpu);
      EXPECT_EQ(here.scale, scale);
      EXPECT_EQ(here.zero, zero);
    }
}

TEST_P(QuantizeGroupsTest, InspectionFindsOneFaultAmongMany) {
  const std::int64_t rows = 37;
  const std::int64_t groups = 29;
  const Array<float> scale(rows, groups, stream);
  const Array<std::uint8_t> zero(rows, groups, stream);
  const auto found = [&](float planted_scale, std::uint8_t planted_zero, std::int64_t at) {
    std::vector<float> scales(static_cast<std::size_t>(rows * groups), 0.5f);
    std::vector<std::uint8_t> zeros(scales.size(), 8);
    scales[static_cast<std::size_t>(at)] = planted_scale;
    zeros[static_cast<std::size_t>(at)] = planted_zero;
    copy_to_device(scale.view.data, scales.data(), scale.memory.bytes(), stream);
    copy_to_device(zero.view.data, zeros.data(), zero.memory.bytes(), stream);
    const Array<std::int32_t> result(1, 2, stream);
    fill_zero(result.view.data, result.memory.bytes(), stream);
    inspect_grids(scale, zero, result, stream);
    std::vector<std::int32_t> host(2);
    copy_to_host(host.data(), result.view.data, result.memory.bytes(), stream);
    return host;
  };
  using Found = std::vector<std::int32_t>;
  EXPECT_EQ(found(0.5f, 8, 0), (Found{0, 0}));
  for (const std::int64_t at : {std::int64_t{0}, rows * groups / 2, rows * groups - 1}) {
    EXPECT_EQ(found(INFINITY, 8, at), (Found{1, 0}));
    EXPECT_EQ(found(NAN, 8, at), (Found{1, 0}));
    EXPECT_EQ(found(0.5f, 0, at), (Found{0, 1}));
    EXPECT_EQ(found(-INFINITY, 0, at), (Found{1, 1}));
  }
}

TEST_P(QuantizeGroupsTest, OverflowingScaleIsInfinite) {
  const Grids grids = find({-1e30f, 1e30f, 0.0f, 0.0f}, 1, 4, 4, {4, true, 0.0f});
  EXPECT_TRUE(std::isinf(grids.scale[0]));
}

TEST_P(QuantizeGroupsTest, RefusesImpossibleSizes) {
  const Array<float> w(2, 10, stream);
  const Array<float> scale(2, 3, stream);
  const Array<std::uint8_t> zero(2, 3, stream);
  EXPECT_THROW(find_grids(w, 3, {4, true, 0.0f}, scale, zero, stream), std::invalid_argument);
  EXPECT_THROW(find_grids(w, 5, {4, true, 0.0f}, scale, zero, stream), std::invalid_argument);
  EXPECT_THROW(find_grids(w, 10, {5, true, 0.0f}, scale, zero, stream), std::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(Backends, QuantizeGroupsTest, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace qpipe
