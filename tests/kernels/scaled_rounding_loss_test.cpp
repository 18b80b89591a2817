#include "kernels/scaled_rounding_loss.h"

#include <cmath>

#include "kernels/scaled_rounding.h"
#include "tests/kernels/weights_of.h"
#include "tests/reference/awq.h"

namespace qpipe {
namespace {

class ScaledRoundingLossTest : public WeightsTest {
 protected:
  // XᵀX of correlated tokens, column c times factor[c].
  static std::vector<float> hessian(std::int64_t d, const std::vector<float>& factor) {
    const std::int64_t tokens = 70;
    std::vector<float> x = random_normal(tokens * d, 1);
    for (std::size_t i = x.size() - 1; i > 0; --i) x[i] = (x[i] + 0.5f * x[i - 1]);
    std::vector<float> h(static_cast<std::size_t>(d * d));
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t i = 0; i < d; ++i)
        for (std::int64_t j = 0; j < d; ++j)
          h[static_cast<std::size_t>(i * d + j)] +=
              x[static_cast<std::size_t>(t * d + i)] * x[static_cast<std::size_t>(t * d + j)];
    for (std::int64_t i = 0; i < d; ++i)
      for (std::int64_t j = 0; j < d; ++j)
        h[static_cast<std::size_t>(i * d + j)] *=
            factor[static_cast<std::size_t>(i)] * factor[static_cast<std::size_t>(j)];
    return h;
  }
  std::vector<float> positive(std::int64_t count, unsigned seed) {
    std::vector<float> s = random_normal(count, seed);
    for (float& x : s) x = std::exp(0.5f * x);
    return s;
  }
  // In double precision, from scaled_rounding's own weights.
  double expected(const TensorArray& w, Matrix<const float> s, std::int64_t group_size,
                  const GridOptions& grid, const std::vector<float>& h, std::int64_t begin,
                  std::int64_t count) {
    const std::int64_t d = w.view.cols;
    const Array<float> rounded(count, d, stream);
    scaled_rounding(w.view.row_range(begin, count), s, group_size, grid, rounded.view, stream);
    const std::vector<float> got = download(rounded.view);
    const std::vector<float> all = download_weights(w);
    std::vector<double> delta;
    for (std::size_t i = 0; i < got.size(); ++i)
      delta.push_back(static_cast<double>(got[i]) - all[static_cast<std::size_t>(begin * d) + i]);
    return reference::gram_loss(delta, {h.begin(), h.end()}, d);
  }
  void compare(std::int64_t rows, std::int64_t d, std::int64_t group_size, std::int64_t candidates,
               std::int64_t row_block, const GridOptions& grid, DType type, float weight_unit,
               const std::vector<float>& factor) {
    const std::vector<float> h = hessian(d, factor);
    std::vector<float> values = random_normal(rows * d, 2);
    for (float& x : values) x *= weight_unit;
    const TensorArray w = upload_weights(values, rows, d, type, d);
    const Array<float> s = upload_as(positive(candidates * d, 3), candidates, d);
    const std::int64_t blocks = (rows + row_block - 1) / row_block;
    const Array<double> loss =
        upload_as(std::vector<double>(static_cast<std::size_t>(blocks * candidates), 7.0), blocks,
                  candidates);
    const Array<float> hessian_on_device = upload_as(h, d, d);
    scaled_rounding_losses(w, s, group_size, grid, gram_matrix(hessian_on_device, stream),
                           row_block, loss, stream);
    const std::vector<double> got = download_as(loss.view);
    for (std::int64_t b = 0; b < blocks; ++b)
      for (std::int64_t c = 0; c < candidates; ++c) {
        const double exact = expected(w, s.view.row_range(c, 1), group_size, grid, h, b * row_block,
                                      std::min(row_block, rows - b * row_block));
        ASSERT_GT(exact, 0.0);
        // bfloat16 rounds δ, h and their product to 8 bits each.
        EXPECT_NEAR(got[static_cast<std::size_t>(b * candidates + c)] / exact, 1.0,
                    stream.on_cuda() ? 3 * 0x1p-9 : 1e-5)
            << rows << " x " << d << ", block " << b << ", candidate " << c;
      }
  }
};

TEST_P(ScaledRoundingLossTest, IsTheGramLossOfTheRoundedWeights) {
  struct Size {
    std::int64_t rows, d, group_size, candidates, row_block;
  };
  for (const Size& size :
       {Size{1, 32, 32, 1, 512}, {50, 96, 32, 3, 32}, {36, 256, 128, 5, 16}, {9, 288, 288, 2, 4}})
    for (const DType type : types)
      for (const bool symmetric : {false, true})
        compare(size.rows, size.d, size.group_size, size.candidates, size.row_block,
                {4, symmetric, 0.0f}, type, 1.0f,
                std::vector<float>(static_cast<std::size_t>(size.d), 1.0f));
  compare(10, 640, 640, 23, 64, {4, false, 0.0f}, DType::f32, 1.0f,
          std::vector<float>(640, 1.0f));  // more than are tried at once
  compare(33, 384, 128, 5, 16, {8, true, 0.0f}, DType::bf16, 0.02f, std::vector<float>(384, 1.0f));
}

// More than one panel of h.
TEST_P(ScaledRoundingLossTest, WideHessian) {
  compare(3, 2304, 128, 2, 2, {4, false, 0.0f}, DType::bf16, 0.02f, std::vector<float>(2304, 1.0f));
}

// Inputs and weights far from one: columns of very different size, and dead ones.
TEST_P(ScaledRoundingLossTest, LargeAndSmallMagnitudes) {
  const std::int64_t d = 256;
  for (const float unit : {1e-6f, 1.0f, 1e4f})
    for (const float weight_unit : {1e-3f, 30.0f}) {
      std::vector<float> factor(static_cast<std::size_t>(d), unit);
      for (std::size_t c = 0; c < factor.size(); c += 7) factor[c] *= 1000.0f;
      for (std::size_t c = 3; c < factor.size(); c += 11) factor[c] = 0.0f;
      compare(40, d, 64, 4, 40, {4, false, 0.0f}, DType::f32, weight_unit, factor);
    }
}

TEST_P(ScaledRoundingLossTest, SameBitsForABlockAlone) {
  const std::int64_t d = 128;
  const TensorArray w = upload_weights(random_normal(100 * d, 4), 100, d, DType::bf16, d + 8);
  const Array<float> s = upload_as(positive(20 * d, 5), 20, d);
  const Array<float> hessian_on_device =
      upload_as(hessian(d, std::vector<float>(static_cast<std::size_t>(d), 1.0f)), d, d);
  const GramMatrix h = gram_matrix(hessian_on_device, stream);
  const Array<double> all(4, 20, stream);
  scaled_rounding_losses(w, s, 64, {}, h, 32, all, stream);
  for (std::int64_t b = 0; b < 4; ++b) {
    const Array<double> alone(1, 20, stream);
    scaled_rounding_losses(w.view.row_range(b * 32, std::min<std::int64_t>(32, 100 - b * 32)), s,
                           64, {}, h, 32, alone, stream);
    EXPECT_EQ(download_as(alone.view), download_as(all.view.row_range(b, 1))) << "block " << b;
  }
}

TEST_P(ScaledRoundingLossTest, NotFiniteAndWrongShapes) {
  const std::int64_t d = 64;
  std::vector<float> values = random_normal(4 * d, 6);
  values[70] = std::nanf("");
  const Array<float> s = upload_as(positive(d, 7), 1, d);
  const Array<float> hessian_on_device =
      upload_as(hessian(d, std::vector<float>(static_cast<std::size_t>(d), 1.0f)), d, d);
  const GramMatrix h = gram_matrix(hessian_on_device, stream);
  const Array<double> loss(4, 1, stream);
  scaled_rounding_losses(upload_as(values, 4, d).view, s, 32, {}, h, 1, loss, stream);
  const std::vector<double> got = download_as(loss.view);
  EXPECT_TRUE(std::isfinite(got[0]));
  EXPECT_FALSE(std::isfinite(got[1]));
  const Array<float> w(4, d, stream);
  scaled_rounding_losses(w.view.row_range(0, 0), s, 32, {}, h, 32, loss.view.row_range(0, 0),
                         stream);
  EXPECT_THROW(scaled_rounding_losses(w.view, s, 48, {}, h, 1, loss, stream),
               std::invalid_argument);
  EXPECT_THROW(scaled_rounding_losses(w.view, s, 32, {}, h, 3, loss, stream),
               std::invalid_argument);
  EXPECT_THROW(scaled_rounding_losses(w.view, s, 32, {4, false, 2.4f}, h, 1, loss, stream),
               std::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(Backends, ScaledRoundingLossTest, testing::ValuesIn(backends()),
                         backend_name);

}  // namespace
}  // namespace qpipe
