#include "kernels/token_selection.h"

#include <algorithm>
#include <numeric>

#include "tests/kernels/forward_checks.h"

namespace qpipe {

namespace {

class TokenSelectionTest : public ForwardTest {
 protected:
  struct Input {
    std::int64_t tokens, heads, d;
    std::vector<float> q, k, weight;
  };

  Input random_input(std::int64_t tokens, std::int64_t heads, std::int64_t d) {
    return {tokens,
            heads,
            d,
            round_to_compute(random_normal(tokens * heads * d, 1)),
            round_to_compute(random_normal(tokens * d, 2)),
            round_to_compute(random_normal(tokens * heads, 3))};
  }

  std::vector<std::uint32_t> select(const Input& x, std::int64_t top_k) {
    const DType type = stream.compute_dtype();
    const auto q = upload_padded(type, x.q, x.tokens, x.heads * x.d, 3, 2);
    const auto k = upload_padded(type, x.k, x.tokens, x.d, 3, 2);
    const auto weight = upload_padded(type, x.weight, x.tokens, x.heads, 3, 2);
    const std::int64_t words = selection_words(x.tokens);
    const auto selected = upload_as<std::uint32_t>(
        std::vector<std::uint32_t>(static_cast<std::size_t>(x.tokens * words), 0xdeadbeefu),
        x.tokens, words);
    select_tokens(q.view, k.view, weight.view, top_k, selected.view, stream);
    std::vector<std::uint32_t> bits(static_cast<std::size_t>(x.tokens * words));
    copy_to_host(bits.data(), selected.view.data, bits.size() * sizeof(std::uint32_t), stream);
    return bits;
  }

  // Scores in double precision, and of each the sum of its terms' magnitudes.
  static void scores(const Input& x, std::int64_t t, std::vector<double>& score,
                     std::vector<double>& magnitude) {
    score.assign(static_cast<std::size_t>(t + 1), 0.0);
    magnitude = score;
    for (std::int64_t j = 0; j <= t; ++j)
      for (std::int64_t h = 0; h < x.heads; ++h) {
        double product = 0.0;
        double absolute = 0.0;
        for (std::int64_t i = 0; i < x.d; ++i) {
          const double term =
              static_cast<double>(x.q[static_cast<std::size_t>((t * x.heads + h) * x.d + i)]) *
              x.k[static_cast<std::size_t>(j * x.d + i)];
          product += term;
          absolute += std::abs(term);
        }
        const double w = x.weight[static_cast<std::size_t>(t * x.heads + h)];
        score[static_cast<std::size_t>(j)] += w * std::max(0.0, product);
        magnitude[static_cast<std::size_t>(j)] += std::abs(w) * absolute;
      }
  }

  static bool has(const std::vector<std::uint32_t>& bits, std::int64_t tokens, std::int64_t t,
                  std::int64_t j) {
    const auto word = static_cast<std::size_t>(t * selection_words(tokens) + j / 32);
    return (bits[word] >> j % 32 & 1u) != 0;
  }
};

// The right number, none later than the token, and none left out whose score is larger than that of
// a chosen one by more than rounding.
TEST_P(TokenSelectionTest, ChoosesTheLargestScores) {
  struct Case {
    std::int64_t tokens, heads, d, top_k;
  };
  for (const auto& c :
       {Case{1, 1, 8, 1}, Case{40, 4, 16, 12}, Case{33, 3, 2, 1}, Case{65, 2, 64, 32},
        Case{300, 5, 128, 100}, Case{257, 1, 32, 256}, Case{64, 64, 128, 63}, Case{40, 2, 8, 40}}) {
    SCOPED_TRACE(testing::Message() << c.tokens << " tokens, " << c.heads << " heads of " << c.d
                                    << ", the best " << c.top_k);
    const Input x = random_input(c.tokens, c.heads, c.d);
    const auto bits = select(x, c.top_k);
    std::vector<double> score;
    std::vector<double> magnitude;
    for (std::int64_t t = 0; t < c.tokens; ++t) {
      scores(x, t, score, magnitude);
      std::int64_t chosen = 0;
      double least = std::numeric_limits<double>::infinity();
      double best_left_out = -std::numeric_limits<double>::infinity();
      double largest = 0.0;
      for (std::int64_t j = 0; j < 32 * selection_words(c.tokens); ++j) {
        if (j > t) {
          ASSERT_FALSE(has(bits, c.tokens, t, j)) << "token " << t << " sees " << j;
          continue;
        }
        const auto i = static_cast<std::size_t>(j);
        largest = std::max(largest, magnitude[i]);
        if (has(bits, c.tokens, t, j)) {
          ++chosen;
          least = std::min(least, score[i]);
        } else {
          best_left_out = std::max(best_left_out, score[i]);
        }
      }
      ASSERT_EQ(chosen, std::min(t + 1, c.top_k)) << "token " << t;
      const auto terms = static_cast<double>(c.d + c.heads + 2);
      ASSERT_LE(best_left_out, least + 2.0 * terms * single * largest) << "token " << t;
    }
  }
}

// Small integers are exact: of equal scores, those of ReLU's zeros among them, the earlier token.
TEST_P(TokenSelectionTest, TiesGoToTheEarlierToken) {
  constexpr std::int64_t tokens = 100;
  Input x{tokens, 1, 2, {}, {}, {}};
  for (std::int64_t t = 0; t < tokens; ++t) {
    x.q.insert(x.q.end(), {1.0f, 0.0f});
    x.k.insert(x.k.end(), {static_cast<float>(t % 4 - 2), 5.0f});
    x.weight.push_back(1.0f);
  }
  const auto bits = select(x, 30);
  for (std::int64_t t = 0; t < tokens; ++t) {
    std::vector<std::int64_t> order(static_cast<std::size_t>(t + 1));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [](std::int64_t a, std::int64_t b) {
      return std::max<std::int64_t>(0, a % 4 - 2) > std::max<std::int64_t>(0, b % 4 - 2);
    });
    order.resize(std::min<std::size_t>(order.size(), 30));
    for (std::int64_t j = 0; j <= t; ++j)
      EXPECT_EQ(has(bits, tokens, t, j), std::find(order.begin(), order.end(), j) != order.end())
          << "token " << t << " and " << j;
  }
}

TEST_P(TokenSelectionTest, RefusesOtherShapes) {
  const auto q = upload(poison(4 * 16), 4, 16);
  const auto k = upload(poison(4 * 8), 4, 8);
  const auto weight = upload(poison(4 * 2), 4, 2);
  const auto selected = upload_as<std::uint32_t>(std::vector<std::uint32_t>(4), 4, 1);
  EXPECT_THROW(select_tokens(k.view, k.view, weight.view, 2, selected.view, stream),
               std::invalid_argument);
  EXPECT_THROW(select_tokens(q.view, k.view, weight.view, 0, selected.view, stream),
               std::invalid_argument);
  EXPECT_THROW(select_tokens(q.view, k.view.row_range(0, 3), weight.view, 2, selected.view, stream),
               std::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(Backends, TokenSelectionTest, testing::ValuesIn(backends()), backend_name);

}  // namespace

}  // namespace qpipe
