#include "kernels/causal_conv.h"

#include "tests/kernels/forward_checks.h"
#include "tests/reference/recurrent.h"

namespace qpipe {

namespace {

class CausalConvTest : public ForwardTest {
 protected:
  // k + 2 roundings of a sum; silu has a slope of at most 1.1, its exponent an error of 2 |s| and
  // its quotient a few of its own. Then y is rounded once.
  std::vector<double> tolerance(const reference::Convolved& want, std::int64_t k) const {
    std::vector<double> result;
    for (std::size_t i = 0; i < want.y.size(); ++i)
      result.push_back(static_cast<double>(4 * k + 16) * single * want.magnitude[i] +
                       epsilon() * std::abs(want.y[i]) + 1e-30);
    return result;
  }
};

TEST_P(CausalConvTest, MatchesTheReference) {
  struct Case {
    std::int64_t samples, seqlen, channels, k;
  };
  for (const auto& [samples, seqlen, channels, k] :
       {Case{1, 1, 1, 4}, Case{2, 3, 5, 4}, Case{3, 40, 96, 4}, Case{2, 33, 24, 3},
        Case{1, 200, 64, 2}, Case{2, 70, 8, 1}, Case{2, 41, 16, 7}, Case{1, 65, 1032, 4},
        Case{2, 31, 1032, 6}})
    for (const bool with_bias : {false, true})
      for (const bool silu : {false, true})
        for (const std::int64_t left : {3, 8}) {
          SCOPED_TRACE(testing::Message()
                       << samples << " sequences of " << seqlen << ", " << channels
                       << " channels, k " << k << (with_bias ? ", bias" : "")
                       << (silu ? ", silu" : "") << ", from column " << left);
          const std::int64_t tokens = samples * seqlen;
          const auto x = round_to_compute(random_normal(tokens * channels, 1, 2.0f));
          const auto weight = random_normal(channels * k, 2);
          const auto bias = with_bias ? random_normal(channels, 3) : std::vector<float>{};
          const auto want = reference::causal_conv(x, weight, bias, silu, seqlen, channels, k);
          const auto x_device = upload_padded(stream.compute_dtype(), x, tokens, channels, left, 8);
          const auto y = poisoned_padded(stream.compute_dtype(), tokens, channels, left, 8);
          const auto weight_device = upload_as<float>(weight, channels, k);
          const auto bias_device = with_bias ? upload_as<float>(bias, 1, channels) : Array<float>{};
          causal_conv(x_device.view, weight_device, bias_device, silu, seqlen, y.view, stream);
          expect_close(download_inside(y), want.y, tolerance(want, k));
        }
}

// The k-th last weight times a lone 1: y says which row every weight reads, and no sequence reads
// another.
TEST_P(CausalConvTest, ReadsTheRowsBefore) {
  constexpr std::int64_t seqlen = 6;
  constexpr std::int64_t k = 4;
  std::vector<float> x(2 * seqlen, 0.0f);
  x[4] = 1.0f;  // two rows before the first sequence's end
  x[seqlen] = 0.5f;
  const auto y = poisoned(stream.compute_dtype(), 2 * seqlen, 1);
  causal_conv(upload(x, 2 * seqlen, 1), upload_as<float>({8.0f, 4.0f, 2.0f, 1.0f}, 1, k), {}, false,
              seqlen, y, stream);
  const std::vector<float> want{0, 0, 0, 0, 1, 2, 0.5f, 1, 2, 4, 0, 0};
  EXPECT_EQ(download(y), want);
}

TEST_P(CausalConvTest, SlicesAreTheirColumns) {
  constexpr std::int64_t tokens = 34;
  for (const HeadSlices slices :
       {HeadSlices{1, 8, 8}, HeadSlices{3, 16, 48}, HeadSlices{2, 5, 11}, HeadSlices{4, 8, 12}}) {
    SCOPED_TRACE(testing::Message()
                 << slices.heads << " slices of " << slices.head_dim << " every " << slices.stride);
    const std::int64_t channels = slices.heads * slices.head_dim;
    const std::int64_t width = slices.heads * slices.stride;
    const auto x = round_to_compute(random_normal(tokens * width, 1));
    std::vector<float> inside;
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t c = 0; c < channels; ++c)
        inside.push_back(x[static_cast<std::size_t>(
            t * width + c / slices.head_dim * slices.stride + c % slices.head_dim)]);
    const auto weight = upload_as<float>(random_normal(channels * 4, 2), channels, 4);
    const auto want = poisoned(stream.compute_dtype(), tokens, channels);
    causal_conv(upload(inside, tokens, channels), weight, {}, true, tokens / 2, want, stream);
    const auto y = poisoned_padded(stream.compute_dtype(), tokens, channels, 8, 8);
    causal_conv_slices(upload(x, tokens, width), slices, weight, {}, true, tokens / 2, y.view,
                       stream);
    EXPECT_EQ(count_different(download_inside(y), download(want)), 0u);
  }
}

// A sequence's result does not depend on those beside it.
TEST_P(CausalConvTest, SequencesStandAlone) {
  constexpr std::int64_t seqlen = 50;
  constexpr std::int64_t channels = 40;
  const auto x = round_to_compute(random_normal(3 * seqlen * channels, 1));
  const auto weight = upload_as<float>(random_normal(channels * 4, 2), channels, 4);
  const auto all = poisoned(stream.compute_dtype(), 3 * seqlen, channels);
  const auto x_device = upload(x, 3 * seqlen, channels);
  causal_conv(x_device, weight, {}, true, seqlen, all, stream);
  const auto together = download(all);
  const auto alone = poisoned(stream.compute_dtype(), seqlen, channels);
  causal_conv(x_device.view.row_range(seqlen, seqlen), weight, {}, true, seqlen, alone, stream);
  const auto second = download(alone);
  EXPECT_TRUE(std::equal(second.begin(), second.end(), together.begin() + seqlen * channels));
}

TEST_P(CausalConvTest, AcceptsNoTokens) {
  const TensorArray x(stream.compute_dtype(), 0, 8, stream),
      y(stream.compute_dtype(), 0, 8, stream);
  const auto weight = upload_as<float>(random_normal(32, 1), 8, 4);
  EXPECT_NO_THROW(causal_conv(x, weight, {}, true, 5, y, stream));
  EXPECT_NO_THROW(stream.synchronize());
}

TEST_P(CausalConvTest, RefusesInconsistentArguments) {
  const DType type = stream.compute_dtype();
  const TensorArray x(type, 6, 8, stream), y(type, 6, 8, stream), tall(type, 7, 8, stream),
      half(DType::f16, 6, 8, stream);
  const Array<float> weight(8, 4, stream), few(7, 4, stream), bias(1, 8, stream);
  const auto conv = [&](ConstTensor from, Matrix<const float> w, Matrix<const float> b,
                        std::int64_t seqlen,
                        Tensor to) { causal_conv(from, w, b, false, seqlen, to, stream); };
  EXPECT_THROW(conv(half, weight, bias, 3, y), std::invalid_argument);
  EXPECT_THROW(conv(x, few, bias, 3, y), std::invalid_argument);
  EXPECT_THROW(conv(x, weight.view.col_range(0, 3), bias, 3, y), std::invalid_argument);
  EXPECT_THROW(conv(x, weight, weight, 3, y), std::invalid_argument);
  EXPECT_THROW(conv(x, weight, bias, 4, y), std::invalid_argument);
  EXPECT_THROW(conv(x, weight, bias, 0, y), std::invalid_argument);
  EXPECT_THROW(conv(x, weight, bias, 3, tall), std::invalid_argument);
  EXPECT_THROW(conv(x, weight, bias, 3, x), std::invalid_argument);
  for (const HeadSlices slices : {HeadSlices{0, 8, 8}, HeadSlices{2, 4, 3}, HeadSlices{2, 4, 5}})
    EXPECT_THROW(causal_conv_slices(x, slices, weight, bias, false, 3, y, stream),
                 std::invalid_argument);
  EXPECT_NO_THROW(conv(x, weight, bias, 3, y));
}

INSTANTIATE_TEST_SUITE_P(Backends, CausalConvTest, testing::ValuesIn(backends()), backend_name);

}  // namespace

}  // namespace qpipe
