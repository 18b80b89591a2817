#include "kernels/gated_norm.h"

#include "tests/kernels/forward_checks.h"
#include "tests/reference/recurrent.h"

namespace qpipe {

namespace {

class GatedNormTest : public ForwardTest {
 protected:
  static constexpr std::int64_t tokens = 5;
  static constexpr float eps = 1e-5f;

  // The sum of d squares grows like √d; a gate's exponent has an error of 2 |z|; the rest is a
  // handful. Then y is rounded once.
  std::vector<double> tolerance(const reference::Exact& want, std::int64_t d) const {
    std::vector<double> result;
    for (const double value : want)
      result.push_back(((std::sqrt(static_cast<double>(d)) + 64.0) * single + epsilon()) *
                           std::abs(value) +
                       1e-36);
    return result;
  }
};

TEST_P(GatedNormTest, MatchesTheReference) {
  struct Case {
    std::int64_t heads, d;
    HeadSlices slices;  // of the gate
  };
  for (const auto& [heads, d, slices] :
       {Case{4, 8, {1, 32, 32}}, Case{4, 8, {2, 16, 96}}, Case{3, 5, {3, 5, 7}},
        Case{1, 1, {1, 1, 1}}, Case{32, 128, {16, 256, 768}}, Case{2, 257, {1, 514, 514}},
        Case{9, 80, {9, 80, 80}}, Case{1, 2048, {1, 2048, 2048}}})
    for (const NormGate f : {NormGate::silu, NormGate::sigmoid}) {
      SCOPED_TRACE(testing::Message() << heads << " heads of " << d << ", gate in slices of "
                                      << slices.head_dim << " every " << slices.stride);
      const std::int64_t width = heads * d;
      const std::int64_t gate_width = slices.heads * slices.stride;
      auto x = random_normal(tokens * width, 1);
      for (std::int64_t t = 0; t < tokens; ++t)  // one head's norm applied to another shows
        for (std::int64_t c = 0; c < width; ++c)
          x[static_cast<std::size_t>(t * width + c)] *= static_cast<float>(1 + 10 * (c / d) + t);
      x = round_to_compute(x);
      const auto gate = round_to_compute(random_normal(tokens * gate_width, 2, 4.0f));
      std::vector<float> inside;
      for (std::int64_t t = 0; t < tokens; ++t)
        for (std::int64_t c = 0; c < width; ++c)
          inside.push_back(gate[static_cast<std::size_t>(
              t * gate_width + c / slices.head_dim * slices.stride + c % slices.head_dim)]);
      const auto weight = random_normal(d, 3);
      const auto want = reference::gated_rms_norm(x, weight, eps, inside, f);
      const auto x_device = upload_padded(stream.compute_dtype(), x, tokens, width, 8, 16);
      const auto gate_device = upload(gate, tokens, gate_width);
      const auto weight_device = upload_as<float>(weight, 1, d);
      const auto y = poisoned_padded(stream.compute_dtype(), tokens, width, 3, 5);
      gated_rms_norm(x_device.view, weight_device, eps, gate_device, slices, f, y.view, stream);
      const auto apart = download_inside(y);
      expect_close(apart, want, tolerance(want, d));
      gated_rms_norm(x_device.view, weight_device, eps, gate_device, slices, f, x_device.view,
                     stream);
      if (stream.on_cuda())  // other vectors, other sums
        expect_close(download_inside(x_device), want, tolerance(want, d));
      else
        EXPECT_EQ(count_different(download_inside(x_device), apart), 0u) << "in place";
    }
}

TEST_P(GatedNormTest, AcceptsNoTokens) {
  const TensorArray x(stream.compute_dtype(), 0, 8, stream);
  const Array<float> weight(1, 4, stream);
  EXPECT_NO_THROW(gated_rms_norm(x, weight, eps, x, {1, 8, 8}, NormGate::silu, x, stream));
  EXPECT_NO_THROW(stream.synchronize());
}

TEST_P(GatedNormTest, RefusesInconsistentArguments) {
  const DType type = stream.compute_dtype();
  const TensorArray x(type, 3, 8, stream), tall(type, 4, 8, stream), half(DType::f16, 3, 8, stream);
  const Array<float> weight(1, 4, stream), three(1, 3, stream), two_rows(2, 4, stream);
  const auto norm = [&](ConstTensor from, Matrix<const float> w, ConstTensor gate,
                        HeadSlices slices, Tensor to) {
    gated_rms_norm(from, w, eps, gate, slices, NormGate::sigmoid, to, stream);
  };
  EXPECT_THROW(norm(half, weight, x, {1, 8, 8}, x), std::invalid_argument);
  EXPECT_THROW(norm(x, three, x, {1, 8, 8}, x), std::invalid_argument);
  EXPECT_THROW(norm(x, two_rows, x, {1, 8, 8}, x), std::invalid_argument);
  EXPECT_THROW(norm(x, weight, tall, {1, 8, 8}, x), std::invalid_argument);
  EXPECT_THROW(norm(x, weight, x, {1, 4, 4}, x), std::invalid_argument);
  EXPECT_THROW(norm(x, weight, x, {2, 4, 5}, x), std::invalid_argument);
  EXPECT_THROW(norm(x, weight, x, {1, 8, 8}, tall), std::invalid_argument);
  EXPECT_NO_THROW(norm(x, weight, x, {1, 8, 8}, x));
}

INSTANTIATE_TEST_SUITE_P(Backends, GatedNormTest, testing::ValuesIn(backends()), backend_name);

}  // namespace

}  // namespace qpipe
