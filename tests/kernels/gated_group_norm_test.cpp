#include "kernels/gated_group_norm.h"

#include "tests/kernels/forward_checks.h"
#include "tests/reference/forward.h"

namespace qpipe {

namespace {

class GatedGroupNormTest : public ForwardTest {};

// One element at a time, from the contract.
reference::Exact exact(const std::vector<float>& x, const std::vector<float>& z,
                       const std::vector<float>& weight, std::int64_t cols,
                       const GatedGroupNorm& norm) {
  const auto d = static_cast<std::size_t>(cols / norm.groups);
  reference::Exact y(x.size());
  for (std::size_t begin = 0; begin < x.size(); begin += d) {
    std::vector<double> f;
    double squares = 0.0;
    for (std::size_t i = begin; i < begin + d; ++i) {
      const double gate = z[i];
      const double sigmoid = 1.0 / (1.0 + std::exp(-gate));
      f.push_back(gate * sigmoid);
      squares += std::pow(x[i] * (norm.gate_first ? f.back() : 1.0), 2);
    }
    const double root = std::sqrt(squares / static_cast<double>(d) + static_cast<double>(norm.eps));
    for (std::size_t i = begin; i < begin + d; ++i)
      y[i] = x[i] * f[i - begin] / root * weight[i % weight.size()];
  }
  return y;
}

// Roundings of a sum of d terms of one sign grow like √d in a chain; 16 more for the gate and the
// products. Then the output is rounded once.
std::vector<double> tolerance_of(const reference::Exact& want, std::int64_t d, double epsilon) {
  std::vector<double> tolerance;
  for (const double value : want)
    tolerance.push_back(((std::sqrt(static_cast<double>(d)) + 16.0) * single + epsilon) *
                        std::abs(value));
  return tolerance;
}

TEST_P(GatedGroupNormTest, MatchesTheReference) {
  constexpr std::int64_t tokens = 5;
  for (const std::int64_t d : {1, 5, 64, 96, 257, 1024, 1032, 4100})
    for (const std::int64_t groups : {1, 3})
      for (const bool gate_first : {false, true})
        for (const std::int64_t padding : {3, 8}) {
          SCOPED_TRACE(testing::Message() << groups << " groups of " << d);
          const std::int64_t cols = groups * d;
          const GatedGroupNorm norm{groups, 1e-5f, gate_first};
          const DType type = stream.compute_dtype();
          const auto x = round_to_compute(random_normal(tokens * cols, 1, 3.0f));
          const auto z = round_to_compute(random_normal(tokens * cols, 2));
          const auto weight = round_to_compute(random_normal(cols, 3));
          const auto want = exact(x, z, weight, cols, norm);
          const auto x_device = upload_padded(type, x, tokens, cols, padding, padding);
          const auto z_device = upload_padded(type, z, tokens, cols, padding, padding);
          const auto w_device = upload(weight, 1, cols);
          const auto y = poisoned_padded(type, tokens, cols, padding, padding);
          gated_group_norm(x_device.view, z_device.view, w_device, norm, y.view, stream);
          const auto apart = download_inside(y);
          expect_close(apart, want, tolerance_of(want, d, epsilon()));
          const auto again = upload_padded(type, x, tokens, cols, padding, padding);
          gated_group_norm(again.view, z_device.view, w_device, norm, again.view, stream);
          EXPECT_EQ(count_different(download_inside(again), apart), 0u) << "in place of x";
          gated_group_norm(x_device.view, z_device.view, w_device, norm, z_device.view, stream);
          EXPECT_EQ(count_different(download_inside(z_device), apart), 0u) << "in place of z";
        }
}

// Where the gate closes, its group's other elements are what the norm is of.
TEST_P(GatedGroupNormTest, GatesBeforeOrBehindTheNorm) {
  const auto x = upload({3.0f, 4.0f}, 1, 2);
  const auto z = upload({-1000.0f, 64.0f}, 1, 2);  // silu = 0, 64
  const auto weight = upload({1.0f, 1.0f}, 1, 2);
  const TensorArray y(stream.compute_dtype(), 1, 2, stream);
  gated_group_norm(x, z, weight, {1, 0.0f, true}, y, stream);
  EXPECT_EQ(download(y)[0], 0.0f);
  EXPECT_NEAR(download(y)[1], std::sqrt(2.0), 2 * epsilon());
  gated_group_norm(x, z, weight, {1, 0.0f, false}, y, stream);
  EXPECT_EQ(download(y)[0], 0.0f);
  EXPECT_NEAR(download(y)[1], 64.0 * 4.0 / std::sqrt(12.5), 128 * epsilon());
}

TEST_P(GatedGroupNormTest, AcceptsNoTokens) {
  const TensorArray x(stream.compute_dtype(), 0, 8, stream),
      w(stream.compute_dtype(), 1, 8, stream);
  EXPECT_NO_THROW(gated_group_norm(x, x, w, {2}, x, stream));
  EXPECT_NO_THROW(stream.synchronize());
}

TEST_P(GatedGroupNormTest, RefusesInconsistentArguments) {
  const DType type = stream.compute_dtype();
  const TensorArray x(type, 3, 8, stream), w(type, 1, 8, stream), short_w(type, 1, 4, stream),
      narrow(type, 3, 7, stream), tall(type, 4, 8, stream), half(DType::f16, 3, 8, stream);
  EXPECT_NO_THROW(gated_group_norm(x, x, w, {2}, x, stream));
  EXPECT_THROW(gated_group_norm(x, x, short_w, {2}, x, stream), std::invalid_argument);
  EXPECT_THROW(gated_group_norm(x, x, w, {3}, x, stream), std::invalid_argument);
  EXPECT_THROW(gated_group_norm(x, x, w, {0}, x, stream), std::invalid_argument);
  EXPECT_THROW(gated_group_norm(x, x, tall, {2}, x, stream), std::invalid_argument);
  EXPECT_THROW(gated_group_norm(x, narrow, w, {2}, x, stream), std::invalid_argument);
  EXPECT_THROW(gated_group_norm(x, x, w, {2}, tall, stream), std::invalid_argument);
  EXPECT_THROW(gated_group_norm(half, x, w, {2}, x, stream), std::invalid_argument);
  EXPECT_THROW(gated_group_norm(x, x, w, {2}, half, stream), std::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(Backends, GatedGroupNormTest, testing::ValuesIn(backends()), backend_name);

}  // namespace

}  // namespace qpipe
