#include "kernels/cross_entropy.h"

#include "tests/kernels/forward_checks.h"
#include "tests/reference/forward.h"

namespace qpipe {

namespace {

class CrossEntropyTest : public ForwardTest {
 protected:
  // Logits inside wider memory, nll poisoned.
  std::vector<float> run(const std::vector<float>& logits, const std::vector<std::int32_t>& target,
                         std::int64_t vocab) {
    const auto tokens = static_cast<std::int64_t>(target.size());
    const auto memory = upload_padded(DType::f32, logits, tokens, vocab);
    const auto target_device = upload_as<std::int32_t>(target, 1, tokens);
    const auto nll = upload_as<float>(poison(tokens), 1, tokens);
    cross_entropy(memory.view.as<float>(), target_device, nll, stream);
    return download_as<float>(nll.view);
  }

  // Rounding of x − max (relative to the largest logit), of the sum (√vocab in a chain), of exp and
  // log, and of the result.
  static std::vector<double> tolerance(const std::vector<float>& logits,
                                       const reference::Exact& want, std::int64_t vocab) {
    double largest = 0.0;
    for (const float value : logits)
      if (std::isfinite(value)) largest = std::max(largest, std::abs(static_cast<double>(value)));
    std::vector<double> result;
    for (const double value : want)
      result.push_back(
          2.0 * single *
          (std::abs(value) + 4.0 * largest + std::sqrt(static_cast<double>(vocab)) + 16.0));
    return result;
  }
};

TEST_P(CrossEntropyTest, MatchesTheReference) {
  for (const std::int64_t vocab : {1, 2, 7, 31, 32, 33, 255, 256, 257, 1000, 1025, 50257})
    for (const float sigma : {1.0f, 12.0f}) {
      SCOPED_TRACE(testing::Message() << "vocab " << vocab << ", sigma " << sigma);
      const std::int64_t tokens = 6;
      const auto logits = random_normal(tokens * vocab, 1, sigma);
      std::vector<std::int32_t> target{
          0, static_cast<std::int32_t>(vocab - 1), -1, static_cast<std::int32_t>(vocab / 2), -1, 0};
      const auto want = reference::cross_entropy(logits, target, tokens, vocab);
      const auto got = run(logits, target, vocab);
      expect_close(got, want, tolerance(logits, want, vocab));
      EXPECT_EQ(got[2], 0.0f);
      EXPECT_EQ(got[4], 0.0f);
    }
}

TEST_P(CrossEntropyTest, ManyRows) {
  constexpr std::int64_t tokens = 1031;
  constexpr std::int64_t vocab = 77;
  const auto logits = random_normal(tokens * vocab, 2, 4.0f);
  std::vector<std::int32_t> target;
  for (std::int64_t t = 0; t < tokens; ++t)
    target.push_back(static_cast<std::int32_t>((t * 31) % (vocab + 1)) - 1);
  const auto want = reference::cross_entropy(logits, target, tokens, vocab);
  expect_close(run(logits, target, vocab), want, tolerance(logits, want, vocab));
}

TEST_P(CrossEntropyTest, SubtractsTheMaximum) {
  // Without it exp overflows (above 88) or all terms vanish (below −103). Multiples of 1/16 keep
  // differences exact.
  for (const float base : {20000.0f, -20000.0f}) {
    std::vector<float> logits;
    for (int v = 0; v < 300; ++v) logits.push_back(base + 0.0625f * static_cast<float>(v % 97));
    const auto want = reference::cross_entropy(logits, {5}, 1, 300);
    const auto got = run(logits, {5}, 300);
    // The reference's own terms are exact here: only the result's subtraction from |base| may cost
    // 2^-24 · 20000 · 2.
    EXPECT_NEAR(got[0], want[0], 4.0 * single * 20000.0);
  }
}

TEST_P(CrossEntropyTest, KnownValues) {
  EXPECT_NEAR(run(std::vector<float>(50257, -3.5f), {50256}, 50257)[0], std::log(50257.0), 2e-5);
  EXPECT_EQ(run({4.25f}, {0}, 1)[0], 0.0f);
  std::vector<float> masked(700, -std::numeric_limits<float>::infinity());
  masked[3] = 1.0f;
  masked[699] = 1.0f;
  EXPECT_NEAR(run(masked, {699}, 700)[0], std::log(2.0), 1e-6);
}

TEST_P(CrossEntropyTest, KeepsNaNToItsRow) {
  auto logits = random_normal(3 * 300, 3);
  logits[300 + 250] = std::numeric_limits<float>::quiet_NaN();
  const auto nll = run(logits, {1, 2, 3}, 300);
  EXPECT_TRUE(std::isfinite(nll[0]));
  EXPECT_TRUE(std::isnan(nll[1]));
  EXPECT_TRUE(std::isfinite(nll[2]));
}

TEST_P(CrossEntropyTest, RefusesInconsistentArguments) {
  const Array<float> logits(4, 8, stream), nll(1, 4, stream), short_nll(1, 3, stream),
      column(4, 1, stream);
  const Array<std::int32_t> target(1, 4, stream), long_target(1, 5, stream);
  EXPECT_THROW(cross_entropy(logits, long_target, nll, stream), std::invalid_argument);
  EXPECT_THROW(cross_entropy(logits, target, short_nll, stream), std::invalid_argument);
  EXPECT_THROW(cross_entropy(logits, target, column, stream), std::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(Backends, CrossEntropyTest, testing::ValuesIn(backends()), backend_name);

}  // namespace

}  // namespace qpipe
