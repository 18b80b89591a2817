#include "kernels/linears.h"

#include <algorithm>

#include "kernels/linear.h"
#include "tests/kernels/forward_checks.h"
#include "tests/reference/forward.h"

namespace qpipe {

namespace {

struct Shape {
  std::int64_t rows, in, out;
  bool bias;
};

class LinearsTest : public ForwardTest {
 protected:
  // Experts with few and many rows, some without; widths that are multiples of eight and some that
  // are not.
  const std::vector<Shape> shapes{
      {1, 64, 96, false},    {0, 64, 96, false},    {37, 64, 96, true}, {200, 576, 304, false},
      {0, 8, 8, true},       {3, 2048, 64, true},   {5, 7, 11, true},   {129, 65, 257, false},
      {130, 128, 128, true}, {16, 1000, 24, false}, {64, 8, 8, true},   {2, 24, 1, false},
      {300, 256, 520, true}};

  // A product's matrices, the same whatever stands beside it.
  struct Operands {
    std::vector<float> x, weight, bias;
    Padded x_device;
    TensorArray weight_device, bias_device;
  };

  Operands operands(Shape shape, unsigned seed) {
    Operands made{round_to_compute(random_normal(shape.rows * shape.in, 3 * seed + 1)),
                  round_to_compute(random_normal(shape.out * shape.in, 3 * seed + 2)),
                  shape.bias ? round_to_compute(random_normal(shape.out, 3 * seed + 3, 20.0f))
                             : std::vector<float>{},
                  {},
                  {},
                  {}};
    const std::int64_t padding = shape.in % 8 == 0 ? 8 : 3;
    made.x_device =
        upload_padded(stream.compute_dtype(), made.x, shape.rows, shape.in, padding, padding);
    made.weight_device = upload(made.weight, shape.out, shape.in);
    if (shape.bias) made.bias_device = upload(made.bias, 1, shape.out);
    return made;
  }

  Padded output(Shape shape, DType type) {
    const std::int64_t padding = shape.out % 8 == 0 ? 8 : 3;
    return poisoned_padded(type, shape.rows, shape.out, padding, padding);
  }

  static Product product(const Operands& from, const Padded& y) {
    return {from.x_device.view, from.weight_device, from.bias_device, y.view};
  }

  std::vector<float> alone(const Operands& from, Shape shape, DType type) {
    const auto y = output(shape, type);
    linears({product(from, y)}, stream);
    return download_inside(y);
  }

  // linear_test's bound for any order of summation.
  void expect_product(const Operands& from, Shape shape, const std::vector<float>& got,
                      DType type) {
    const auto want =
        reference::linear(from.x, from.weight, from.bias, shape.rows, shape.in, shape.out);
    auto tolerance = reference::linear(absolute(from.x), absolute(from.weight), absolute(from.bias),
                                       shape.rows, shape.in, shape.out);
    for (std::size_t i = 0; i < tolerance.size(); ++i)
      tolerance[i] = 2.0 * static_cast<double>(shape.in + 4) * single * tolerance[i] +
                     roundoff(type) * std::abs(want[i]);
    expect_close(got, want, tolerance);
  }

  std::vector<DType> output_types() const {
    return stream.on_cuda() ? std::vector<DType>{DType::bf16, DType::f32}
                            : std::vector<DType>{DType::f32};
  }
};

TEST_P(LinearsTest, MatchTheReferenceTogetherInAnyOrderAndAlone) {
  for (const DType type : output_types()) {
    std::vector<Operands> from;
    for (std::size_t i = 0; i < shapes.size(); ++i)
      from.push_back(operands(shapes[i], static_cast<unsigned>(i)));
    const auto run = [&](const std::vector<std::size_t>& order) {
      std::vector<Padded> y;
      std::vector<Product> products;
      for (const Shape& shape : shapes) y.push_back(output(shape, type));
      for (const std::size_t i : order) products.push_back(product(from[i], y[i]));
      linears(products, stream);
      std::vector<std::vector<float>> values;
      for (std::size_t i = 0; i < shapes.size(); ++i) values.push_back(download_inside(y[i]));
      return values;
    };
    std::vector<std::size_t> order(shapes.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    const auto together = run(order);
    std::reverse(order.begin(), order.end());
    const auto reversed = run(order);
    std::shuffle(order.begin(), order.end(), std::mt19937(3));
    const auto shuffled = run(order);
    for (std::size_t i = 0; i < shapes.size(); ++i) {
      SCOPED_TRACE(testing::Message()
                   << shapes[i].rows << " x " << shapes[i].in << " -> " << shapes[i].out
                   << (shapes[i].bias ? ", bias" : "") << ", y " << name_of(type));
      expect_product(from[i], shapes[i], together[i], type);
      EXPECT_EQ(count_different(reversed[i], together[i]), 0u);
      EXPECT_EQ(count_different(shuffled[i], together[i]), 0u);
      EXPECT_EQ(count_different(alone(from[i], shapes[i], type), together[i]), 0u);
    }
  }
}

// Beside equal and other shapes, as a block's experts have them, and without them.
TEST_P(LinearsTest, BitsDoNotDependOnTheNeighbours) {
  const DType type = stream.compute_dtype();
  const Shape shape{70, 1536, 256, false};
  const auto first = operands(shape, 1);
  const auto bits = alone(first, shape, type);
  struct Neighbours {
    std::size_t count;
    std::int64_t rows, step;  // the first one's rows, and how many more each further one has
  };
  for (const auto& [neighbours, rows, step] :
       {Neighbours{1, 1, 0}, {1, 70, 0}, {3, 70, 0}, {7, 1, 37}, {40, 1, 37}}) {
    std::vector<Operands> from;
    std::vector<Padded> y;
    std::vector<Product> products;
    for (std::size_t i = 0; i < neighbours; ++i) {
      const Shape other{rows + step * static_cast<std::int64_t>(i), 1536, 256, false};
      from.push_back(operands(other, static_cast<unsigned>(10 + i)));
      y.push_back(output(other, type));
    }
    for (std::size_t i = 0; i < neighbours; ++i) products.push_back(product(from[i], y[i]));
    const auto own = output(shape, type);
    products.insert(products.begin() + static_cast<std::ptrdiff_t>(neighbours / 2),
                    product(first, own));
    linears(products, stream);
    EXPECT_EQ(count_different(download_inside(own), bits), 0u)
        << neighbours << " neighbours of " << rows << " rows and more";
  }
}

// Beyond what one launch takes along; sums of small integers are exact in any order.
TEST_P(LinearsTest, TakeHundredsOfProducts) {
  constexpr std::size_t count = 300;
  constexpr std::int64_t in = 64;
  constexpr std::int64_t out = 48;
  std::mt19937 generator(7);
  std::uniform_int_distribution<int> digit(-2, 2);
  const auto integers = [&](std::int64_t size) {
    std::vector<float> values(static_cast<std::size_t>(size));
    for (float& value : values) value = static_cast<float>(digit(generator));
    return values;
  };
  std::vector<std::vector<double>> want;
  std::vector<TensorArray> memory;
  std::vector<TensorArray> y;
  std::vector<Product> products;
  memory.reserve(3 * count);
  y.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    const auto rows = static_cast<std::int64_t>(i * 7 % 20);
    const auto x = integers(rows * in);
    const auto weight = integers(out * in);
    const auto bias = i % 3 == 0 ? std::vector<float>{} : integers(out);
    want.push_back(reference::linear(x, weight, bias, rows, in, out));
    const auto keep = [&](TensorArray array) -> ConstTensor {
      memory.push_back(std::move(array));
      return memory.back();
    };
    const auto x_view = keep(upload(x, rows, in));
    const auto weight_view = keep(upload(weight, out, in));
    const auto bias_view = bias.empty() ? ConstTensor{} : keep(upload(bias, 1, out));
    y.push_back(poisoned(stream.compute_dtype(), rows, out));
    products.push_back({x_view, weight_view, bias_view, y.back().view});
  }
  linears(products, stream);
  for (std::size_t i = 0; i < count; ++i) {
    std::vector<double> tolerance;
    for (const double value : want[i])
      tolerance.push_back(std::abs(value) <= 256.0 ? 0.0 : epsilon() * std::abs(value));
    expect_close(download(y[i]), want[i], tolerance);
  }
}

TEST_P(LinearsTest, OnTheCpuTheyAreLinear) {
  if (stream.on_cuda()) GTEST_SKIP() << "CPU only";
  const Shape shape{37, 64, 96, true};
  const auto from = operands(shape, 1);
  const auto y = output(shape, DType::f32);
  linear(from.x_device.view, from.weight_device, from.bias_device, y.view, stream);
  EXPECT_EQ(count_different(alone(from, shape, DType::f32), download_inside(y)), 0u);
}

TEST_P(LinearsTest, AcceptNoProducts) {
  EXPECT_NO_THROW(linears({}, stream));
  const Shape empty{0, 8, 16, true};
  const auto from = operands(empty, 1);
  const auto y = output(empty, stream.compute_dtype());
  EXPECT_NO_THROW(linears({product(from, y), product(from, y)}, stream));
  EXPECT_NO_THROW(stream.synchronize());
}

TEST_P(LinearsTest, RefuseInconsistentArguments) {
  const DType type = stream.compute_dtype();
  const TensorArray x(type, 4, 8, stream), weight(type, 16, 8, stream), bias(type, 1, 16, stream),
      y(type, 4, 16, stream), y32(DType::f32, 4, 16, stream);
  const TensorArray narrow(type, 16, 7, stream), short_bias(type, 1, 15, stream),
      wide_y(type, 4, 24, stream), long_y(type, 5, 16, stream), half(DType::f16, 4, 16, stream),
      half_x(DType::f16, 4, 8, stream);
  const Product good{x, weight, bias, y};
  const auto call = [&](const Product& p) { linears({good, p}, stream); };
  EXPECT_THROW(call({x, narrow, bias, y}), std::invalid_argument);
  EXPECT_THROW(call({x, weight, short_bias, y}), std::invalid_argument);
  EXPECT_THROW(call({x, weight, bias, wide_y}), std::invalid_argument);
  EXPECT_THROW(call({x, weight, bias, long_y}), std::invalid_argument);
  EXPECT_THROW(call({x, weight, bias, half}), std::invalid_argument);
  EXPECT_THROW(call({half_x, weight, bias, y}), std::invalid_argument);
  if (stream.on_cuda()) {
    EXPECT_THROW(call({x, weight, bias, y32}), std::invalid_argument) << "y of two types";
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, LinearsTest, testing::ValuesIn(backends()), backend_name);

}  // namespace

}  // namespace qpipe
