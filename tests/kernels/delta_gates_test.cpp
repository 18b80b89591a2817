#include "kernels/delta_gates.h"

#include "tests/kernels/forward_checks.h"
#include "tests/reference/recurrent.h"

namespace qpipe {

namespace {

struct Case {
  HeadSlices slices;
  std::int64_t heads;
};

class DeltaGatesTest : public ForwardTest {
 protected:
  static constexpr std::int64_t tokens = 37;
  const std::vector<Case> cases{{{1, 4, 4}, 4},  {{1, 64, 64}, 4}, {{2, 3, 6}, 6},
                                {{1, 1, 1}, 1},  {{5, 3, 7}, 15},  {{1, 4096, 4096}, 32},
                                {{16, 3, 6}, 48}};

  // Values far from 0 on both sides, too.
  std::vector<float> gates(std::int64_t count) const {
    std::vector<float> x = random_normal(count, 1, 4.0f);
    const float far[] = {0.0f, 30.0f, -30.0f, 60.0f};
    for (std::size_t i = 0; i < std::min(x.size(), std::size(far)); ++i) x[i] = far[i];
    return round_to_compute(x);
  }

  static std::vector<float> inside(const std::vector<float>& x, const HeadSlices& slices) {
    std::vector<float> values;
    const std::int64_t width = slices.heads * slices.stride;
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t c = 0; c < slices.heads * slices.head_dim; ++c)
        values.push_back(x[static_cast<std::size_t>(
            t * width + c / slices.head_dim * slices.stride + c % slices.head_dim)]);
    return values;
  }
};

// A handful of roundings; an exponent's error is multiplied with it, and a sum's by a slope of at
// most 1.
TEST_P(DeltaGatesTest, LogDecayMatchesTheReference) {
  for (const auto& [slices, heads] : cases) {
    SCOPED_TRACE(testing::Message() << slices.heads << " slices of " << slices.head_dim << " every "
                                    << slices.stride << " for " << heads << " heads");
    const std::int64_t channels = slices.heads * slices.head_dim;
    const auto x = gates(tokens * slices.heads * slices.stride);
    const auto a_log = random_normal(heads, 2);
    const auto dt_bias = random_normal(channels, 3);
    const auto want = reference::log_decay(inside(x, slices), a_log, dt_bias);
    Array<float> g(tokens, channels + 1, stream);
    const auto view = g.view.col_range(1, channels);
    log_decay(upload(x, tokens, slices.heads * slices.stride), slices,
              upload_as<float>(a_log, 1, heads), upload_as<float>(dt_bias, 1, channels), view,
              stream);
    const auto wide = download_as(g.view);
    std::vector<float> got;
    std::vector<double> tolerance;
    for (std::int64_t t = 0; t < tokens; ++t)
      got.insert(got.end(), wide.begin() + t * (channels + 1) + 1,
                 wide.begin() + (t + 1) * (channels + 1));
    for (const double value : want) tolerance.push_back(128.0 * single * std::abs(value) + 1e-30);
    expect_close(got, want, tolerance);
  }
}

TEST_P(DeltaGatesTest, WriteStrengthMatchesTheReference) {
  for (const auto& [slices, heads] : cases) {
    const std::int64_t channels = slices.heads * slices.head_dim;
    const auto x = gates(tokens * slices.heads * slices.stride);
    const auto want = reference::write_strength(inside(x, slices));
    Array<float> beta(tokens, channels, stream);
    write_strength(upload(x, tokens, slices.heads * slices.stride), slices, beta, stream);
    std::vector<double> tolerance;
    for (const double value : want) tolerance.push_back(128.0 * single * std::abs(value));
    expect_close(download_as(beta.view), want, tolerance);
  }
}

TEST_P(DeltaGatesTest, AcceptsNoTokens) {
  const TensorArray x(stream.compute_dtype(), 0, 4, stream);
  const Array<float> g(0, 4, stream), a_log(1, 2, stream), dt_bias(1, 4, stream);
  EXPECT_NO_THROW(log_decay(x, {1, 4, 4}, a_log, dt_bias, g, stream));
  EXPECT_NO_THROW(write_strength(x, {1, 4, 4}, g, stream));
  EXPECT_NO_THROW(stream.synchronize());
}

TEST_P(DeltaGatesTest, RefusesInconsistentArguments) {
  const TensorArray x(stream.compute_dtype(), 3, 4, stream), half(DType::f16, 3, 4, stream);
  const Array<float> g(3, 4, stream), few(3, 3, stream), tall(4, 4, stream), three(1, 3, stream),
      two(1, 2, stream), four(1, 4, stream);
  EXPECT_THROW(log_decay(half, {1, 4, 4}, two, four, g, stream), std::invalid_argument);
  EXPECT_THROW(log_decay(x, {1, 5, 5}, two, four, g, stream), std::invalid_argument);
  EXPECT_THROW(log_decay(x, {2, 2, 1}, two, four, g, stream), std::invalid_argument);
  EXPECT_THROW(log_decay(x, {1, 4, 4}, three, four, g, stream), std::invalid_argument);
  EXPECT_THROW(log_decay(x, {1, 4, 4}, two, three, g, stream), std::invalid_argument);
  EXPECT_THROW(log_decay(x, {1, 4, 4}, two, four, few, stream), std::invalid_argument);
  EXPECT_THROW(write_strength(x, {1, 4, 4}, tall, stream), std::invalid_argument);
  EXPECT_NO_THROW(log_decay(x, {1, 4, 4}, two, four, g, stream));
}

INSTANTIATE_TEST_SUITE_P(Backends, DeltaGatesTest, testing::ValuesIn(backends()), backend_name);

}  // namespace

}  // namespace qpipe
