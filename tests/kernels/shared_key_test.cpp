#include "kernels/shared_key.h"

#include "tests/kernels/forward_checks.h"

namespace qpipe {

namespace {

class SharedKeyTest : public ForwardTest {};

// Every element is copied from where the heads' layout says, exactly.
TEST_P(SharedKeyTest, PutsTheKeyIntoEveryHead) {
  struct Case {
    std::int64_t tokens, heads, nope, shared, value;
  };
  for (const auto& c : {Case{3, 2, 16, 8, 24}, Case{5, 4, 3, 2, 7}, Case{1, 1, 0, 8, 8},
                        Case{4, 3, 8, 0, 8}, Case{2, 5, 8, 16, 0}, Case{7, 128, 128, 64, 128},
                        Case{70001, 1, 8, 8, 8}, Case{0, 2, 8, 8, 8}})
    for (const std::int64_t left : {3, 8}) {
      SCOPED_TRACE(testing::Message()
                   << c.tokens << " tokens, " << c.heads << " heads of " << c.nope << " + "
                   << c.shared << " and " << c.value << ", from column " << left);
      const std::int64_t own = c.nope + c.value;
      const std::int64_t wide = own + c.shared;
      const auto kv = round_to_compute(random_normal(c.tokens * c.heads * own, 1));
      const auto key = round_to_compute(random_normal(c.tokens * c.shared, 2));
      const DType type = stream.compute_dtype();
      const auto kv_device = upload_padded(type, kv, c.tokens, c.heads * own, left, 8);
      const auto key_device = upload_padded(type, key, c.tokens, c.shared, left, 8);
      const auto out = poisoned_padded(type, c.tokens, c.heads * wide, left, 8);
      insert_shared_key(kv_device.view, key_device.view, c.heads, c.nope, out.view, stream);
      std::vector<double> want;
      for (std::int64_t t = 0; t < c.tokens; ++t)
        for (std::int64_t h = 0; h < c.heads; ++h)
          for (std::int64_t i = 0; i < wide; ++i) {
            const bool is_shared = i >= c.nope && i < c.nope + c.shared;
            const std::int64_t column = i < c.nope ? i : i - c.shared;
            want.push_back(is_shared
                               ? key[static_cast<std::size_t>(t * c.shared + i - c.nope)]
                               : kv[static_cast<std::size_t>((t * c.heads + h) * own + column)]);
          }
      expect_close(download_inside(out), want, std::vector<double>(want.size(), 0.0));
    }
}

TEST_P(SharedKeyTest, RefusesOtherShapes) {
  const auto kv = upload(poison(2 * 12), 2, 12);
  const auto key = upload(poison(2 * 2), 2, 2);
  const auto out = upload(poison(2 * 18), 2, 18);
  EXPECT_NO_THROW(insert_shared_key(kv.view, key.view, 3, 2, out.view, stream));
  EXPECT_THROW(insert_shared_key(kv.view, key.view, 2, 2, out.view, stream), std::invalid_argument);
  EXPECT_THROW(insert_shared_key(kv.view, key.view, 3, 5, out.view, stream), std::invalid_argument);
  EXPECT_THROW(insert_shared_key(kv.view, key.view.row_range(0, 1), 3, 2, out.view, stream),
               std::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(Backends, SharedKeyTest, testing::ValuesIn(backends()), backend_name);

}  // namespace

}  // namespace qpipe
