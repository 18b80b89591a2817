#include "kernels/linear.h"

#include <omp.h>

#include "tests/kernels/forward_checks.h"
#include "tests/reference/forward.h"

namespace qpipe {

namespace {

class LinearTest : public ForwardTest {
 protected:
  struct Shape {
    std::int64_t tokens, in, out;
  };
  // Tiles are 256 × 256 on the CPU; ragged, single and exact ones.
  const std::vector<Shape> shapes{{1, 1, 1},       {1, 7, 5},      {3, 64, 1},      {5, 1000, 3},
                                  {16, 8, 24},     {129, 65, 257}, {256, 256, 256}, {200, 576, 300},
                                  {257, 128, 520}, {64, 2048, 96}};

  // A bound for any order of summation: γ = 2 (in + 4) 2^-24 times Σ|x||w| + |b|; the 2 allows for
  // tensor cores, which truncate.
  std::vector<double> accumulation_error(const std::vector<float>& x,
                                         const std::vector<float>& weight,
                                         const std::vector<float>& bias, Shape shape) const {
    auto tolerance = reference::linear(absolute(x), absolute(weight), absolute(bias), shape.tokens,
                                       shape.in, shape.out);
    for (double& value : tolerance) value *= 2.0 * static_cast<double>(shape.in + 4) * single;
    return tolerance;
  }

  void check(Shape shape, bool with_bias, DType y_type) {
    SCOPED_TRACE(testing::Message() << shape.tokens << " x " << shape.in << " -> " << shape.out
                                    << (with_bias ? ", bias" : "") << ", y " << name_of(y_type));
    const auto x = round_to_compute(random_normal(shape.tokens * shape.in, 1));
    const auto weight = round_to_compute(random_normal(shape.out * shape.in, 2));
    const auto bias =
        with_bias ? round_to_compute(random_normal(shape.out, 3, 20.0f)) : std::vector<float>{};
    const auto x_device = upload_padded(stream.compute_dtype(), x, shape.tokens, shape.in);
    const auto weight_device = upload(weight, shape.out, shape.in);
    const auto bias_device = with_bias ? upload(bias, 1, shape.out) : TensorArray{};
    const auto error = accumulation_error(x, weight, bias, shape);
    const auto want = reference::linear(x, weight, bias, shape.tokens, shape.in, shape.out);

    const auto y = poisoned_padded(y_type, shape.tokens, shape.out);
    linear(x_device.view, weight_device, bias_device, y.view, stream);
    auto tolerance = error;
    for (std::size_t i = 0; i < want.size(); ++i)
      tolerance[i] += roundoff(y_type) * std::abs(want[i]);
    expect_close(download_inside(y), want, tolerance);

    constexpr float alpha = -0.75f;
    auto old = random_normal(shape.tokens * shape.out, 4, 30.0f);
    if (y_type == stream.compute_dtype()) old = round_to_compute(old);
    const auto sum = upload_padded(y_type, old, shape.tokens, shape.out);
    linear_add(x_device.view, weight_device, bias_device, alpha, sum.view, stream);
    auto want_sum = want;
    tolerance = error;
    for (std::size_t i = 0; i < want.size(); ++i) {
      want_sum[i] = old[i] + alpha * want[i];
      // One more rounding of the partial sum where there is a bias.
      const double partial =
          with_bias ? want_sum[i] - alpha * static_cast<double>(bias[i % bias.size()]) : 0.0;
      tolerance[i] +=
          (roundoff(y_type) + 2.0 * single) * (std::abs(want_sum[i]) + std::abs(partial)) +
          2.0 * single * std::abs(old[i]);
    }
    expect_close(download_inside(sum), want_sum, tolerance);
  }
};

TEST_P(LinearTest, MatchesTheReference) {
  for (const Shape shape : shapes)
    for (const bool with_bias : {false, true}) check(shape, with_bias, stream.compute_dtype());
}

TEST_P(LinearTest, WritesFloat32) {
  for (const Shape shape : shapes)
    for (const bool with_bias : {false, true}) check(shape, with_bias, DType::f32);
}

// Products and sums of small integers are exact in float32, in any order.
TEST_P(LinearTest, IsExactOnIntegers) {
  std::mt19937 generator(7);
  std::uniform_int_distribution<int> digit(-8, 8);
  const Shape shape{131, 250, 259};
  std::vector<float> x(static_cast<std::size_t>(shape.tokens * shape.in));
  std::vector<float> weight(static_cast<std::size_t>(shape.out * shape.in));
  for (float& value : x) value = static_cast<float>(digit(generator));
  for (float& value : weight) value = static_cast<float>(digit(generator));
  const auto want = reference::linear(x, weight, {}, shape.tokens, shape.in, shape.out);
  const auto y = poisoned(DType::f32, shape.tokens, shape.out);
  linear(upload(x, shape.tokens, shape.in), upload(weight, shape.out, shape.in), {}, y, stream);
  expect_close(download(y), want, std::vector<double>(want.size(), 0.0));
}

TEST_P(LinearTest, RowsAreIndependentAndRepeatable) {
  const Shape shape{150, 320, 200};
  auto x = round_to_compute(random_normal(shape.tokens * shape.in, 1));
  const auto weight = upload(random_normal(shape.out * shape.in, 2), shape.out, shape.in);
  const auto run = [&] {
    const auto y = poisoned(stream.compute_dtype(), shape.tokens, shape.out);
    linear(upload(x, shape.tokens, shape.in), weight, {}, y, stream);
    return download(y);
  };
  const auto first = run();
  EXPECT_EQ(count_different(first, run()), 0u);
  for (std::int64_t i = 0; i < shape.in; ++i)
    x[static_cast<std::size_t>(70 * shape.in + i)] = 100.0f;
  const auto changed = run();
  EXPECT_EQ(count_different({first.begin(), first.begin() + 70 * shape.out},
                            {changed.begin(), changed.begin() + 70 * shape.out}),
            0u);
  EXPECT_EQ(count_different({first.begin() + 71 * shape.out, first.end()},
                            {changed.begin() + 71 * shape.out, changed.end()}),
            0u);
  EXPECT_GT(count_different(first, changed), 190u);
}

TEST_P(LinearTest, BitsDoNotDependOnThreads) {
  if (stream.on_cuda()) GTEST_SKIP() << "CPU only";
  const Shape shape{300, 333, 600};
  const auto x = upload(random_normal(shape.tokens * shape.in, 1), shape.tokens, shape.in);
  const auto weight = upload(random_normal(shape.out * shape.in, 2), shape.out, shape.in);
  std::vector<std::vector<float>> results;
  const int threads = omp_get_max_threads();
  for (const int count : {1, 2, 5}) {
    omp_set_num_threads(count);
    const auto y = poisoned(DType::f32, shape.tokens, shape.out);
    linear(x, weight, {}, y, stream);
    results.push_back(download(y));
  }
  omp_set_num_threads(threads);
  EXPECT_EQ(count_different(results[0], results[1]), 0u);
  EXPECT_EQ(count_different(results[0], results[2]), 0u);
}

TEST_P(LinearTest, AcceptsNoTokens) {
  const auto weight = upload(random_normal(40, 1), 5, 8);
  const TensorArray x(stream.compute_dtype(), 0, 8, stream);
  const TensorArray y(stream.compute_dtype(), 0, 5, stream);
  EXPECT_NO_THROW(linear(x, weight, {}, y, stream));
  EXPECT_NO_THROW(linear_add(x, weight, {}, 1.0f, y, stream));
  EXPECT_NO_THROW(stream.synchronize());
}

TEST_P(LinearTest, RefusesInconsistentArguments) {
  const DType type = stream.compute_dtype();
  const TensorArray x(type, 4, 8, stream), weight(type, 5, 8, stream), bias(type, 1, 5, stream),
      y(type, 4, 5, stream);
  const TensorArray narrow(type, 5, 7, stream), short_bias(type, 1, 4, stream),
      wide_y(type, 4, 6, stream), long_y(type, 5, 5, stream);
  const TensorArray half(DType::f16, 4, 5, stream), half_x(DType::f16, 4, 8, stream);
  for (const bool add : {false, true}) {
    const auto call = [&](ConstTensor x_, ConstTensor weight_, ConstTensor bias_, Tensor y_) {
      return add ? linear_add(x_, weight_, bias_, 1.0f, y_, stream)
                 : linear(x_, weight_, bias_, y_, stream);
    };
    EXPECT_THROW(call(x, narrow, bias, y), std::invalid_argument);
    EXPECT_THROW(call(x, weight, short_bias, y), std::invalid_argument);
    EXPECT_THROW(call(x, weight, bias, wide_y), std::invalid_argument);
    EXPECT_THROW(call(x, weight, bias, long_y), std::invalid_argument);
    EXPECT_THROW(call(x, weight, bias, half), std::invalid_argument);
    EXPECT_THROW(call(half_x, weight, bias, y), std::invalid_argument);
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, LinearTest, testing::ValuesIn(backends()), backend_name);

}  // namespace

}  // namespace qpipe
