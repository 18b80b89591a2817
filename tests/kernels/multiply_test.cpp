#include "kernels/multiply.h"

#include "tests/kernels/forward_checks.h"

namespace qpipe {

namespace {

class MultiplyTest : public ForwardTest {};

TEST_P(MultiplyTest, ScaleRowsMatchesTheReference) {
  constexpr std::int64_t seqlen = 6;
  const auto factor = random_normal(seqlen, 3);
  const auto factor_device = upload_as<float>(factor, 1, seqlen);
  for (const std::int64_t tokens : {4, 18, 70002})
    for (const std::int64_t left : {3, 8})
      for (const std::int64_t cols : {1, 7, 8, 64, 257, 2056}) {
        if (tokens > 100 && cols > 8) continue;
        SCOPED_TRACE(testing::Message()
                     << tokens << " tokens of " << cols << " columns from column " << left);
        const auto x = round_to_compute(random_normal(tokens * cols, 1));
        const auto device = upload_padded(stream.compute_dtype(), x, tokens, cols, left, 8);
        scale_rows(device.view, factor_device, stream);
        std::vector<double> want;
        std::vector<double> tolerance;
        for (std::int64_t t = 0; t < tokens; ++t)
          for (std::int64_t c = 0; c < cols; ++c) {
            want.push_back(static_cast<double>(factor[static_cast<std::size_t>(t % seqlen)]) *
                           x[static_cast<std::size_t>(t * cols + c)]);
            tolerance.push_back((epsilon() + single) * std::abs(want.back()));
          }
        expect_close(download_inside(device), want, tolerance);
      }
}

TEST_P(MultiplyTest, GatesInSlicesAreTheirColumns) {
  constexpr std::int64_t tokens = 5;
  for (const HeadSlices slices : {HeadSlices{1, 8, 8}, HeadSlices{4, 32, 64}, HeadSlices{3, 5, 11},
                                  HeadSlices{2, 8, 12}, HeadSlices{16, 256, 512}}) {
    SCOPED_TRACE(testing::Message()
                 << slices.heads << " slices of " << slices.head_dim << " every " << slices.stride);
    const std::int64_t cols = slices.heads * slices.head_dim;
    const std::int64_t width = slices.heads * slices.stride;
    const auto gate = round_to_compute(random_normal(tokens * width, 1, 3.0f));
    const auto x = round_to_compute(random_normal(tokens * cols, 2));
    std::vector<float> inside;
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t c = 0; c < cols; ++c)
        inside.push_back(gate[static_cast<std::size_t>(
            t * width + c / slices.head_dim * slices.stride + c % slices.head_dim)]);
    const auto want = upload(x, tokens, cols);
    gate_sigmoid(upload(inside, tokens, cols), want, stream);
    const auto device = upload_padded(stream.compute_dtype(), x, tokens, cols, 8, 8);
    gate_sigmoid_slices(upload(gate, tokens, width), slices, device.view, stream);
    EXPECT_EQ(count_different(download_inside(device), download(want)), 0u);
  }
}

// width 1: a gate for each element; else one for each head. 8 roundings, and 2 |gate| of the
// exponent.
TEST_P(MultiplyTest, GateSigmoidMatchesTheReference) {
  struct Case {
    std::int64_t heads, width;
  };
  constexpr std::int64_t tokens = 5;
  for (const auto& [heads, width] :
       {Case{1, 1}, Case{7, 1}, Case{64, 1}, Case{257, 1}, Case{2056, 1}, Case{1, 16}, Case{3, 5},
        Case{9, 24}, Case{16, 128}, Case{3, 2056}})
    for (const std::int64_t left : {3, 8}) {
      SCOPED_TRACE(testing::Message()
                   << heads << " gates for " << width << " columns each, from column " << left);
      auto gate = random_normal(tokens * heads, 1, 3.0f);
      const float far[] = {0.0f, 100.0f, -100.0f, -87.0f};
      for (std::size_t i = 0; i < std::min(gate.size(), std::size(far)); ++i) gate[i] = far[i];
      gate = round_to_compute(gate);
      const auto x = round_to_compute(random_normal(tokens * heads * width, 2, 3.0f));
      const auto gate_device = upload_padded(stream.compute_dtype(), gate, tokens, heads, left, 8);
      const auto device = upload_padded(stream.compute_dtype(), x, tokens, heads * width, left, 8);
      gate_sigmoid(gate_device.view, device.view, stream);
      std::vector<double> want;
      std::vector<double> tolerance;
      for (std::size_t i = 0; i < x.size(); ++i) {
        const double g = gate[i / static_cast<std::size_t>(width)];
        want.push_back(x[i] / (1.0 + std::exp(-g)));
        tolerance.push_back(
            (single * (8.0 + 2.0 * std::abs(g)) + epsilon()) * std::abs(want.back()) + 1e-37);
      }
      expect_close(download_inside(device), want, tolerance);
    }
}

// One product, rounded once.
TEST_P(MultiplyTest, MultiplyMatchesTheReference) {
  constexpr std::int64_t tokens = 5;
  for (const bool one : {false, true})
    for (const std::int64_t left : {3, 8})
      for (const std::int64_t cols : {1, 7, 64, 257, 2056}) {
        SCOPED_TRACE(testing::Message() << cols << " columns from column " << left);
        const auto factor = round_to_compute(random_normal(one ? 1 : tokens * cols, 1));
        const auto x = round_to_compute(random_normal(tokens * cols, 2));
        const auto factor_device =
            one ? upload_padded(stream.compute_dtype(), factor, 1, 1, 0, 0)
                : upload_padded(stream.compute_dtype(), factor, tokens, cols, left, 8);
        const auto device = upload_padded(stream.compute_dtype(), x, tokens, cols, left, 8);
        multiply(factor_device.view, device.view, stream);
        std::vector<double> want;
        std::vector<double> tolerance;
        for (std::size_t i = 0; i < x.size(); ++i) {
          want.push_back(double{x[i]} * factor[one ? 0 : i]);
          tolerance.push_back((single + epsilon()) * std::abs(want.back()));
        }
        expect_close(download_inside(device), want, tolerance);
      }
}

TEST_P(MultiplyTest, AcceptsNoTokens) {
  const DType type = stream.compute_dtype();
  const TensorArray x(type, 0, 8, stream), gate(type, 0, 2, stream);
  EXPECT_NO_THROW(scale_rows(x, upload_as<float>({1.0f}, 1, 1), stream));
  EXPECT_NO_THROW(gate_sigmoid(gate, x, stream));
  EXPECT_NO_THROW(stream.synchronize());
}

TEST_P(MultiplyTest, RefusesInconsistentArguments) {
  const DType type = stream.compute_dtype();
  const TensorArray x(type, 4, 8, stream), gate(type, 4, 3, stream), tall(type, 5, 8, stream),
      half(DType::f16, 4, 8, stream);
  const Array<float> square(2, 2, stream), factor(1, 2, stream);
  EXPECT_THROW(scale_rows(x, square, stream), std::invalid_argument);
  EXPECT_THROW(scale_rows(x, {}, stream), std::invalid_argument);
  EXPECT_THROW(scale_rows(half, factor, stream), std::invalid_argument);
  EXPECT_THROW(gate_sigmoid(gate, x, stream), std::invalid_argument);
  EXPECT_THROW(gate_sigmoid(tall, x, stream), std::invalid_argument);
  EXPECT_THROW(gate_sigmoid(half, x, stream), std::invalid_argument);
  EXPECT_THROW(gate_sigmoid_slices(half, {1, 8, 8}, x, stream), std::invalid_argument);
  EXPECT_THROW(gate_sigmoid_slices(x, {2, 4, 5}, x, stream), std::invalid_argument);
  EXPECT_THROW(gate_sigmoid_slices(x, {1, 4, 4}, x, stream), std::invalid_argument);
  EXPECT_THROW(gate_sigmoid_slices(tall, {1, 8, 8}, x, stream), std::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(Backends, MultiplyTest, testing::ValuesIn(backends()), backend_name);

}  // namespace

}  // namespace qpipe
