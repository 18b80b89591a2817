#include "kernels/diagonal.h"

#include "tests/kernels/backends.h"

namespace qpipe {
namespace {

using DiagonalTest = BackendTest;

TEST_P(DiagonalTest, OfAMatrix) {
  for (const std::int64_t d : {0, 1, 255, 256, 1031}) {
    std::vector<float> values(static_cast<std::size_t>(d * d), -1.0f);
    for (std::int64_t i = 0; i < d; ++i)
      values[static_cast<std::size_t>(i * (d + 1))] = static_cast<float>(i);
    Array<float> a(d, d, stream);
    Array<float> out(1, d, stream);
    copy_to_device(a.view.data, values.data(), a.memory.bytes(), stream);
    if (d > 0) diagonal(a, out, stream);
    std::vector<float> found(static_cast<std::size_t>(d));
    copy_to_host(found.data(), out.view.data, out.memory.bytes(), stream);
    for (std::int64_t i = 0; i < d; ++i)
      ASSERT_EQ(found[static_cast<std::size_t>(i)], static_cast<float>(i)) << d;
  }
}

// Past the rows that one launch's blocks take at once.
TEST_P(DiagonalTest, IdentityReplacesWhatWasThere) {
  for (const std::int64_t d : {0, 1, 3, 256, 257, 1500}) {
    std::vector<float> values(static_cast<std::size_t>(d * d), 7.0f);
    Array<float> a(d, d, stream);
    copy_to_device(a.view.data, values.data(), a.memory.bytes(), stream);
    set_identity(a, stream);
    copy_to_host(values.data(), a.view.data, a.memory.bytes(), stream);
    for (std::int64_t i = 0; i < d; ++i)
      for (std::int64_t j = 0; j < d; ++j)
        ASSERT_EQ(values[static_cast<std::size_t>(i * d + j)], i == j ? 1.0f : 0.0f)
            << d << ": " << i << ", " << j;
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, DiagonalTest, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace qpipe
