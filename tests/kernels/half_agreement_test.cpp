#include "kernels/half_agreement.h"

#include "tests/kernels/backends.h"

namespace qpipe {
namespace {

class HalfAgreementTest : public BackendTest {};

TEST_P(HalfAgreementTest, IsThePartThatIsNotChance) {
  const std::int64_t rows = 500;
  const std::int64_t d = 40;
  const auto signal = random_normal(rows * d, 1);
  const auto first = random_normal(rows * d, 2);
  const auto second = random_normal(rows * d, 3);
  std::vector<float> a(signal.size());
  std::vector<float> b(signal.size());
  // Column k: halves of a signal of power 4 and errors of power (k / 10)² each; then one half
  // alone, opposite halves, and nothing.
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t k = 0; k < d; ++k) {
      const std::int64_t i = r * d + k;
      const float error = static_cast<float>(k) / 10.0f;
      a[i] = k == d - 1 ? 0.0f : signal[i] + error * first[i];
      b[i] = k == d - 1 || k == d - 3 ? 0.0f : k == d - 2 ? -a[i] : signal[i] + error * second[i];
    }
  const Array<float> agreement(1, d, stream);
  half_agreement(upload_as(a, rows, d), upload_as(b, rows, d), agreement, stream);
  const auto got = download_as(agreement.view);
  EXPECT_EQ(got[0], 1.0f);
  for (std::int64_t k = 0; k < d - 3; ++k) {
    double noise = 0.0;
    double power = 0.0;
    for (std::int64_t r = 0; r < rows; ++r) {
      const double x = a[r * d + k];
      const double y = b[r * d + k];
      noise += (x - y) * (x - y);
      power += (x + y) * (x + y);
    }
    EXPECT_NEAR(got[k], std::max(0.0, 1.0 - noise / power), 1e-6) << k;
    const double variance = static_cast<double>(k * k) / 100.0;
    EXPECT_NEAR(got[k], 4.0 / (4.0 + 2.0 * variance), 0.15) << k;
  }
  EXPECT_EQ(got[d - 3], 0.0f);
  EXPECT_EQ(got[d - 2], 0.0f);
  EXPECT_EQ(got[d - 1], 0.0f);
}

INSTANTIATE_TEST_SUITE_P(Backends, HalfAgreementTest, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace qpipe
