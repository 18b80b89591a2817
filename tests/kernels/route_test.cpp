#include "kernels/route.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "tests/kernels/forward_checks.h"

namespace qpipe {

namespace {

constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

struct Case {
  std::int64_t experts = 0;
  RouteOptions options;
  bool with_correction = false;
  bool with_scale = false;
};

RouteOptions options_of(std::int64_t top_k, Scoring scoring = Scoring::softmax,
                        bool normalize = false, float scaling = 1.0f, std::int64_t groups = 1,
                        std::int64_t top_groups = 1, GroupScore group_score = GroupScore::best) {
  return {top_k, scoring, normalize, 1e-20f, scaling, groups, top_groups, group_score, 0.02f};
}

// A token's experts and weights in double precision, and how far the nearest decision was from
// being another one.
struct Reference {
  std::vector<std::int32_t> expert;
  std::vector<double> weight;
  double margin = std::numeric_limits<double>::infinity();

  // The count largest of the values that may be chosen.
  std::vector<bool> largest(const std::vector<double>& values, const std::vector<bool>& allowed,
                            std::int64_t count) {
    std::vector<std::size_t> order;
    for (std::size_t i = 0; i < values.size(); ++i)
      if (allowed[i]) order.push_back(i);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return values[a] > values[b]; });
    std::vector<bool> chosen(values.size(), false);
    const auto n = static_cast<std::size_t>(count);
    for (std::size_t i = 0; i < n; ++i) chosen[order[i]] = true;
    if (n < order.size()) margin = std::min(margin, values[order[n - 1]] - values[order[n]]);
    return chosen;
  }

  void choose(const std::vector<double>& logits, const std::vector<float>& correction,
              const RouteOptions& options) {
    const std::size_t experts = logits.size();
    std::vector<double> s(experts);
    double total = 0.0;
    const double most = *std::max_element(logits.begin(), logits.end());
    for (const double l : logits) total += std::exp(l - most);
    for (std::size_t e = 0; e < experts; ++e)
      s[e] = options.scoring == Scoring::softmax   ? std::exp(logits[e] - most) / total
             : options.scoring == Scoring::sigmoid ? sigmoid(logits[e])
                                                   : logits[e];
    std::vector<double> value = s;
    if (!correction.empty())
      for (std::size_t e = 0; e < experts; ++e) value[e] += correction[e];

    std::vector<bool> allowed(experts, true);
    if (options.groups > 1) {
      const auto size = experts / static_cast<std::size_t>(options.groups);
      std::vector<double> score;
      for (std::size_t begin = 0; begin < experts; begin += size) {
        std::vector<double> group(value.begin() + static_cast<std::ptrdiff_t>(begin),
                                  value.begin() + static_cast<std::ptrdiff_t>(begin + size));
        std::sort(group.rbegin(), group.rend());
        score.push_back(options.group_score == GroupScore::best ? group[0] : group[0] + group[1]);
      }
      const auto best = largest(score, std::vector<bool>(score.size(), true), options.top_groups);
      for (std::size_t e = 0; e < experts; ++e) allowed[e] = best[e / size];
    }
    const auto chosen = largest(value, allowed, options.top_k);
    for (std::size_t e = 0; e < experts; ++e)
      if (chosen[e]) {
        expert.push_back(static_cast<std::int32_t>(e));
        weight.push_back(options.scoring == Scoring::logits ? sigmoid(s[e]) : s[e]);
      }
  }

  void mix(const std::vector<double>& logits, double threshold) {
    std::vector<bool> allowed(logits.size(), true);
    for (int i = 0; i < 2; ++i) {
      const auto chosen = largest(logits, allowed, 1);
      const auto best =
          static_cast<std::size_t>(std::find(chosen.begin(), chosen.end(), true) - chosen.begin());
      double total = 0.0;
      for (std::size_t e = 0; e < logits.size(); ++e) {
        if (!allowed[e]) continue;
        const double distance =
            (logits[best] - logits[e]) / std::max(std::abs(logits[e]), logits[best]);
        margin = std::min(margin, std::abs(distance - threshold));
        if (!(distance > threshold)) total += std::exp(logits[e] - logits[best]);
      }
      expert.push_back(static_cast<std::int32_t>(best));
      weight.push_back(1.0 / total);
      allowed[best] = false;
    }
    if (expert[0] > expert[1]) {
      std::swap(expert[0], expert[1]);
      std::swap(weight[0], weight[1]);
    }
  }

  Reference(const float* row, const std::vector<float>& correction,
            const std::vector<float>& expert_scale, const Case& c) {
    const std::vector<double> logits(row, row + c.experts);
    if (c.options.scoring == Scoring::sparse_mixer)
      mix(logits, c.options.threshold);
    else
      choose(logits, correction, c.options);
    const double total = std::accumulate(weight.begin(), weight.end(), 0.0);
    for (std::size_t i = 0; i < weight.size(); ++i) {
      if (c.options.normalize) weight[i] /= total + static_cast<double>(c.options.normalize_eps);
      weight[i] *= static_cast<double>(c.options.scaling);
      if (!expert_scale.empty()) weight[i] *= expert_scale[static_cast<std::size_t>(expert[i])];
    }
  }
};

class RouteTest : public ForwardTest {
 protected:
  // The routers of families, and what no family has: all experts, one expert, groups that are no
  // multiple of a warp, groups of which all are taken.
  const std::vector<Case> cases{
      {8, options_of(2, Scoring::softmax, true)},                  // Mixtral
      {128, options_of(8, Scoring::softmax, true)},                // Qwen3-MoE, gpt-oss
      {60, options_of(4)},                                         // Qwen2-MoE
      {16, options_of(1, Scoring::logits)},                        // Llama 4
      {128, options_of(8, Scoring::softmax, true), false, true},   // a scale for each expert
      {160, options_of(6, Scoring::softmax, false, 16.0f, 8, 3)},  // DeepSeek-V2
      {256, options_of(8, Scoring::sigmoid, true, 2.5f, 8, 4, GroupScore::two_best),
       true},                                                      // DeepSeek-V3
      {384, options_of(8, Scoring::sigmoid, true, 2.827f), true},  // Kimi-K2
      {16, options_of(2, Scoring::sparse_mixer)},                  // PhiMoE
      {7, options_of(2, Scoring::sparse_mixer, false, 0.5f), false, true},
      {1, options_of(1, Scoring::softmax, true)},
      {1, options_of(1, Scoring::sigmoid)},
      {33, options_of(33, Scoring::softmax, true)},
      {12, options_of(3, Scoring::softmax, true, 1.0f, 3, 2, GroupScore::two_best), true, true},
      {66, options_of(5, Scoring::logits, false, 1.0f, 2, 2)},
      {1024, options_of(22, Scoring::sigmoid, true, 5.0f), true},
      {1024, options_of(40, Scoring::softmax, false, 1.0f, 64, 16, GroupScore::two_best), true},
  };

  // Normal logits, drawn again for a token as long as a decision hangs on less than the rounding
  // errors of 32 operations on what is compared.
  static std::vector<float> draw(const Case& c, std::int64_t tokens,
                                 const std::vector<float>& correction, unsigned seed) {
    const float sigma = c.options.scoring == Scoring::sparse_mixer ? 0.05f : 2.0f;
    const float mean = c.options.scoring == Scoring::sparse_mixer ? 3.0f : 0.0f;
    std::vector<float> logits;
    for (std::int64_t t = 0; t < tokens;) {
      auto row = random_normal(c.experts, seed++, sigma);
      for (float& value : row) value += mean;
      const double largest = c.options.scoring == Scoring::softmax ? 2.0 : 16.0;
      if (Reference(row.data(), correction, {}, c).margin < 32.0 * single * largest) continue;
      logits.insert(logits.end(), row.begin(), row.end());
      ++t;
    }
    return logits;
  }

  struct Routes {
    std::vector<std::int32_t> expert;
    std::vector<float> weight;
  };

  // Views inside of wider matrices, what surrounds the results checked.
  Routes run(const std::vector<float>& logits, const std::vector<float>& correction,
             const std::vector<float>& expert_scale, const Case& c) {
    const auto tokens = static_cast<std::int64_t>(logits.size()) / c.experts;
    const auto logits_device = upload_padded(DType::f32, logits, tokens, c.experts);
    const auto row = [&](const std::vector<float>& values) {
      return values.empty() ? Array<float>{} : upload_as(values, 1, c.experts);
    };
    const auto correction_device = row(correction);
    const auto scale_device = row(expert_scale);
    const std::int64_t k = c.options.top_k;
    const std::int64_t width = k + 3;
    const auto expert = upload_as(
        std::vector<std::int32_t>(static_cast<std::size_t>(tokens * width), -7), tokens, width);
    const auto weight = poisoned_padded(DType::f32, tokens, k);
    route(logits_device.view.as<const float>(), correction_device, scale_device, c.options,
          expert.view.col_range(1, k), weight.view.as<float>(), stream);
    Routes routes{{}, download_inside(weight)};
    const auto wide = download_as<std::int32_t>(expert.view);
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t i = 0; i < width; ++i) {
        const std::int32_t value = wide[static_cast<std::size_t>(t * width + i)];
        if (i >= 1 && i <= k)
          routes.expert.push_back(value);
        else
          EXPECT_EQ(value, -7) << "an element outside of the experts was written";
      }
    return routes;
  }

  Routes run(const std::vector<float>& logits, const RouteOptions& options, std::int64_t experts) {
    return run(logits, {}, {}, {experts, options});
  }
};

TEST_P(RouteTest, MatchesTheReference) {
  for (const Case& c : cases)
    for (const std::int64_t tokens : {1, 5, 67}) {
      SCOPED_TRACE(testing::Message()
                   << c.experts << " experts, top " << c.options.top_k << ", scoring "
                   << static_cast<int>(c.options.scoring) << ", " << tokens << " tokens");
      const auto correction =
          c.with_correction ? random_normal(c.experts, 5, 0.3f) : std::vector<float>{};
      const auto expert_scale =
          c.with_scale ? random_normal(c.experts, 6, 1.5f) : std::vector<float>{};
      const auto logits = draw(c, tokens, correction, 100);
      const auto [expert, weight] = run(logits, correction, expert_scale, c);

      std::vector<std::int32_t> want_expert;
      std::vector<double> want;
      std::vector<double> tolerance;
      for (std::int64_t t = 0; t < tokens; ++t) {
        const float* row = logits.data() + t * c.experts;
        const Reference reference(row, correction, expert_scale, c);
        want_expert.insert(want_expert.end(), reference.expert.begin(), reference.expert.end());
        // e^x has the error of its argument and 4 roundings of its own; all terms of the sums are
        // positive; 6 more roundings until the weight is written.
        const auto [least, most] = std::minmax_element(row, row + c.experts);
        const double range = std::max({*most - *least, std::abs(*most), std::abs(*least)});
        const double roundings = 2.0 * range + 4.0 + static_cast<double>(c.experts) / 32.0 + 6.0 +
                                 static_cast<double>(c.options.top_k) + 6.0;
        for (const double w : reference.weight) {
          want.push_back(w);
          tolerance.push_back(2.0 * roundings * single * std::abs(w));
        }
      }
      EXPECT_EQ(expert, want_expert);
      expect_close(weight, want, tolerance);
    }
}

// Llama 4's, DeepSeek-V3's and gpt-oss' numbers by hand.
TEST_P(RouteTest, KnownValues) {
  const std::vector<float> logits{1.0f, 3.0f, 2.0f, 0.0f};
  auto routes = run(logits, options_of(1, Scoring::logits), 4);
  EXPECT_EQ(routes.expert, (std::vector<std::int32_t>{1}));
  expect_close(routes.weight, {0.9525741268}, {1e-7});

  routes = run(logits, options_of(2, Scoring::softmax, true), 4);  // e / (1 + e)
  EXPECT_EQ(routes.expert, (std::vector<std::int32_t>{1, 2}));
  expect_close(routes.weight, {0.7310585786, 0.2689414214}, {1e-7, 1e-7});

  // The correction chooses 0 and 3, and has no part in their weights σ(1) and σ(0).
  routes = run(logits, {0.5f, 0.0f, 0.0f, 0.9f}, {2.0f, 1.0f, 1.0f, 3.0f},
               {4, options_of(2, Scoring::sigmoid, true, 2.5f)});
  EXPECT_EQ(routes.expert, (std::vector<std::int32_t>{0, 3}));
  expect_close(routes.weight, {2.0 * 2.5 * 0.5938455, 3.0 * 2.5 * 0.4061545}, {2e-6, 2e-6});

  // Group 1 has the best expert, group 0 the two best.
  const std::vector<float> grouped{2.0f, 2.0f, 3.0f, -9.0f};
  routes = run(grouped, options_of(1, Scoring::logits, false, 1.0f, 2, 1), 4);
  EXPECT_EQ(routes.expert, (std::vector<std::int32_t>{2}));
  routes = run(grouped, options_of(1, Scoring::logits, false, 1.0f, 2, 1, GroupScore::two_best), 4);
  EXPECT_EQ(routes.expert, (std::vector<std::int32_t>{0}));
}

// 2 is within 2 % of 2.02, so that it shares the first softmax; 1.5 is within that of neither.
TEST_P(RouteTest, SparseMixerKnownValues) {
  auto routes = run({1.5f, 2.0f, 2.02f}, options_of(2, Scoring::sparse_mixer), 3);
  EXPECT_EQ(routes.expert, (std::vector<std::int32_t>{1, 2}));
  expect_close(routes.weight, {1.0, 1.0 / (1.0 + std::exp(-0.02))}, {0.0, 2e-7});
  // 0 / 0 shares: 1 / 4 of four, then 1 / 3 of three.
  routes = run({0.0f, 0.0f, 0.0f, 0.0f}, options_of(2, Scoring::sparse_mixer), 4);
  EXPECT_EQ(routes.expert, (std::vector<std::int32_t>{0, 1}));
  expect_close(routes.weight, {0.25, 1.0 / 3.0}, {0.0, single});
  // The divisor is |l| where that is larger: (−1 + 1.015) / 1.015 ≤ 2 %.
  routes = run({-1.0f, -1.015f, -2.0f}, options_of(2, Scoring::sparse_mixer), 3);
  EXPECT_EQ(routes.expert, (std::vector<std::int32_t>{0, 1}));
  expect_close(routes.weight, {1.0 / (1.0 + std::exp(-0.015)), 1.0}, {2e-7, 0.0});
  // What lies at the threshold shares.
  auto half = options_of(2, Scoring::sparse_mixer);
  half.threshold = 0.5f;
  routes = run({0.5f, 1.0f}, half, 2);
  expect_close(routes.weight, {1.0, 1.0 / (1.0 + std::exp(-0.5))}, {0.0, 2e-7});
}

TEST_P(RouteTest, TiesGoToTheLowerIndex) {
  for (const std::int64_t experts : {6, 40, 1000})
    for (const Scoring scoring : {Scoring::softmax, Scoring::sigmoid, Scoring::logits}) {
      const std::vector<float> equal(static_cast<std::size_t>(experts), 0.25f);
      EXPECT_EQ(run(equal, options_of(3, scoring), experts).expert,
                (std::vector<std::int32_t>{0, 1, 2}));
    }
  // Zeros are equal, whatever their sign.
  EXPECT_EQ(run({-1.0f, -0.0f, 0.0f, -0.0f}, options_of(2, Scoring::logits), 4).expert,
            (std::vector<std::int32_t>{1, 2}));
  EXPECT_EQ(run({-1.0f, 0.0f, -0.0f, 0.0f}, options_of(2, Scoring::logits), 4).expert,
            (std::vector<std::int32_t>{1, 2}));
  // Groups that tie: the lower ones.
  for (const GroupScore score : {GroupScore::best, GroupScore::two_best})
    EXPECT_EQ(run({0.0f, 1.0f, 2.0f, 1.0f, 2.0f, 1.0f, 1.0f, 2.0f},
                  options_of(2, Scoring::logits, false, 1.0f, 4, 2, score), 8)
                  .expert,
              (std::vector<std::int32_t>{2, 4}));
}

TEST_P(RouteTest, NaNIsChosenLast) {
  EXPECT_EQ(run({nan, -infinity, 3.0f, nan}, options_of(2, Scoring::logits), 4).expert,
            (std::vector<std::int32_t>{1, 2}));
  const auto some = run({nan, -infinity, 3.0f, nan}, options_of(3, Scoring::logits), 4);
  EXPECT_EQ(some.expert, (std::vector<std::int32_t>{0, 1, 2}));
  EXPECT_TRUE(std::isnan(some.weight[0]));
  EXPECT_EQ(some.weight[1], 0.0f);
  // A group without numbers is the last one; one with a NaN counts by its others.
  EXPECT_EQ(
      run({nan, nan, -5.0f, nan, 1.0f, nan}, options_of(2, Scoring::logits, false, 1.0f, 3, 2), 6)
          .expert,
      (std::vector<std::int32_t>{2, 4}));
  EXPECT_EQ(run({1.0f, nan, 0.0f, 0.0f},
                options_of(2, Scoring::logits, false, 1.0f, 2, 1, GroupScore::two_best), 4)
                .expert,
            (std::vector<std::int32_t>{2, 3}));

  // Rows of NaN: distinct experts, weights that tell.
  for (const Case& c : cases) {
    if (c.options.groups > 1) continue;
    const auto [expert, weight] =
        run(std::vector<float>(static_cast<std::size_t>(c.experts), nan), c.options, c.experts);
    std::vector<std::int32_t> first(static_cast<std::size_t>(c.options.top_k));
    std::iota(first.begin(), first.end(), 0);
    EXPECT_EQ(expert, first);
    for (const float w : weight) EXPECT_TRUE(std::isnan(w));
  }
  EXPECT_EQ(run(std::vector<float>(12, nan),
                options_of(3, Scoring::sigmoid, true, 1.0f, 3, 1, GroupScore::two_best), 12)
                .expert,
            (std::vector<std::int32_t>{0, 1, 2}));
}

TEST_P(RouteTest, LargeLogitsDoNotOverflow) {
  const auto routes = run({3e4f, -3e4f, 3e4f, 0.0f}, options_of(3, Scoring::softmax, true), 4);
  EXPECT_EQ(routes.expert, (std::vector<std::int32_t>{0, 1, 2}));
  expect_close(routes.weight, {0.5, 0.0, 0.5}, {single, 0.0, single});
  // All chosen scores are 0: 0 / 1e-20.
  expect_close(run({-200.0f, -300.0f}, options_of(1, Scoring::sigmoid, true), 2).weight, {0.0},
               {0.0});
  // σ(0) / (σ(0) + 1.5)
  RouteOptions options = options_of(1, Scoring::sigmoid, true);
  options.normalize_eps = 1.5f;
  expect_close(run({0.0f, -1.0f}, options, 2).weight, {0.25}, {2 * single});
}

TEST_P(RouteTest, ATokenDependsOnItsOwnLogits) {
  for (const Case& c : cases) {
    const auto logits = draw(c, 9, {}, 300);
    const auto all = run(logits, c.options, c.experts);
    const auto again = run(logits, c.options, c.experts);
    EXPECT_EQ(all.expert, again.expert);
    EXPECT_EQ(count_different(all.weight, again.weight), 0u);
    const std::int64_t k = c.options.top_k;
    for (std::int64_t t = 0; t < 9; ++t) {
      const auto alone = run({logits.begin() + t * c.experts, logits.begin() + (t + 1) * c.experts},
                             c.options, c.experts);
      EXPECT_TRUE(std::equal(alone.expert.begin(), alone.expert.end(), all.expert.begin() + t * k));
      EXPECT_EQ(count_different(alone.weight,
                                {all.weight.begin() + t * k, all.weight.begin() + (t + 1) * k}),
                0u);
    }
  }
}

TEST_P(RouteTest, AcceptsNoTokens) {
  const Array<float> logits(0, 8, stream), weight(0, 2, stream);
  const Array<std::int32_t> expert(0, 2, stream);
  EXPECT_NO_THROW(route(logits, {}, {}, options_of(2), expert, weight, stream));
  EXPECT_NO_THROW(stream.synchronize());
}

TEST_P(RouteTest, RefusesInconsistentArguments) {
  const Array<float> logits(3, 8, stream), row(1, 8, stream), short_row(1, 7, stream),
      weight(3, 2, stream), wide_weight(3, 3, stream), tall_weight(4, 2, stream);
  const Array<std::int32_t> expert(3, 2, stream), wide_expert(3, 3, stream);
  fill_zero(logits.view.data, 24 * sizeof(float), stream);
  fill_zero(row.view.data, 8 * sizeof(float), stream);
  const auto call = [&](Matrix<const float> correction, Matrix<const float> scale,
                        const RouteOptions& options, Matrix<std::int32_t> expert_,
                        Matrix<float> weight_) {
    route(logits, correction, scale, options, expert_, weight_, stream);
  };
  EXPECT_NO_THROW(call(row, row, options_of(2), expert, weight));
  EXPECT_THROW(call(short_row, {}, options_of(2), expert, weight), std::invalid_argument);
  EXPECT_THROW(call({}, short_row, options_of(2), expert, weight), std::invalid_argument);
  EXPECT_THROW(call({}, {}, options_of(3), expert, weight), std::invalid_argument);
  EXPECT_THROW(call({}, {}, options_of(2), wide_expert, weight), std::invalid_argument);
  EXPECT_THROW(call({}, {}, options_of(2), expert, wide_weight), std::invalid_argument);
  EXPECT_THROW(call({}, {}, options_of(2), expert, tall_weight), std::invalid_argument);
  EXPECT_THROW(call({}, {}, options_of(9), expert, weight), std::invalid_argument);
  EXPECT_THROW(call({}, {}, options_of(0), expert, weight), std::invalid_argument);
  const auto grouped = [](std::int64_t groups, std::int64_t top_groups,
                          GroupScore score = GroupScore::best) {
    return options_of(2, Scoring::sigmoid, false, 1.0f, groups, top_groups, score);
  };
  EXPECT_NO_THROW(call({}, {}, grouped(8, 2), expert, weight));
  EXPECT_THROW(call({}, {}, grouped(3, 1), expert, weight), std::invalid_argument);
  EXPECT_THROW(call({}, {}, grouped(0, 0), expert, weight), std::invalid_argument);
  EXPECT_THROW(call({}, {}, grouped(2, 3), expert, weight), std::invalid_argument);
  EXPECT_THROW(call({}, {}, grouped(8, 1), expert, weight), std::invalid_argument);
  EXPECT_THROW(call({}, {}, grouped(8, 2, GroupScore::two_best), expert, weight),
               std::invalid_argument);
  EXPECT_NO_THROW(call({}, row, options_of(2, Scoring::sparse_mixer), expert, weight));
  EXPECT_THROW(call(row, {}, options_of(2, Scoring::sparse_mixer), expert, weight),
               std::invalid_argument);
  EXPECT_THROW(call({}, {}, options_of(3, Scoring::sparse_mixer), wide_expert, wide_weight),
               std::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(Backends, RouteTest, testing::ValuesIn(backends()), backend_name);

}  // namespace

}  // namespace qpipe
