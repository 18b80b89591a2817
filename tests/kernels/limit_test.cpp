#include "kernels/limit.h"

#include "tests/kernels/forward_checks.h"

namespace qpipe {

namespace {

class LimitTest : public ForwardTest {
 protected:
  const std::vector<std::int64_t> widths{1, 7, 8, 64, 257, 2056, 4099};
  static constexpr std::int64_t tokens = 5;

  std::vector<float> inputs(DType type, std::int64_t count) const {
    auto x = random_normal(count, 1, 3.0f);
    const float far[] = {0.0f, 2.0f, -2.0f, 1e-6f, 1e4f, -1e4f};
    for (std::size_t i = 0; i < std::min(x.size(), std::size(far)); ++i)
      x[x.size() - 1 - i] = far[i];
    return type == stream.compute_dtype() ? round_to_compute(x) : x;
  }

  // Every type that is allowed, at aligned columns and others: operation(x, type, values).
  template <class Operation>
  void for_each_form(Operation operation) {
    for (const DType type : {stream.compute_dtype(), DType::f32})
      for (const std::int64_t left : {3, 8})
        for (const std::int64_t cols : widths) {
          SCOPED_TRACE(testing::Message()
                       << name_of(type) << ", " << cols << " columns from column " << left);
          const auto values = inputs(type, tokens * cols);
          operation(upload_padded(type, values, tokens, cols, left, 8), type, values);
        }
  }
};

TEST_P(LimitTest, ClampIsExact) {
  for (const float limit : {2.0f, 0.0f, 1e5f})
    for_each_form([&](const Padded& x, DType, const std::vector<float>& values) {
      clamp(x.view, limit, stream);
      std::vector<double> want;
      for (const float value : values)
        want.push_back(std::min(std::max(static_cast<double>(value), -static_cast<double>(limit)),
                                static_cast<double>(limit)));
      expect_close(download_inside(x), want, std::vector<double>(want.size(), 0.0));
    });
}

// x / cap, tanh and the product round; tanh errs by 2 ulp. |d (cap tanh(x / cap))| ≤ |dx|.
TEST_P(LimitTest, SoftCapMatchesTheReference) {
  for (const float cap : {30.0f, 2.5f})
    for_each_form([&](const Padded& x, DType type, const std::vector<float>& values) {
      soft_cap(x.view, cap, stream);
      std::vector<double> want;
      std::vector<double> tolerance;
      for (const float value : values) {
        want.push_back(cap * std::tanh(static_cast<double>(value) / cap));
        tolerance.push_back(8.0 * single * std::min<double>(std::abs(value), cap) +
                            roundoff(type) * std::abs(want.back()));
      }
      expect_close(download_inside(x), want, tolerance);
    });
}

TEST_P(LimitTest, KeepsNaN) {
  const auto x = poisoned(DType::f32, 2, 5);
  clamp(x, 1.0f, stream);
  soft_cap(x, 1.0f, stream);
  for (const float value : download(x)) EXPECT_TRUE(std::isnan(value));
}

TEST_P(LimitTest, AcceptsNoTokens) {
  const TensorArray x(stream.compute_dtype(), 0, 8, stream);
  EXPECT_NO_THROW(clamp(x, 1.0f, stream));
  EXPECT_NO_THROW(soft_cap(x, 1.0f, stream));
  EXPECT_NO_THROW(stream.synchronize());
}

TEST_P(LimitTest, RefusesInconsistentArguments) {
  const TensorArray x(stream.compute_dtype(), 4, 8, stream), half(DType::f16, 4, 8, stream);
  EXPECT_THROW(clamp(half, 1.0f, stream), std::invalid_argument);
  EXPECT_THROW(clamp(x, -1.0f, stream), std::invalid_argument);
  EXPECT_THROW(soft_cap(half, 1.0f, stream), std::invalid_argument);
  EXPECT_THROW(soft_cap(x, 0.0f, stream), std::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(Backends, LimitTest, testing::ValuesIn(backends()), backend_name);

}  // namespace

}  // namespace qpipe
