#include "kernels/attention.h"

#include <omp.h>

#include <cmath>

#include "tests/kernels/forward_checks.h"
#include "tests/reference/forward.h"

namespace qpipe {

namespace {

enum class Side { by_side, interleaved };

HeadLayout make_layout(Side side, std::int64_t heads, std::int64_t kv_heads,
                       std::int64_t head_dim) {
  const std::int64_t group = heads / kv_heads;
  HeadLayout layout{heads,
                    kv_heads,
                    head_dim,
                    group * head_dim,
                    head_dim,
                    heads * head_dim,
                    (heads + kv_heads) * head_dim};
  if (side == Side::interleaved) {
    layout.q_group_stride = layout.kv_stride = (group + 2) * head_dim;
    layout.k_begin = group * head_dim;
    layout.v_begin = (group + 1) * head_dim;
  }
  return layout;
}

// q|k|v side by side, v heads of another width.
HeadLayout make_layout_with_values(std::int64_t heads, std::int64_t kv_heads, std::int64_t head_dim,
                                   std::int64_t v_dim) {
  HeadLayout layout = make_layout(Side::by_side, heads, kv_heads, head_dim);
  layout.kv_block = kv_heads;
  layout.v_dim = v_dim;
  return layout;
}

using Case = reference::AttentionCase;

Case make_case(HeadLayout layout, std::int64_t samples, std::int64_t seqlen) {
  Case c;
  c.layout = layout;
  c.samples = samples;
  c.seqlen = seqlen;
  c.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(layout.head_dim)));
  return c;
}

std::string describe(const Case& c) {
  return std::to_string(c.samples) + " x " + std::to_string(c.seqlen) + " tokens, " +
         std::to_string(c.layout.heads) + "/" + std::to_string(c.layout.kv_heads) + " heads of " +
         std::to_string(c.layout.head_dim) + ", q group stride " +
         std::to_string(c.layout.q_group_stride) + ", values of " +
         std::to_string(c.layout.value_dim()) + ", window " + std::to_string(c.window) +
         ", chunk " + std::to_string(c.chunk) + ", scale " + std::to_string(c.scale) + ", cap " +
         std::to_string(c.soft_cap) + ", values times " + std::to_string(c.value_scale) +
         (c.key_bias.empty() ? "" : ", key bias") + (c.sinks.empty() ? "" : ", sinks");
}

// ALiBi: slope_h · j, slopes 2^(−8 (h+1) / heads).
std::vector<float> alibi(std::int64_t heads, std::int64_t seqlen) {
  std::vector<float> bias;
  for (std::int64_t h = 0; h < heads; ++h)
    for (std::int64_t j = 0; j < seqlen; ++j)
      bias.push_back(static_cast<float>(
          std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(heads)) *
          static_cast<double>(j)));
  return bias;
}

class AttentionTest : public ForwardTest {
 protected:
  static std::int64_t tokens(const Case& c) { return c.samples * c.seqlen; }
  static std::int64_t out_width(const Case& c) { return c.layout.heads * c.layout.value_dim(); }

  std::vector<float> random_qkv(const Case& c, unsigned seed = 1) const {
    return round_to_compute(random_normal(tokens(c) * c.layout.width(), seed));
  }

  // out lies in poisoned memory with 8 columns more, qkv with 16 more.
  std::vector<float> run(const std::vector<float>& qkv, const Case& c) {
    const std::int64_t width = static_cast<std::int64_t>(qkv.size()) / tokens(c);
    const auto qkv_device = upload_padded(stream.compute_dtype(), qkv, tokens(c), width, 8, 8);
    const auto out = poisoned_padded(stream.compute_dtype(), tokens(c), out_width(c), 0, 8);
    AttentionOptions options;
    options.scale = static_cast<float>(c.scale);
    options.window = c.window;
    options.chunk = c.chunk;
    options.soft_cap = static_cast<float>(c.soft_cap);
    const auto bias = c.key_bias.empty() ? Array<float>{}
                                         : upload_as<float>(c.key_bias, c.layout.heads, c.seqlen);
    options.key_bias = bias.view;
    const auto sinks =
        c.sinks.empty() ? Array<float>{} : upload_as<float>(c.sinks, 1, c.layout.heads);
    options.sinks = sinks.view;
    options.value_scale = static_cast<float>(c.value_scale);
    const auto selected =
        c.selected.empty() ? Array<std::uint32_t>{}
                           : upload_as<std::uint32_t>(c.selected, tokens(c), (c.seqlen + 31) / 32);
    options.selected = selected.view;
    attention(qkv_device.view, c.layout, c.seqlen, options, out.view, stream);
    return download_inside(out);
  }

  // Where a sink outweighs all keys by more than e^88.
  static constexpr double smallest_output = 1e-37;

  // A score errs by δ = (head_dim + 6) 2^-24 · (scale Σ|q||k| + |bias|) + 8 · 2^-24 · cap (twice
  // for truncating tensor cores), p by the factor 2δ and the roundings of exp and of sums over
  // seqlen, out by that times Σ p|v|. On CUDA p is rounded to bfloat16 for the product with v,
  // hence one unit roundoff of Σ p|v|, and the output once more.
  void check(const Case& c) {
    SCOPED_TRACE(describe(c));
    const auto qkv = random_qkv(c);
    const auto want = reference::attention(qkv, c);
    std::vector<double> tolerance(want.out.size());
    const auto d = static_cast<std::size_t>(c.layout.value_dim());
    for (std::size_t i = 0; i < tolerance.size(); ++i) {
      const double delta =
          2.0 * single *
          (static_cast<double>(c.layout.head_dim + 6) * want.score[i / d] + 8.0 * c.soft_cap);
      const double p_error = 2.0 * delta + single * (static_cast<double>(c.seqlen) + 16.0) +
                             (stream.on_cuda() ? epsilon() : 0.0);
      tolerance[i] =
          p_error * want.magnitude[i] + epsilon() * std::abs(want.out[i]) + smallest_output;
    }
    expect_close(run(qkv, c), want.out, tolerance);
  }

  std::vector<float> rows(const std::vector<float>& out, const Case& c, std::int64_t begin,
                          std::int64_t end) const {
    return {out.begin() + begin * out_width(c), out.begin() + end * out_width(c)};
  }
};

TEST_P(AttentionTest, RaggedSequenceLengths) {
  for (const std::int64_t seqlen :
       {1, 2, 7, 16, 31, 32, 33, 40, 63, 64, 65, 127, 128, 129, 200, 257})
    for (const std::int64_t samples : {1, 3})
      check(make_case(make_layout(Side::by_side, 4, 2, 64), samples, seqlen));
}

TEST_P(AttentionTest, HeadDimensions) {
  for (const std::int64_t head_dim :
       {8, 16, 24, 32, 40, 48, 64, 72, 80, 96, 112, 120, 128, 136, 160, 192, 256, 264, 320, 512})
    for (const std::int64_t seqlen : {40, 129})
      check(make_case(make_layout(Side::by_side, 2, 1, head_dim), 2, seqlen));
}

// 512: the columns of v are split, 16 keys are a tile.
TEST_P(AttentionTest, WideHeads) {
  for (const std::int64_t seqlen : {1, 15, 16, 17, 63, 64, 65, 200}) {
    auto c = make_case(make_layout(Side::by_side, 4, 2, 512), 2, seqlen);
    check(c);
    c.window = 20;
    check(c);
    c.soft_cap = 2.0;
    c.key_bias = random_normal(4 * seqlen, 5, 2.0f);
    check(c);
  }
}

TEST_P(AttentionTest, ValuesOfAnotherWidth) {
  struct Widths {
    std::int64_t head_dim, v_dim;
  };
  for (const auto& [head_dim, v_dim] :
       {Widths{192, 128}, Widths{24, 24}, Widths{24, 16}, Widths{16, 24}, Widths{40, 104},
        Widths{96, 64}, Widths{64, 128}, Widths{136, 128}, Widths{192, 136}, Widths{160, 192},
        Widths{256, 64}, Widths{8, 256}, Widths{512, 128}, Widths{264, 256}, Widths{128, 264},
        Widths{256, 512}})
    for (const std::int64_t seqlen : {40, 129}) {
      auto c = make_case(make_layout_with_values(6, 3, head_dim, v_dim), 2, seqlen);
      check(c);
      c.window = 20;
      c.key_bias = random_normal(6 * seqlen, 5, 2.0f);
      check(c);
    }
}

TEST_P(AttentionTest, Chunks) {
  for (const std::int64_t seqlen : {7, 65, 200, 300})
    for (const std::int64_t chunk : {1, 2, 7, 16, 63, 64, 65, 100, 128, 199, 200, 1000})
      for (const std::int64_t window : {0, 30}) {
        auto c = make_case(make_layout(Side::by_side, 4, 2, 32), 2, seqlen);
        c.chunk = chunk;
        c.window = window;
        check(c);
        c.soft_cap = 3.0;
        c.key_bias = random_normal(4 * seqlen, 5, 2.0f);
        check(c);
      }
}

// What lies in earlier chunks must not change what a token sees, by a single bit.
TEST_P(AttentionTest, DoesNotSeeEarlierChunks) {
  for (const std::int64_t chunk : {16, 64, 70}) {
    SCOPED_TRACE(testing::Message() << "chunk " << chunk);
    auto c = make_case(make_layout(Side::by_side, 4, 2, 64), 1, 200);
    c.chunk = chunk;
    auto qkv = random_qkv(c);
    const auto clean = run(qkv, c);
    const auto values = round_to_compute(random_normal(chunk * c.layout.width(), 9, 40.0f));
    std::copy(values.begin(), values.end(), qkv.begin());
    const auto changed = run(qkv, c);
    EXPECT_EQ(count_different(rows(clean, c, chunk, 200), rows(changed, c, chunk, 200)), 0u);
    EXPECT_GT(count_different(rows(clean, c, chunk - 1, chunk), rows(changed, c, chunk - 1, chunk)),
              200u);
  }
}

// Each token sees itself or not, and of the earlier ones one in `every`; whole tiles may be hidden.
TEST_P(AttentionTest, SelectedTokens) {
  for (const std::int64_t seqlen : {1, 7, 33, 65, 200, 300})
    for (const std::int64_t every : {1, 2, 40, 1000})
      for (const bool wide : {false, true}) {
        auto c = make_case(
            wide ? make_layout_with_values(2, 2, 192, 128) : make_layout(Side::by_side, 4, 2, 32),
            2, seqlen);
        const std::int64_t words = (seqlen + 31) / 32;
        c.selected.assign(static_cast<std::size_t>(tokens(c) * words), 0);
        const auto choice = random_normal(tokens(c) * seqlen, 6);
        for (std::int64_t t = 0; t < tokens(c); ++t) {
          const std::int64_t i = t % seqlen;
          const auto select = [&](std::int64_t j) {
            c.selected[static_cast<std::size_t>(t * words + j / 32)] |= 1u << j % 32;
          };
          select(static_cast<std::int64_t>(1e4f * std::abs(choice[static_cast<std::size_t>(t)])) %
                 (i + 1));
          for (std::int64_t j = 0; j <= i; ++j)
            if (static_cast<std::int64_t>(
                    1e4f * std::abs(choice[static_cast<std::size_t>(t * seqlen + j)])) %
                    every ==
                0)
              select(j);
        }
        check(c);
      }
}

TEST_P(AttentionTest, GroupsOfHeads) {
  struct Heads {
    std::int64_t heads, kv_heads;
  };
  for (const auto& [heads, kv_heads] : {Heads{1, 1}, Heads{3, 3}, Heads{9, 3}, Heads{8, 1},
                                        Heads{71, 1}, Heads{14, 2}, Heads{32, 8}})
    for (const Side side : {Side::by_side, Side::interleaved})
      for (const std::int64_t head_dim : {32, 80})
        check(make_case(make_layout(side, heads, kv_heads, head_dim), 2, 40));
}

TEST_P(AttentionTest, Windows) {
  for (const std::int64_t seqlen : {7, 65, 200, 300})
    for (const std::int64_t window : {1, 2, 5, 16, 63, 64, 65, 100, 129, 199, 200, 1000}) {
      auto c = make_case(make_layout(Side::by_side, 4, 2, 32), 2, seqlen);
      c.window = window;
      check(c);
    }
}

TEST_P(AttentionTest, KeyBias) {
  for (const std::int64_t seqlen : {1, 7, 65, 200})
    for (const Side side : {Side::by_side, Side::interleaved})
      for (const std::int64_t window : {0, 16}) {
        auto c = make_case(make_layout(side, 4, side == Side::by_side ? 2 : 4, 64), 2, seqlen);
        c.key_bias = alibi(4, seqlen);
        c.window = window;
        check(c);
        for (float& value : c.key_bias) value = -value;  // earlier keys win
        check(c);
        // A slope read at the wrong position only shifts the scores, which softmax forgives; an
        // irregular bias does not.
        c.key_bias = random_normal(4 * seqlen, 5, 2.0f);
        check(c);
        c.soft_cap = 3.0;  // caps the score, not the bias
        check(c);
      }
}

// The sink outweighs the keys, is one among them, or vanishes; by head, and in tiles where a row
// sees nothing.
TEST_P(AttentionTest, Sinks) {
  for (const std::int64_t seqlen : {1, 7, 65, 200})
    for (const std::int64_t window : {0, 16})
      for (const std::int64_t chunk : {0, 40}) {
        auto c = make_case(make_layout(Side::by_side, 6, 2, 64), 2, seqlen);
        c.window = window;
        c.chunk = chunk;
        c.sinks = {0.0f, 3.0f, -2.5f, 30.0f, -30.0f, 1.5f};
        check(c);
        c.soft_cap = 2.0;
        c.key_bias = random_normal(6 * seqlen, 5, 2.0f);
        check(c);
      }
  for (const auto& [head_dim, v_dim] :
       {std::pair<std::int64_t, std::int64_t>{192, 128}, {24, 16}, {128, 264}, {512, 512}}) {
    auto c = make_case(make_layout_with_values(2, 1, head_dim, v_dim), 2, 129);
    c.sinks = {2.0f, -1.0f};
    c.value_scale = 0.707;
    check(c);
  }
}

TEST_P(AttentionTest, SinksFarFromTheScores) {
  auto c = make_case(make_layout(Side::by_side, 6, 2, 64), 1, 70);
  for (const double scale : {0.125, 0.0, -0.25, 8.0}) {
    c.scale = scale;
    c.sinks = {1e4f, 100.0f, 87.0f, -87.0f, -100.0f, -1e4f};
    check(c);
  }
}

// What a sink of −∞ gives is what no sink gives; one of 0 beside a token alone, with the score 0,
// halves its value.
TEST_P(AttentionTest, SinksByHand) {
  auto c = make_case(make_layout(Side::by_side, 2, 1, 16), 1, 40);
  const auto qkv = random_qkv(c);
  const auto without = run(qkv, c);
  c.sinks = std::vector<float>(2, -std::numeric_limits<float>::infinity());
  EXPECT_EQ(count_different(run(qkv, c), without), 0u);
  c.sinks = {0.0f, std::log(3.0f)};
  c.scale = 0.0;
  c.window = 1;
  const auto out = run(qkv, c);
  for (std::size_t i = 0; i < out.size(); ++i) {
    const double v = qkv[i / 32 * 64 + 48 + i % 16];
    EXPECT_NEAR(out[i], v / (i % 32 < 16 ? 2.0 : 4.0), 2.0 * epsilon() * std::abs(v));
  }
}

TEST_P(AttentionTest, ScaledValues) {
  for (const double scale : {0.707, -2.0, 0.0})
    for (const std::int64_t window : {0, 16}) {
      auto c = make_case(make_layout_with_values(4, 2, 24, 16), 2, 70);
      c.value_scale = scale;
      c.window = window;
      check(c);
    }
}

TEST_P(AttentionTest, SoftCap) {
  for (const double cap : {0.5, 5.0, 50.0})
    for (const std::int64_t window : {0, 16}) {
      auto c = make_case(make_layout(Side::by_side, 4, 2, 64), 2, 129);
      c.scale = 0.5f;
      c.soft_cap = cap;
      c.window = window;
      check(c);
    }
}

// Scores with a deviation near 11: the maximum moves often, and most weights vanish. Negative and
// zero scales too.
TEST_P(AttentionTest, PeakedAndOddScales) {
  for (const double scale : {1.0, -0.25, 0.0, 0.015625}) {
    auto c = make_case(make_layout(Side::by_side, 2, 1, 128), 2, 200);
    c.scale = scale;
    check(c);
  }
}

TEST_P(AttentionTest, LongSequence) {
  auto c = make_case(make_layout(Side::by_side, 2, 1, 64), 1, 1100);
  check(c);
  c.window = 700;
  check(c);
}

// Token 0 sees itself only: its output is v of its kv head, to the bit. So is every token's with a
// window of 1.
TEST_P(AttentionTest, OneVisibleTokenGivesItsValue) {
  for (const Side side : {Side::by_side, Side::interleaved}) {
    auto c = make_case(make_layout(side, 6, 3, 40), 2, 70);
    const auto qkv = random_qkv(c);
    for (const std::int64_t window : {0, 1}) {
      c.window = window;
      const auto out = run(qkv, c);
      for (std::int64_t t = 0; t < tokens(c); ++t)
        for (std::int64_t h = 0; h < c.layout.heads; ++h)
          for (std::int64_t e = 0; e < c.layout.head_dim; ++e) {
            if (window == 0 && t % c.seqlen != 0) continue;
            const std::int64_t column =
                side == Side::by_side ? (6 + 3 + h / 2) * 40 + e : h / 2 * 160 + 120 + e;
            ASSERT_EQ(out[static_cast<std::size_t>(t * out_width(c) + h * 40 + e)],
                      qkv[static_cast<std::size_t>(t * c.layout.width() + column)])
                << "token " << t << ", head " << h;
          }
    }
  }
}

// Other tokens after `last` must not change what comes before, by a single bit.
TEST_P(AttentionTest, DoesNotSeeTheFuture) {
  for (const std::int64_t seqlen : {40, 129, 200})
    for (const std::int64_t last :
         {std::int64_t{0}, std::int64_t{15}, std::int64_t{38}, seqlen / 2, seqlen - 2}) {
      SCOPED_TRACE(testing::Message() << "seqlen " << seqlen << ", last " << last);
      const auto c = make_case(make_layout(Side::by_side, 4, 2, 64), 2, seqlen);
      auto qkv = random_qkv(c);
      const auto clean = run(qkv, c);
      const std::int64_t sample = seqlen;  // the second
      const auto planted =
          round_to_compute(random_normal((seqlen - 1 - last) * c.layout.width(), 9, 40.0f));
      std::copy(planted.begin(), planted.end(),
                qkv.begin() + (sample + last + 1) * c.layout.width());
      const auto changed = run(qkv, c);
      EXPECT_EQ(count_different(rows(clean, c, 0, sample + last + 1),
                                rows(changed, c, 0, sample + last + 1)),
                0u);
      EXPECT_GT(count_different(rows(clean, c, sample + last + 1, sample + last + 2),
                                rows(changed, c, sample + last + 1, sample + last + 2)),
                200u);
    }
}

// Tokens at or before `planted` are outside of the window of tokens from planted + window on.
TEST_P(AttentionTest, DoesNotSeeBehindTheWindow) {
  for (const std::int64_t window : {1, 16, 64, 70})
    for (const std::int64_t planted : {0, 20, 63, 100}) {
      SCOPED_TRACE(testing::Message() << "window " << window << ", planted " << planted);
      auto c = make_case(make_layout(Side::by_side, 4, 2, 64), 1, 200);
      c.window = window;
      auto qkv = random_qkv(c);
      const auto clean = run(qkv, c);
      const auto values =
          round_to_compute(random_normal((planted + 1) * c.layout.width(), 9, 40.0f));
      std::copy(values.begin(), values.end(), qkv.begin());
      const auto changed = run(qkv, c);
      const std::int64_t first = planted + window;
      EXPECT_EQ(count_different(rows(clean, c, first, c.seqlen), rows(changed, c, first, c.seqlen)),
                0u);
      EXPECT_GT(
          count_different(rows(clean, c, first - 1, first), rows(changed, c, first - 1, first)),
          200u);
    }
}

// NaN in the middle sample stays there, ragged tiles included.
TEST_P(AttentionTest, SamplesDoNotLeak) {
  for (const std::int64_t seqlen : {1, 7, 40, 65, 129})
    for (const std::int64_t window : {0, 16}) {
      SCOPED_TRACE(testing::Message() << "seqlen " << seqlen << ", window " << window);
      auto c = make_case(make_layout(Side::by_side, 4, 2, 64), 3, seqlen);
      c.window = window;
      auto qkv = random_qkv(c);
      const auto clean = run(qkv, c);
      std::fill(qkv.begin() + seqlen * c.layout.width(),
                qkv.begin() + 2 * seqlen * c.layout.width(), std::nanf(""));
      const auto changed = run(qkv, c);
      EXPECT_EQ(count_different(rows(clean, c, 0, seqlen), rows(changed, c, 0, seqlen)), 0u);
      EXPECT_EQ(count_different(rows(clean, c, 2 * seqlen, 3 * seqlen),
                                rows(changed, c, 2 * seqlen, 3 * seqlen)),
                0u);
      for (const float value : rows(changed, c, seqlen, 2 * seqlen)) ASSERT_TRUE(std::isnan(value));
    }
}

// Query, key and value heads other than a head's own must not enter it.
TEST_P(AttentionTest, HeadsDoNotLeak) {
  for (const Side side : {Side::by_side, Side::interleaved}) {
    const auto c = make_case(make_layout(side, 6, 2, 32), 1, 50);
    auto qkv = random_qkv(c);
    const auto clean = run(qkv, c);
    for (std::int64_t t = 0; t < 50; ++t)
      for (std::int64_t e = 0; e < 32; ++e)
        for (const std::int64_t column :
             {c.layout.k_column(1), c.layout.v_column(1), c.layout.q_column(3),
              c.layout.q_column(4), c.layout.q_column(5)})
          qkv[static_cast<std::size_t>(t * c.layout.width() + column + e)] = std::nanf("");
    const auto changed = run(qkv, c);
    for (std::int64_t t = 0; t < 50; ++t)
      for (std::int64_t e = 0; e < 6 * 32; ++e) {
        const auto i = static_cast<std::size_t>(t * 6 * 32 + e);
        if (e < 3 * 32)
          ASSERT_EQ(changed[i], clean[i]);
        else
          ASSERT_TRUE(std::isnan(changed[i]));
      }
  }
}

// The same heads at other columns, NaN between them: the same rotation and the same output. Columns
// written out by hand, in units of head_dim.
TEST_P(AttentionTest, HeadsAnywhereInARow) {
  struct Place {
    const char* name;
    HeadLayout layout;
    std::int64_t columns;          // of a row, in heads
    std::vector<std::int64_t> at;  // of q0 … q3, then of the k heads, then of the v heads
  };
  for (const std::int64_t d : {16, 80}) {
    const auto four = make_layout(Side::by_side, 4, 4, d);
    const auto two = make_layout(Side::by_side, 4, 2, d);
    auto codegen = four;  // two blocks of q q v v k k
    codegen.q_block = codegen.kv_block = 2;
    codegen.q_group_stride = codegen.kv_stride = 6 * d;
    codegen.v_begin = 2 * d;
    codegen.k_begin = 4 * d;
    auto gated = two;  // q and its gate, two by two; then k k v v
    gated.q_block = 1;
    gated.q_group_stride = 2 * d;
    gated.k_begin = 8 * d;
    gated.v_begin = 10 * d;
    auto pairs = two;  // k v k v, then all q in one block
    pairs.q_block = 4;
    pairs.kv_stride = 3 * d;
    pairs.k_begin = 4 * d;
    pairs.v_begin = 5 * d;
    for (const auto& [name, layout, columns, at] :
         {Place{"CodeGen", codegen, 12, {0, 1, 6, 7, 4, 5, 10, 11, 2, 3, 8, 9}},
          Place{"gated", gated, 12, {0, 2, 4, 6, 8, 9, 10, 11}},
          Place{"pairs", pairs, 10, {0, 1, 2, 3, 4, 7, 5, 8}}}) {
      SCOPED_TRACE(testing::Message() << name << ", heads of " << d);
      auto c = make_case(layout.kv_heads == 4 ? four : two, 2, 70);
      const auto qkv = random_qkv(c);
      const std::int64_t from_width = c.layout.width();
      const std::int64_t width = columns * d;
      std::vector<float> moved = poison(tokens(c) * width);
      for (std::int64_t t = 0; t < tokens(c); ++t)
        for (std::size_t h = 0; h < at.size(); ++h)
          std::copy_n(qkv.begin() + t * from_width + static_cast<std::int64_t>(h) * d, d,
                      moved.begin() + t * width + at[h] * d);
      const auto frequencies =
          upload_as<float>({1.0f, 0.6f, 0.3f, 0.1f, 0.06f, 0.03f, 0.01f, 0.001f}, 1, 8);
      const auto side_by_side =
          upload_padded(stream.compute_dtype(), qkv, tokens(c), from_width, 8, 8);
      const auto device = upload_padded(stream.compute_dtype(), moved, tokens(c), width, 8, 8);
      rope(side_by_side.view, c.layout, frequencies, 1.0f, false, c.seqlen, stream);
      rope(device.view, layout, frequencies, 1.0f, false, c.seqlen, stream);
      const auto turned = download_inside(side_by_side);
      const auto turned_moved = download_inside(device);
      EXPECT_GT(count_different(turned, qkv), 1000u);
      std::size_t different = 0;
      for (std::int64_t t = 0; t < tokens(c); ++t)
        for (std::size_t h = 0; h < at.size(); ++h)
          for (std::int64_t e = 0; e < d; ++e)
            different += turned[static_cast<std::size_t>(t * from_width +
                                                         static_cast<std::int64_t>(h) * d + e)] !=
                         turned_moved[static_cast<std::size_t>(t * width + at[h] * d + e)];
      EXPECT_EQ(different, 0u) << "rope";
      check(c);
      const auto want = run(qkv, c);
      c.layout = layout;
      EXPECT_EQ(count_different(run(moved, c), want), 0u) << "attention";
    }
  }
}

TEST_P(AttentionTest, IsRepeatableForAnyNumberOfThreads) {
  const auto c = make_case(make_layout(Side::by_side, 4, 2, 80), 3, 150);
  const auto qkv = random_qkv(c);
  const auto first = run(qkv, c);
  EXPECT_EQ(count_different(first, run(qkv, c)), 0u);
  const int threads = omp_get_max_threads();
  for (const int count : {1, 3}) {
    omp_set_num_threads(count);
    EXPECT_EQ(count_different(first, run(qkv, c)), 0u);
  }
  omp_set_num_threads(threads);
}

TEST_P(AttentionTest, RefusesInconsistentArguments) {
  const DType type = stream.compute_dtype();
  const auto layout = make_layout(Side::by_side, 4, 2, 16);
  const TensorArray qkv(type, 12, layout.width(), stream), out(type, 12, 64, stream);
  const TensorArray narrow(type, 12, layout.width() - 16, stream), short_out(type, 12, 48, stream),
      f16_out(DType::f16, 12, 64, stream);
  const Array<float> bias(4, 6, stream), short_bias(4, 5, stream), short_sinks(1, 3, stream),
      frequencies(1, 8, stream), wide_frequencies(1, 9, stream);
  const AttentionOptions plain;
  EXPECT_NO_THROW(attention(qkv, layout, 6, plain, out, stream));
  EXPECT_THROW(attention(narrow, layout, 6, plain, out, stream), std::invalid_argument);
  EXPECT_THROW(attention(qkv, layout, 6, plain, short_out, stream), std::invalid_argument);
  EXPECT_THROW(attention(qkv, layout, 6, plain, f16_out, stream), std::invalid_argument);
  EXPECT_THROW(attention(qkv, layout, 5, plain, out, stream), std::invalid_argument);
  EXPECT_THROW(attention(qkv, layout, 0, plain, out, stream), std::invalid_argument);
  AttentionOptions options;
  options.key_bias = short_bias.view;
  EXPECT_THROW(attention(qkv, layout, 6, options, out, stream), std::invalid_argument);
  options.key_bias = {};
  options.window = -1;
  EXPECT_THROW(attention(qkv, layout, 6, options, out, stream), std::invalid_argument);
  auto uneven = layout;
  uneven.heads = 3;
  EXPECT_THROW(attention(qkv, uneven, 6, plain, out, stream), std::invalid_argument);
  auto outside = layout;
  outside.v_begin += 16;
  EXPECT_THROW(attention(qkv, outside, 6, plain, out, stream), std::invalid_argument);
  outside = layout;
  outside.q_block = 3;  // the fourth head of the second block
  outside.q_group_stride = layout.width() - 32;
  EXPECT_NO_THROW(attention(qkv, outside, 6, plain, out, stream));
  outside.q_group_stride = layout.width();
  EXPECT_THROW(attention(qkv, outside, 6, plain, out, stream), std::invalid_argument);
  options.window = 0;
  options.sinks = short_sinks.view;
  EXPECT_THROW(attention(qkv, layout, 6, options, out, stream), std::invalid_argument);
  options.sinks = {};
  options.chunk = -1;
  EXPECT_THROW(attention(qkv, layout, 6, options, out, stream), std::invalid_argument);
  EXPECT_THROW(attention(qkv, make_layout_with_values(4, 2, 16, 8), 6, plain, out, stream),
               std::invalid_argument);  // out is [tokens, 4 · 8]
  if (stream.on_cuda())
    for (const std::int64_t head_dim : {12, 520}) {
      const auto unsupported = make_layout(Side::by_side, 4, 2, head_dim);
      const TensorArray wide(type, 12, unsupported.width(), stream),
          wide_out(type, 12, 4 * head_dim, stream);
      EXPECT_THROW(attention(wide, unsupported, 6, plain, wide_out, stream), std::invalid_argument);
    }
  EXPECT_NO_THROW(rope(qkv, layout, frequencies, 1.0f, false, 6, stream));
  EXPECT_THROW(rope(qkv, layout, wide_frequencies, 1.0f, false, 6, stream), std::invalid_argument);
  EXPECT_THROW(rope(narrow, layout, frequencies, 1.0f, false, 6, stream), std::invalid_argument);
  EXPECT_THROW(rope(qkv, layout, frequencies, 1.0f, false, 0, stream), std::invalid_argument);
}

TEST_P(AttentionTest, AcceptsNoTokens) {
  const auto layout = make_layout(Side::by_side, 4, 2, 16);
  const TensorArray qkv(stream.compute_dtype(), 0, layout.width(), stream),
      out(stream.compute_dtype(), 0, 64, stream);
  EXPECT_NO_THROW(attention(qkv, layout, 6, {}, out, stream));
  EXPECT_NO_THROW(rope(qkv, layout, upload_as<float>({1.0f}, 1, 1), 1.0f, false, 6, stream));
  EXPECT_NO_THROW(stream.synchronize());
}

class RopeTest : public AttentionTest {
 protected:
  static std::vector<float> frequencies(std::int64_t rotated, double theta = 10000.0) {
    std::vector<float> f;
    for (std::int64_t i = 0; i < rotated / 2; ++i)
      f.push_back(static_cast<float>(
          std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(rotated))));
    return f;
  }

  // c and s err by 3 · 2^-24 · amplitude, two products and a sum round once each.
  void check(const Case& c, std::int64_t rotated, float amplitude, bool interleaved) {
    SCOPED_TRACE(testing::Message() << describe(c) << ", rotated " << rotated << ", amplitude "
                                    << amplitude << (interleaved ? ", interleaved" : ""));
    const auto qkv = random_qkv(c);
    const auto f = frequencies(rotated);
    const auto want = reference::rope(qkv, c.layout, f, amplitude, interleaved, c.seqlen);
    // |a c| + |b s| ≤ amplitude (|a| + |b|); norms are kept, so the largest |x| of the data bounds
    // it.
    double largest = 0.0;
    for (const float value : qkv) largest = std::max(largest, std::abs(static_cast<double>(value)));
    std::vector<double> tolerance;
    for (std::size_t i = 0; i < want.size(); ++i) {
      const bool untouched = want[i] == static_cast<double>(qkv[i]) && amplitude != 1.0f;
      tolerance.push_back(untouched ? 0.0
                                    : 8.0 * single * 2.0 * amplitude * largest +
                                          epsilon() * std::abs(want[i]));
    }
    const auto device =
        upload_padded(stream.compute_dtype(), qkv, tokens(c), c.layout.width(), 8, 8);
    rope(device.view, c.layout, upload_as<float>(f, 1, rotated / 2), amplitude, interleaved,
         c.seqlen, stream);
    const auto got = download_inside(device);
    expect_close(got, want, tolerance);
    // v, and q and k beyond the rotated width, keep their bits.
    for (std::int64_t t = 0; t < tokens(c); ++t) {
      const auto expect_same = [&](std::int64_t column) {
        const auto i = static_cast<std::size_t>(t * c.layout.width() + column);
        ASSERT_EQ(got[i], qkv[i]) << "token " << t << ", column " << column;
      };
      for (std::int64_t g = 0; g < c.layout.kv_heads; ++g) {
        for (std::int64_t e = 0; e < c.layout.head_dim; ++e) expect_same(c.layout.v_column(g) + e);
        for (std::int64_t e = rotated; e < c.layout.head_dim; ++e)
          expect_same(c.layout.k_column(g) + e);
      }
      for (std::int64_t h = 0; h < c.layout.heads; ++h)
        for (std::int64_t e = rotated; e < c.layout.head_dim; ++e)
          expect_same(c.layout.q_column(h) + e);
      if (t % c.seqlen == 0 && amplitude == 1.0f)  // angle 0
        for (std::int64_t column = 0; column < c.layout.width(); ++column) expect_same(column);
    }
  }
};

TEST_P(RopeTest, MatchesTheReference) {
  for (const std::int64_t head_dim : {8, 16, 64, 80, 128, 256})
    for (const Side side : {Side::by_side, Side::interleaved})
      for (const bool interleaved : {false, true})
        for (const float amplitude : {1.0f, 1.2079441f}) {
          const auto c = make_case(make_layout(side, 6, 2, head_dim), 2, 65);
          check(c, head_dim, amplitude, interleaved);
          check(c, head_dim / 4, amplitude, interleaved);  // partial
        }
}

TEST_P(RopeTest, LongPositionsAndSingleTokens) {
  check(make_case(make_layout(Side::by_side, 2, 1, 32), 1, 9000), 32, 1.0f, false);
  check(make_case(make_layout(Side::by_side, 9, 3, 64), 7, 1), 64, 1.0f, false);
  check(make_case(make_layout(Side::by_side, 71, 1, 64), 3, 7), 64, 1.0f, false);
}

TEST_P(RopeTest, QuarterTurnsByHand) {
  // Frequency π/2 at position 1: (x0, x1) → (−x1, x0), up to cos(float(π/2)) = −4e-8.
  const HeadLayout layout = make_layout(Side::by_side, 1, 1, 8);
  std::vector<float> qkv(48, 0.0f);
  for (std::size_t i = 0; i < 48; ++i) qkv[i] = static_cast<float>(i % 24) + 1.0f;
  for (const bool interleaved : {false, true}) {
    const auto device = upload(qkv, 2, 24);
    rope(device, layout, upload_as<float>({1.57079633f, 0.0f}, 1, 2), 1.0f, interleaved, 2, stream);
    const auto got = download(device);
    auto want = qkv;
    // r = 4: pairs (0, 2), (1, 3), or interleaved (0, 1), (2, 3); the first turns, the second has
    // frequency 0.
    const std::size_t second = interleaved ? 1 : 2;
    for (const std::size_t head : {std::size_t{24}, std::size_t{32}}) {
      want[head] = -qkv[head + second];
      want[head + second] = qkv[head];
    }
    expect_close(got, {want.begin(), want.end()},
                 std::vector<double>(48, 1e-5 * (stream.on_cuda() ? 100.0 : 1.0)));
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, AttentionTest, testing::ValuesIn(backends()), backend_name);
INSTANTIATE_TEST_SUITE_P(Backends, RopeTest, testing::ValuesIn(backends()), backend_name);

}  // namespace

}  // namespace qpipe
