#include "kernels/norm.h"

#include "tests/kernels/forward_checks.h"
#include "tests/reference/forward.h"

namespace qpipe {

namespace {

class NormTest : public ForwardTest {
 protected:
  const std::vector<std::int64_t> widths{1, 5, 64, 80, 257, 576, 1000, 4096, 8200};
  static constexpr std::int64_t tokens = 5;
  static constexpr float eps = 1e-5f;

  // Roundings of a sum of d terms of one sign grow like √d in a chain; 8 more for the rest. Then
  // the output is rounded once.
  std::vector<double> rms_tolerance(const reference::Exact& want, std::int64_t d) const {
    std::vector<double> tolerance;
    for (const double value : want)
      tolerance.push_back(((std::sqrt(static_cast<double>(d)) + 8.0) * single + epsilon()) *
                          std::abs(value));
    return tolerance;
  }

  std::vector<double> layer_tolerance(const reference::Exact& want, const std::vector<float>& x,
                                      const std::vector<float>& weight,
                                      const std::vector<float>& bias, std::int64_t d,
                                      double offset = 0.0) const {
    std::vector<double> tolerance;
    const auto n = static_cast<std::size_t>(d);
    for (std::size_t row = 0; row < want.size(); row += n) {
      double mean = 0.0;
      double largest = 0.0;
      for (std::size_t i = 0; i < n; ++i) mean += x[row + i] / static_cast<double>(d);
      double variance = eps;
      for (std::size_t i = 0; i < n; ++i) {
        variance += std::pow(x[row + i] - mean, 2) / static_cast<double>(d);
        largest = std::max(largest, std::abs(static_cast<double>(x[row + i])));
      }
      for (std::size_t i = 0; i < n; ++i) {
        const double w =
            weight.empty() ? 1.0 : std::abs(offset) + std::abs(weight[(row + i) % weight.size()]);
        const double terms = w * (std::abs(x[row + i] - mean) + largest) / std::sqrt(variance) +
                             (bias.empty() ? 0.0 : std::abs(bias[(row + i) % bias.size()]));
        tolerance.push_back((std::sqrt(static_cast<double>(d)) + 8.0) * single * terms +
                            epsilon() * std::abs(want[row + i]));
      }
    }
    return tolerance;
  }

  TensorArray upload_or_empty(const std::vector<float>& values, std::int64_t d) {
    if (values.empty()) return {};
    return upload(values, static_cast<std::int64_t>(values.size()) / d, d);
  }
};

TEST_P(NormTest, RmsNormMatchesTheReference) {
  for (const std::int64_t d : widths)
    for (const float offset : {0.0f, 1.0f})
      for (const bool weighted : {true, false}) {
        SCOPED_TRACE(testing::Message()
                     << "d " << d << ", offset " << offset << (weighted ? "" : ", no weight"));
        const auto x = round_to_compute(random_normal(tokens * d, 1, 3.0f));
        const auto weight = weighted ? round_to_compute(random_normal(d, 2)) : std::vector<float>{};
        const auto want = reference::rms_norm(x, weight, tokens, d, eps, offset);
        const auto x_device = upload_padded(stream.compute_dtype(), x, tokens, d);
        const auto weight_device = upload_or_empty(weight, d);
        const auto y = poisoned_padded(stream.compute_dtype(), tokens, d, 1, 4);
        rms_norm(x_device.view, weight_device, eps, offset, y.view, stream);
        const auto apart = download_inside(y);
        expect_close(apart, want, rms_tolerance(want, d));
        rms_norm(x_device.view, weight_device, eps, offset, x_device.view, stream);
        EXPECT_EQ(count_different(download_inside(x_device), apart), 0u) << "in place";
      }
}

// A lone large value at each end: an element left out of the sum, or counted twice, changes
// everything.
TEST_P(NormTest, RmsNormSumsEveryElement) {
  for (const std::int64_t d : widths)
    for (const std::int64_t spike : {std::int64_t{0}, d / 2, d - 1}) {
      SCOPED_TRACE(testing::Message() << "d " << d << ", spike at " << spike);
      std::vector<float> x(static_cast<std::size_t>(d), 0.015625f);
      x[static_cast<std::size_t>(spike)] = 128.0f;
      const std::vector<float> weight(static_cast<std::size_t>(d), 1.0f);
      const auto want = reference::rms_norm(x, weight, 1, d, eps, 0.0);
      const auto y = poisoned(stream.compute_dtype(), 1, d);
      rms_norm(upload(x, 1, d), upload(weight, 1, d), eps, 0.0f, y, stream);
      expect_close(download(y), want, rms_tolerance(want, d));
    }
}

// eps carries the result when x is tiny.
TEST_P(NormTest, RmsNormAddsEpsilonInsideTheRoot) {
  const std::vector<float> x = round_to_compute(std::vector<float>(32, 1e-4f));
  const std::vector<float> weight(32, 1.0f);
  const auto y = poisoned(stream.compute_dtype(), 1, 32);
  rms_norm(upload(x, 1, 32), upload(weight, 1, 32), 1e-6f, 0.0f, y, stream);
  const auto want = reference::rms_norm(x, weight, 1, 32, 1e-6f, 0.0);
  EXPECT_NEAR(want[0], 0.0995, 0.001);
  expect_close(download(y), want, rms_tolerance(want, 32));
}

TEST_P(NormTest, LayerNormMatchesTheReference) {
  struct Case {
    bool weight, bias;
    float offset;
  };
  for (const std::int64_t d : widths)
    for (const float mean : {0.0f, 30.0f})
      for (const auto& [with_weight, with_bias, offset] :
           {Case{true, false, 0.0f}, Case{true, true, 0.0f}, Case{true, true, 1.0f},
            Case{false, false, 0.0f}, Case{false, true, 1.0f}}) {
        SCOPED_TRACE(testing::Message()
                     << "d " << d << ", mean " << mean << (with_weight ? ", weight" : "")
                     << (with_bias ? ", bias" : "") << ", offset " << offset);
        auto x = random_normal(tokens * d, 1, 2.0f);
        for (float& value : x) value += mean;
        x = round_to_compute(x);
        const auto weight =
            with_weight ? round_to_compute(random_normal(d, 2)) : std::vector<float>{};
        const auto bias = with_bias ? round_to_compute(random_normal(d, 3)) : std::vector<float>{};
        const auto want = reference::layer_norm(x, weight, bias, tokens, d, eps, offset);
        const auto x_device = upload_padded(stream.compute_dtype(), x, tokens, d);
        const auto weight_device = upload_or_empty(weight, d);
        const auto bias_device = upload_or_empty(bias, d);
        const auto y = poisoned_padded(stream.compute_dtype(), tokens, d, 1, 4);
        layer_norm(x_device.view, weight_device, bias_device, eps, offset, y.view, stream);
        const auto apart = download_inside(y);
        expect_close(apart, want, layer_tolerance(want, x, weight, bias, d, offset));
        layer_norm(x_device.view, weight_device, bias_device, eps, offset, x_device.view, stream);
        EXPECT_EQ(count_different(download_inside(x_device), apart), 0u) << "in place";
      }
}

// With the mean 2000 times the deviation, E[x²] − mean² in float32 is off by a tenth of the
// variance or more: float32 near 2^31 steps by 256. The plain sum is exact here, so the two-pass
// form is too.
TEST_P(NormTest, LayerNormIsStableFarFromZero) {
  constexpr std::int64_t d = 2048;
  std::vector<float> x;
  for (std::int64_t i = 0; i < d; ++i)
    x.push_back(i % 256 == 0 ? 1032.0f : 1024.0f);  // exact in bf16
  const std::vector<float> weight(static_cast<std::size_t>(d), 1.0f);
  const auto want = reference::layer_norm(x, weight, {}, 1, d, eps, 0.0);
  const auto y = poisoned(stream.compute_dtype(), 1, d);
  layer_norm(upload(x, 1, d), upload(weight, 1, d), {}, eps, 0.0f, y, stream);
  std::vector<double> tolerance;
  for (const double value : want)
    tolerance.push_back((16.0 * single + epsilon()) * std::abs(value));
  expect_close(download(y), want, tolerance);
}

TEST_P(NormTest, HeadsAreNormalisedInPlace) {
  struct Case {
    std::int64_t heads, head_dim;
  };
  for (const auto& [heads, head_dim] : {Case{1, 16}, Case{3, 64}, Case{9, 80}, Case{5, 128},
                                        Case{32, 128}, Case{2, 256}, Case{4, 5}}) {
    SCOPED_TRACE(testing::Message() << heads << " heads of " << head_dim);
    const std::int64_t width = heads * head_dim;
    auto x = random_normal(tokens * width, 1);
    // Heads of very different size, so that one head's norm applied to another shows.
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t c = 0; c < width; ++c)
        x[static_cast<std::size_t>(t * width + c)] *=
            static_cast<float>(1 + 10 * (c / head_dim) + t);
    x = round_to_compute(x);
    const auto weight = round_to_compute(random_normal(head_dim, 2));
    // A column range of a wider matrix, as q and k are of qkv.
    const auto x_device = upload_padded(stream.compute_dtype(), x, tokens, width, 8, 16);
    rms_norm_heads(x_device.view, heads, upload(weight, 1, head_dim), eps, 0.0f, stream);
    const auto want = reference::rms_norm(x, weight, tokens * heads, head_dim, eps, 0.0);
    expect_close(download_inside(x_device), want, rms_tolerance(want, head_dim));
  }
}

// Slices with a gap between them (the k of q k v | q k v | …), weights for all or for each head.
TEST_P(NormTest, SlicesOfEveryFormAreNormalisedInPlace) {
  struct Case {
    std::int64_t heads, head_dim, stride;
  };
  for (const auto& [heads, head_dim, stride] :
       {Case{1, 16, 16}, Case{3, 64, 192}, Case{9, 80, 80}, Case{5, 24, 25}, Case{4, 5, 15},
        Case{7, 128, 136}, Case{2, 2048, 2056}})
    for (const bool centred : {false, true})
      for (const std::int64_t weight_rows : {std::int64_t{0}, std::int64_t{1}, heads})
        for (const std::int64_t bias_rows : {std::int64_t{0}, std::int64_t{1}, heads}) {
          if (!centred && bias_rows > 0) continue;
          SCOPED_TRACE(testing::Message()
                       << heads << " heads of " << head_dim << " every " << stride
                       << (centred ? ", layer" : ", rms") << ", weight rows " << weight_rows
                       << ", bias rows " << bias_rows);
          const float offset = weight_rows == 1 ? 1.0f : 0.0f;
          const HeadSlices slices{heads, head_dim, stride};
          const std::int64_t width = slices.width();
          const auto row = round_to_compute(random_normal(tokens * width, 1, 2.0f));
          const auto weight = round_to_compute(random_normal(weight_rows * head_dim, 2));
          const auto bias = round_to_compute(random_normal(bias_rows * head_dim, 3));
          std::vector<float> x;
          for (std::int64_t t = 0; t < tokens; ++t)
            for (std::int64_t h = 0; h < heads; ++h)
              x.insert(x.end(), row.begin() + t * width + h * stride,
                       row.begin() + t * width + h * stride + head_dim);
          const std::int64_t rows = tokens * heads;
          const auto normal =
              centred ? reference::layer_norm(x, weight, bias, rows, head_dim, eps, offset)
                      : reference::rms_norm(x, weight, rows, head_dim, eps, offset);
          const auto normal_tolerance =
              centred ? layer_tolerance(normal, x, weight, bias, head_dim, offset)
                      : rms_tolerance(normal, head_dim);
          std::vector<double> want(row.begin(), row.end());
          std::vector<double> tolerance(row.size(), 0.0);
          for (std::int64_t i = 0; i < rows * head_dim; ++i) {
            const std::int64_t slice = i / head_dim;
            const auto to = static_cast<std::size_t>(slice / heads * width +
                                                     slice % heads * stride + i % head_dim);
            want[to] = normal[static_cast<std::size_t>(i)];
            tolerance[to] = normal_tolerance[static_cast<std::size_t>(i)];
          }
          const auto device = upload_padded(stream.compute_dtype(), row, tokens, width, 8, 16);
          const auto weight_device = upload_or_empty(weight, head_dim);
          const auto bias_device = upload_or_empty(bias, head_dim);
          if (centred)
            layer_norm_slices(device.view, slices, weight_device, bias_device, eps, offset, stream);
          else
            rms_norm_slices(device.view, slices, weight_device, eps, offset, stream);
          expect_close(download_inside(device), want, tolerance);
        }
}

TEST_P(NormTest, ManyRows) {
  constexpr std::int64_t rows = 70001;  // more than 65535 blocks
  constexpr std::int64_t d = 16;
  const auto x = round_to_compute(random_normal(rows * d, 1));
  const auto weight = round_to_compute(random_normal(d, 2));
  const auto want = reference::rms_norm(x, weight, rows, d, eps, 0.0);
  const auto y = poisoned(stream.compute_dtype(), rows, d);
  rms_norm(upload(x, rows, d), upload(weight, 1, d), eps, 0.0f, y, stream);
  expect_close(download(y), want, rms_tolerance(want, d));
}

TEST_P(NormTest, AcceptsNoTokens) {
  const auto weight = upload(random_normal(8, 1), 1, 8);
  const TensorArray x(stream.compute_dtype(), 0, 8, stream);
  EXPECT_NO_THROW(rms_norm(x, weight, eps, 0.0f, x, stream));
  EXPECT_NO_THROW(layer_norm(x, weight, {}, eps, 0.0f, x, stream));
  EXPECT_NO_THROW(rms_norm_heads(x, 1, weight, eps, 0.0f, stream));
  EXPECT_NO_THROW(rms_norm_slices(x, {2, 4, 4}, {}, eps, 0.0f, stream));
  EXPECT_NO_THROW(layer_norm_slices(x, {1, 8, 8}, weight, {}, eps, 0.0f, stream));
  EXPECT_NO_THROW(stream.synchronize());
}

TEST_P(NormTest, RefusesInconsistentArguments) {
  const DType type = stream.compute_dtype();
  const TensorArray x(type, 4, 8, stream), y(type, 4, 8, stream), weight(type, 1, 8, stream);
  const TensorArray short_weight(type, 1, 7, stream), tall(type, 5, 8, stream),
      half(DType::f16, 4, 8, stream);
  EXPECT_THROW(rms_norm(x, short_weight, eps, 0.0f, y, stream), std::invalid_argument);
  EXPECT_THROW(rms_norm(x, weight, eps, 0.0f, tall, stream), std::invalid_argument);
  EXPECT_THROW(rms_norm(half, weight, eps, 0.0f, y, stream), std::invalid_argument);
  EXPECT_THROW(layer_norm(x, short_weight, {}, eps, 0.0f, y, stream), std::invalid_argument);
  EXPECT_THROW(layer_norm(x, weight, short_weight, eps, 0.0f, y, stream), std::invalid_argument);
  EXPECT_THROW(layer_norm(x, weight, {}, eps, 0.0f, tall, stream), std::invalid_argument);
  EXPECT_THROW(rms_norm_heads(x, 3, weight, eps, 0.0f, stream), std::invalid_argument);
  EXPECT_THROW(rms_norm_heads(x, 0, weight, eps, 0.0f, stream), std::invalid_argument);
  EXPECT_THROW(rms_norm_heads(x, 1, {}, eps, 0.0f, stream), std::invalid_argument);
  const TensorArray three(type, 3, 4, stream);
  for (const HeadSlices slices : {HeadSlices{0, 4, 4}, HeadSlices{2, 4, 3}, HeadSlices{2, 4, 5},
                                  HeadSlices{3, 4, 4}})  // none, overlapping, outside
    EXPECT_THROW(rms_norm_slices(x, slices, {}, eps, 0.0f, stream), std::invalid_argument);
  EXPECT_THROW(rms_norm_slices(x, {2, 4, 4}, three, eps, 0.0f, stream), std::invalid_argument);
  EXPECT_THROW(layer_norm_slices(x, {2, 4, 4}, {}, three, eps, 0.0f, stream),
               std::invalid_argument);
  EXPECT_THROW(layer_norm_slices(half, {2, 4, 4}, {}, {}, eps, 0.0f, stream),
               std::invalid_argument);
  EXPECT_NO_THROW(rms_norm_heads(x, 1, weight, eps, 0.0f, stream));
}

INSTANTIATE_TEST_SUITE_P(Backends, NormTest, testing::ValuesIn(backends()), backend_name);

}  // namespace

}  // namespace qpipe
