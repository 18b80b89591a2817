#include "kernels/triangular_inverse.h"

#include <cmath>

#include "tests/kernels/backends.h"

namespace qpipe {
namespace {

class TriangularInverseTest : public BackendTest {};

// Ones on the diagonal, zeros below, beside it what a Hessian's factor has: less than 1, less with
// the distance.
TEST_P(TriangularInverseTest, TimesTheMatrixIsTheIdentity) {
  for (const std::int64_t d : {1, 7, 128, 129, 300, 512, 700}) {
    auto n = random_normal(d * d, 5);
    for (std::int64_t i = 0; i < d; ++i)
      for (std::int64_t j = 0; j < d; ++j)
        n[i * d + j] = j < i    ? 0.0f
                       : i == j ? 1.0f
                                : 0.2f * n[i * d + j] / static_cast<float>(j - i + 1);
    const Array<float> inverse(d, d, stream);
    invert_unit_upper(upload_as(n, d, d), inverse, stream);
    const auto got = download_as(inverse.view);
    for (std::int64_t i = 0; i < d; ++i)
      for (std::int64_t j = 0; j < d; ++j) {
        if (j < i) {
          ASSERT_EQ(got[i * d + j], 0.0f) << d << ": " << i << ", " << j;
          continue;
        }
        double product = 0.0;
        for (std::int64_t k = i; k <= j; ++k)
          product += static_cast<double>(got[i * d + k]) * n[k * d + j];
        ASSERT_NEAR(product, i == j ? 1.0 : 0.0, 3e-6) << d << ": " << i << ", " << j;
      }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, TriangularInverseTest, testing::ValuesIn(backends()),
                         backend_name);

}  // namespace
}  // namespace qpipe
