#include "kernels/add.h"

#include "kernels/activation.h"
#include "tests/kernels/forward_checks.h"

namespace qpipe {

namespace {

class AddTest : public ForwardTest {
 protected:
  const std::vector<std::int64_t> widths{1, 7, 8, 64, 257, 2056};

  std::vector<float> inputs(DType type, std::int64_t count, unsigned seed) const {
    const auto x = random_normal(count, seed, 3.0f);
    return type == stream.compute_dtype() ? round_to_compute(x) : x;
  }

  static std::vector<double> tolerance(const std::vector<double>& want, double term, double sum,
                                       DType type) {
    std::vector<double> result;
    for (const double value : want)
      result.push_back(2.0 * single * (term + sum) + roundoff(type) * std::abs(value));
    return result;
  }
};

TEST_P(AddTest, AddScaledMatchesTheReference) {
  constexpr std::int64_t tokens = 5;
  for (const DType x_type : {stream.compute_dtype(), DType::f32})
    for (const DType y_type : {stream.compute_dtype(), DType::f32})
      for (const float alpha : {1.0f, -0.22f})
        for (const std::int64_t left : {3, 8})
          for (const std::int64_t cols : widths) {
            SCOPED_TRACE(testing::Message() << name_of(x_type) << " to " << name_of(y_type) << ", "
                                            << cols << " columns from column " << left);
            const auto x = inputs(x_type, tokens * cols, 1);
            const auto y = inputs(y_type, tokens * cols, 2);
            const auto x_device = upload_padded(x_type, x, tokens, cols, left, 8);
            const auto y_device = upload_padded(y_type, y, tokens, cols, 8, left);
            add_scaled(x_device.view, alpha, y_device.view, stream);
            std::vector<double> want;
            for (std::size_t i = 0; i < x.size(); ++i)
              want.push_back(static_cast<double>(alpha) * x[i] + y[i]);
            expect_close(download_inside(y_device), want, tolerance(want, 16.0, 16.0, y_type));
          }
}

// Position t mod seqlen of a table that begins two rows earlier (OPT), in every float type.
TEST_P(AddTest, AddRowsMatchesTheReference) {
  constexpr std::int64_t seqlen = 6;
  for (const DType type : {DType::f32, DType::f16, DType::bf16})
    for (const std::int64_t first_row : {0, 2})
      for (const std::int64_t tokens : {4, 6, 18, 70002})  // the last has more rows than a grid
        for (const std::int64_t cols : widths) {
          if (tokens > 100 && cols > 8) continue;
          SCOPED_TRACE(testing::Message() << name_of(type) << ", from row " << first_row << ", "
                                          << tokens << " tokens of " << cols);
          const std::int64_t rows = first_row + std::min(tokens, seqlen);
          const auto exact = upload_as<float>(random_normal(rows * cols, 1), rows, cols);
          TensorArray table(type, rows, cols, stream);
          convert(ConstTensor(exact.view), table, stream);
          TensorArray widened(DType::f32, rows, cols, stream);
          convert(table, widened, stream);
          const auto positions = download(widened);
          const auto y = inputs(stream.compute_dtype(), tokens * cols, 2);
          const auto y_device = upload_padded(stream.compute_dtype(), y, tokens, cols, 8, 8);
          add_rows(table, first_row, seqlen, y_device.view, stream);
          std::vector<double> want;
          for (std::int64_t t = 0; t < tokens; ++t)
            for (std::int64_t c = 0; c < cols; ++c)
              want.push_back(
                  static_cast<double>(y[static_cast<std::size_t>(t * cols + c)]) +
                  positions[static_cast<std::size_t>((first_row + t % seqlen) * cols + c)]);
          expect_close(download_inside(y_device), want,
                       tolerance(want, 8.0, 16.0, stream.compute_dtype()));
        }
}

TEST_P(AddTest, AcceptsNoTokens) {
  const TensorArray x(stream.compute_dtype(), 0, 8, stream),
      y(stream.compute_dtype(), 0, 8, stream), table(DType::f16, 4, 8, stream);
  EXPECT_NO_THROW(add_scaled(x, 1.0f, y, stream));
  EXPECT_NO_THROW(add_rows(table, 0, 16, y, stream));
  EXPECT_NO_THROW(stream.synchronize());
}

TEST_P(AddTest, RefusesInconsistentArguments) {
  const DType type = stream.compute_dtype();
  const TensorArray x(type, 4, 8, stream), y(type, 4, 8, stream), tall(type, 5, 8, stream),
      half(DType::f16, 4, 8, stream), narrow(type, 4, 7, stream),
      integers(DType::i32, 4, 8, stream);
  EXPECT_THROW(add_scaled(x, 1.0f, tall, stream), std::invalid_argument);
  EXPECT_THROW(add_scaled(half, 1.0f, y, stream), std::invalid_argument);
  EXPECT_NO_THROW(add_rows(x, 0, 4, y, stream));
  EXPECT_NO_THROW(add_rows(x, 0, 9, y, stream));  // four tokens, four positions
  EXPECT_THROW(add_rows(x, 1, 4, y, stream), std::invalid_argument);
  EXPECT_THROW(add_rows(x, -1, 2, y, stream), std::invalid_argument);
  EXPECT_THROW(add_rows(x, 0, 0, y, stream), std::invalid_argument);
  EXPECT_THROW(add_rows(narrow, 0, 4, y, stream), std::invalid_argument);
  EXPECT_THROW(add_rows(integers, 0, 4, y, stream), std::invalid_argument);
  EXPECT_THROW(add_rows(x, 0, 4, half, stream), std::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(Backends, AddTest, testing::ValuesIn(backends()), backend_name);

}  // namespace

}  // namespace qpipe
