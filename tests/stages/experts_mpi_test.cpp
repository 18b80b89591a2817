// A layer of experts against plain loops in double precision: routes, both steps, and the Hessian
// of each group, of starved experts, too. Under any number of ranks.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>

#include "stages/calibrate.h"
#include "stages/experts.h"
#include "stages/starved.h"
#include "stages/transfer.h"

namespace qpipe {
namespace {

using Rows = std::vector<std::vector<double>>;

constexpr std::int64_t hidden = 12;
constexpr std::int64_t ffn = 6;
constexpr std::int64_t shared_ffn = 5;
constexpr std::int64_t count = 5;
constexpr std::int64_t top_k = 2;

std::string name_of(std::int64_t expert) {
  return expert < 0 ? "shared" : std::string("e").append(std::to_string(expert));
}

double silu(double x) { return x / (1.0 + std::exp(-x)); }

// No mixer: the layer is its experts, and their input is the residual stream.
class ExpertLayer : public testing::Test {
 protected:
  ExpertLayer() {
    Experts experts;
    experts.router.linear = {"gate", count, hidden, true};
    experts.router.options.top_k = top_k;
    experts.router.options.normalize = true;
    for (int e = 0; e < count; ++e) experts.experts.push_back(mlp(name_of(e), ffn));
    experts.shared = mlp("shared", shared_ffn);
    experts.shared_gate = LinearSpec{"shared_gate", 1, hidden};
    spec.hidden = hidden;
    spec.mixer = Nothing{};
    spec.mlp = experts;
    std::mt19937 generator(7);
    std::normal_distribution<float> normal(0.0f, 0.5f);
    layer.spec = &spec;
    for (const LinearSpec& linear : layer_linears(spec)) {
      memory.emplace_back(DType::f32, linear.out_features, linear.in_features, stream);
      const auto w = memory.back().view.as<float>();
      for (std::int64_t i = 0; i < w.size(); ++i) w.data[i] = normal(generator);
      Linear loaded;
      if (linear.bias) loaded.bias = {bias.data(), DType::f32, 1, count};
      loaded.name = "layers.0." + linear.name;
      loaded.weight = memory.back().view;
      loaded.stored = memory.back().view;
      layer.linears.push_back(loaded);
    }
  }

  static Mlp mlp(const std::string& name, std::int64_t width) {
    Mlp result;
    result.in = {{name + ".gate", width, hidden}, {name + ".up", width, hidden}};
    result.out = {name + ".down", hidden, width};
    return result;
  }

  const Experts& experts() const { return std::get<Experts>(spec.mlp); }
  Matrix<const float> weight(const std::string& name) const {
    for (const Linear& linear : layer.linears)
      if (linear.name == "layers.0." + name) return linear.stored.as<const float>();
    throw std::logic_error(name);
  }

  Rows random_rows(std::int64_t rows, unsigned seed) const {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal;
    Rows x(static_cast<std::size_t>(rows), std::vector<double>(hidden));
    for (auto& row : x)
      for (double& value : row) value = normal(generator);
    return x;
  }

  std::vector<double> times(const std::string& name, const std::vector<double>& x) const {
    const Matrix<const float> w = weight(name);
    std::vector<double> y;
    for (std::int64_t r = 0; r < w.rows; ++r) {
      y.push_back(0.0);
      for (std::int64_t c = 0; c < w.cols; ++c)
        y.back() += double{w(r, c)} * x[static_cast<std::size_t>(c)];
    }
    return y;
  }
  std::vector<double> activation(const std::string& name, const std::vector<double>& x) const {
    std::vector<double> y = times(name + ".gate", x);
    const std::vector<double> up = times(name + ".up", x);
    for (std::size_t i = 0; i < y.size(); ++i) y[i] = silu(y[i]) * up[i];
    return y;
  }
  // The k largest logits, their softmax among themselves, in the order of the experts.
  std::vector<std::pair<std::size_t, double>> choice(const std::vector<double>& x) const {
    std::vector<double> logits = times("gate", x);
    for (std::size_t e = 0; e < logits.size(); ++e) logits[e] += double{bias[e]};
    std::vector<std::size_t> order{0, 1, 2, 3, 4};
    std::sort(order.begin(), order.end(),
              [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
    order.resize(top_k);
    std::sort(order.begin(), order.end());
    double sum = 0.0;
    for (const std::size_t e : order) sum += std::exp(logits[e]);
    std::vector<std::pair<std::size_t, double>> result;
    for (const std::size_t e : order) result.emplace_back(e, std::exp(logits[e]) / sum);
    return result;
  }

  // Expert 4 is chosen by few tokens, expert 3 by none.
  const std::vector<float> bias{0.1f, -0.2f, 0.3f, -100.0f, -1.5f};
  Stream stream{Backend::cpu, 0};
  Comm comm{stream, {std::chrono::seconds(60), true}};
  LayerSpec spec;
  Layer layer;
  std::vector<TensorArray> memory;
};

TEST_F(ExpertLayer, RunsAsTheSumOfItsExperts) {
  constexpr std::int64_t tokens = 37;
  const Rows x = random_rows(tokens, 1);
  TensorArray stream_memory(DType::f32, tokens, hidden, stream);
  Architecture a;
  a.hidden = hidden;
  a.layers = 1;
  a.kinds = {spec};
  a.kind_of_layer = {0};
  TensorArray input(DType::f32, tokens, widest_input(a), stream);
  TensorArray scratch(DType::f32, tokens, scratch_width(a), stream);
  const auto h = stream_memory.view.as<float>();
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t c = 0; c < hidden; ++c)
      h(t, c) = static_cast<float>(x[static_cast<std::size_t>(t)][static_cast<std::size_t>(c)]);
  Routes routes;
  Block block{stream_memory, input, &routes};
  forward_layer(layer, make_tables(a, tokens, stream), tokens, block, scratch, stream);
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::vector<double>& row = x[static_cast<std::size_t>(t)];
    std::vector<double> y = times("shared.down", activation("shared", row));
    const double gate = 1.0 / (1.0 + std::exp(-times("shared_gate", row).front()));
    for (double& value : y) value *= gate;
    std::int64_t slot = 0;
    for (const auto& [e, weight] : choice(row)) {
      EXPECT_EQ(routes.expert.view(t, slot++), static_cast<std::int32_t>(e)) << "token " << t;
      const std::string name = name_of(static_cast<std::int64_t>(e));
      const std::vector<double> z = times(name + ".down", activation(name, row));
      for (std::size_t i = 0; i < y.size(); ++i) y[i] += weight * z[i];
    }
    for (std::size_t c = 0; c < y.size(); ++c)
      EXPECT_NEAR(h(t, static_cast<std::int64_t>(c)), row[c] + y[c], 2e-5);
  }
}

// The samples are cut into blocks and dealt to the ranks; sums must not depend on it.
class ExpertHessians : public ExpertLayer, public testing::WithParamInterface<std::int64_t> {
 protected:
  static constexpr std::int64_t samples = 9;
  static constexpr std::int64_t seqlen = 5;

  Rows x = random_rows(samples * seqlen, 2);
  Blocking blocking = cut_samples(samples, seqlen, 2 * seqlen);

  Activations activations() {
    Architecture a;
    a.hidden = hidden;
    a.layers = 1;
    a.kinds = {spec};
    a.kind_of_layer = {0};
    Activations result = make_activations(a, blocking, comm.rank(), comm.size(), Places{}, stream);
    for (std::size_t local = 0; local < result.blocks(); ++local) {
      std::vector<float> values;
      for (std::int64_t t = 0; t < result.hidden.rows(local); ++t)
        for (const double value :
             x[static_cast<std::size_t>(result.first_sample(local) * seqlen + t)])
          values.push_back(static_cast<float>(value));
      write_block(result.hidden, local,
                  {values.data(), DType::f32, result.hidden.rows(local), hidden}, stream);
    }
    return result;
  }

  // The tokens of an expert: those that choose it, and what it gets on top.
  std::vector<std::size_t> tokens_of(std::int64_t expert) const {
    std::vector<std::size_t> tokens;
    for (std::size_t t = 0; t < x.size(); ++t)
      for (const auto& [e, weight] : choice(x[t]))
        if (static_cast<std::int64_t>(e) == expert) tokens.push_back(t);
    const std::int64_t missing = std::min<std::int64_t>(
        std::max<std::int64_t>(0, GetParam() - std::ssize(tokens)), std::ssize(x));
    for (std::int64_t b = 0; b < blocking.blocks(); ++b)
      for (const std::int32_t t : extra_tokens(blocking, b, missing, 0))
        tokens.push_back(static_cast<std::size_t>(blocking.block_begin(b) * seqlen + t));
    return tokens;
  }

  void expect_hessian(const Hessian& hessian, const Rows& rows, const std::string& what) {
    EXPECT_EQ(hessian.tokens, std::ssize(rows)) << what;
    const std::vector<float> h = download_matrix(hessian.matrix.view, stream);
    const std::size_t d = hessian.diagonal.size();
    for (std::size_t i = 0; i < d; ++i)
      for (std::size_t j = 0; j <= i; ++j) {
        double sum = 0.0;
        double size = 0.0;
        for (const std::vector<double>& row : rows) {
          sum += row[i] * row[j];
          size += std::fabs(row[i] * row[j]);
        }
        const double n = std::max<double>(1.0, static_cast<double>(rows.size()));
        EXPECT_NEAR(h[i * d + j], sum / n, 1e-5 * (size / n + 1.0))
            << what << " " << i << ", " << j;
      }
  }
};

TEST_P(ExpertHessians, AreThoseOfTheTokensThatComeAndOfThoseOnTop) {
  const std::vector<Step> steps = layer_steps(spec);
  DecoderTables tables;
  tables.kinds.emplace_back();
  Activations a = activations();
  start_layer(layer, a, stream);
  for (std::size_t s = 0; s < steps.size(); ++s) {
    std::vector<CalibratedGroup> groups;
    for (const Group& group : steps[s].groups) groups.push_back({group, "test"});
    const std::vector<Hessian> hessians =
        calibrate(a, groups, 0, GetParam(), Places{}, comm, stream);
    for (std::size_t g = 0; g < groups.size(); ++g) {
      const std::int64_t e = groups[g].group.expert;
      Rows rows;
      std::vector<std::size_t> tokens(x.size());
      std::iota(tokens.begin(), tokens.end(), std::size_t{0});
      if (e >= 0) tokens = tokens_of(e);
      const std::string name = name_of(e);
      for (const std::size_t t : tokens) rows.push_back(s == 0 ? x[t] : activation(name, x[t]));
      expect_hessian(hessians[g], rows, name + " in step " + std::to_string(s));
    }
    if (s == 0) keep_extra_rows(layer, GetParam(), 0, a, comm, stream);
    advance(layer, tables, steps, s, a, stream);
  }
  EXPECT_EQ(tokens_of_experts(a, count, 0, comm)[3], 0);
}

INSTANTIATE_TEST_SUITE_P(ExpertTokens, ExpertHessians, testing::Values(0, 7, 20, 1000));

TEST(ExtraTokens, AreAsManyAsAreMissingAndEvenlySpaced) {
  const Blocking blocking = cut_samples(10, 8, 24);  // blocks of 24, 24, 24 and 8 tokens
  for (const std::int64_t missing : {0, 1, 5, 16, 80}) {
    std::int64_t all = 0;
    for (std::int64_t b = 0; b < blocking.blocks(); ++b) {
      const std::vector<std::int32_t> tokens = extra_tokens(blocking, b, missing, 0);
      const std::int64_t size = blocking.block_size(b) * blocking.seqlen;
      EXPECT_NEAR(static_cast<double>(tokens.size()), static_cast<double>(missing * size) / 80.0,
                  1.0);
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        EXPECT_GE(tokens[i], i == 0 ? 0 : tokens[i - 1] + 1);
        EXPECT_LT(tokens[i], size);
      }
      all += std::ssize(tokens);
    }
    EXPECT_EQ(all, missing);
  }
  EXPECT_EQ(extra_tokens(blocking, 0, 10, 0), (std::vector<std::int32_t>{4, 12, 20}));
  EXPECT_TRUE(extra_tokens(blocking, 0, 10, 8).empty());  // not one of the sampled blocks
  EXPECT_EQ(missing_tokens(blocking, 70, 100, 0), 30);
  EXPECT_EQ(missing_tokens(blocking, 0, 100, 0), 80);
  EXPECT_EQ(missing_tokens(blocking, 200, 100, 0), 0);
}

}  // namespace
}  // namespace qpipe
