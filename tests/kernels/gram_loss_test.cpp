#include "kernels/gram_loss.h"

#include "tests/kernels/weights_of.h"
#include "tests/reference/awq.h"

namespace qpipe {
namespace {

class GramLossTest : public WeightsTest {};

TEST_P(GramLossTest, IsThatOfTheTokens) {
  const std::int64_t tokens = 60;
  for (const auto& [rows, d] :
       {std::pair<std::int64_t, std::int64_t>{1, 32}, {50, 96}, {520, 64}, {7, 2080}, {5, 33}})
    for (const DType type : types) {
      const std::vector<float> x = random_normal(tokens * d, 3);
      std::vector<float> h(static_cast<std::size_t>(d * d));
      for (std::int64_t i = 0; i < d; ++i)
        for (std::int64_t j = 0; j < d; ++j)
          for (std::int64_t t = 0; t < tokens; ++t)
            h[static_cast<std::size_t>(i * d + j)] +=
                x[static_cast<std::size_t>(t * d + i)] * x[static_cast<std::size_t>(t * d + j)];
      const std::vector<float> a = rounded_to(type, random_normal(rows * d, 4));
      const std::vector<float> b = random_normal(rows * d, 5);
      std::vector<double> delta;
      for (std::size_t i = 0; i < a.size(); ++i) delta.push_back(static_cast<double>(a[i]) - b[i]);
      const double expected = reference::gram_loss(delta, {h.begin(), h.end()}, d);
      const Array<float> h_on_device = upload_as(h, d, d);
      const Array<double> loss = upload_as(std::vector<double>{7.0}, 1, 1);
      const TensorArray a_on_device = upload_weights(a, rows, d, type, d + 8);
      gram_loss(a_on_device, upload_as(b, rows, d).view, gram_matrix(h_on_device, stream), loss,
                stream);
      // bfloat16 rounds δ, h and their product to 8 bits each.
      EXPECT_NEAR(download_as(loss.view).front(), expected,
                  (stream.on_cuda() ? 3 * 0x1p-9 : 1e-5) * expected)
          << rows << " rows, d " << d;
    }
}

TEST_P(GramLossTest, NoRowsAndWrongShapes) {
  const Array<float> h = upload_as(std::vector<float>(64, 1.0f), 8, 8);
  const GramMatrix gram = gram_matrix(h, stream);
  const Array<double> loss = upload_as(std::vector<double>{7.0}, 1, 1);
  const Array<float> w = upload_as(std::vector<float>(16, 1.0f), 2, 8);
  gram_loss(w.view.row_range(0, 0), w.view.row_range(0, 0), gram, loss, stream);
  EXPECT_EQ(download_as(loss.view).front(), 0.0);
  EXPECT_THROW(gram_loss(w.view, w.view.row_range(0, 1), gram, loss, stream),
               std::invalid_argument);
  EXPECT_THROW(gram_loss(w.view.col_range(0, 4), w.view.col_range(0, 4), gram, loss, stream),
               std::invalid_argument);
  EXPECT_THROW(gram_matrix(w.view, stream), std::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(Backends, GramLossTest, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace qpipe
