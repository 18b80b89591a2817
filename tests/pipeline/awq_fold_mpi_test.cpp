// AWQ's scaling pairs: any factors folded into a layer leave what it computes unchanged, for every
// family.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <random>

#include "launch/comm.h"
#include "pipeline/layers/layer_source.h"
#include "pipeline/model/model.h"
#include "stages/clip.h"
#include "stages/fold.h"

namespace qpipe {
namespace {

namespace fs = std::filesystem;

struct Case {
  const char* model;
  std::vector<std::string> pairs;  // source → first linear
};

class AwqFold : public testing::TestWithParam<Case> {
 protected:
  AwqFold() : stream(Backend::cpu, 0), comm(stream, {std::chrono::seconds(60), true}) {}

  static constexpr std::int64_t tokens = 24;
  std::vector<float> forward(const Architecture& a, const Layer& layer) {
    std::mt19937 generator(3);
    std::normal_distribution<float> normal;
    TensorArray hidden(DType::f32, tokens, a.hidden, stream);
    TensorArray input(DType::f32, tokens, widest_input(a), stream);
    TensorArray scratch(DType::f32, tokens, scratch_width(a), stream);
    const auto values = hidden.view.as<float>();
    for (std::int64_t i = 0; i < values.size(); ++i) values.data[i] = normal(generator);
    Block block{hidden, input};
    forward_layer(a, make_tables(a, tokens, stream), layer, tokens, block, scratch, stream);
    return {values.data, values.data + values.size()};
  }

  Stream stream;
  Comm comm;
};

double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0.0;
  double norm = 0.0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    difference += std::pow(static_cast<double>(a.at(i)) - b[i], 2);
    norm += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / norm);
}

TEST_P(AwqFold, LeavesTheLayerUnchanged) {
  const fs::path folder = fs::path(QPIPE_SHARED) / "oracles/models" / GetParam().model;
  if (!fs::exists(folder)) GTEST_SKIP() << "no oracle: " << folder;
  const Checkpoint checkpoint(folder);
  const Architecture a = read_architecture(checkpoint.config(), "config.json");
  LayerSource source(checkpoint, a, comm, stream);
  const Layer original = source.load_layer(1);
  Layer folded = source.load_layer(1);

  std::vector<ScaledPair> pairs;
  std::vector<std::string> names;
  std::mt19937 generator(4);
  std::uniform_real_distribution<float> exponent(-2.0f, 2.0f);
  for (const ScalingPair& pair : scaling_pairs(a)) {
    pairs.push_back({pair, {}, 0.0, 0.0});
    for (std::int64_t c = 0; c < input_width(a, pair.step); ++c)
      pairs.back().scale.push_back(std::exp2(exponent(generator)));
    names.push_back(source_name(a, pair) + " > " + all_linears(a)[pair.linears.front()].name);
  }
  EXPECT_EQ(names, GetParam().pairs);

  const std::vector<LinearFactors> factors = linear_factors(original, pairs);
  std::vector<Array<float>> memory;
  for (std::size_t i = 0; i < folded.linears.size(); ++i) {
    memory.push_back(scaled_weight(original.linears[i], factors[i], stream));
    folded.linears[i].weight = memory.back().view;
  }
  std::map<std::string, std::vector<float>> changed;
  for (const ChangedTensor& tensor : divided_vectors(a, original, pairs, stream))
    changed[tensor.name] = tensor.values;
  std::size_t used = 0;
  const auto replace = [&](const std::string& name, ConstTensor& tensor) {
    const auto found = changed.find(name);
    if (found == changed.end()) return;
    ++used;
    tensor = Matrix<const float>(found->second.data(), 1,
                                 static_cast<std::int64_t>(found->second.size()));
  };
  const std::string prefix = layer_prefix(a, 1);
  replace(prefix + a.names.attention_norm + ".weight", folded.attention_norm.weight);
  replace(prefix + a.names.attention_norm + ".bias", folded.attention_norm.bias);
  replace(prefix + a.names.mlp_norm + ".weight", folded.mlp_norm.weight);
  replace(prefix + a.names.mlp_norm + ".bias", folded.mlp_norm.bias);
  for (Linear& linear : folded.linears) replace(linear.name + ".bias", linear.bias);
  EXPECT_EQ(used, changed.size());

  const std::vector<float> expected = forward(a, original);
  EXPECT_LT(relative_error(forward(a, folded), expected), 2e-6);
  // The comparison can fail: a norm that is not divided shows.
  folded.attention_norm.weight = original.attention_norm.weight;
  EXPECT_GT(relative_error(forward(a, folded), expected), 1e-3);
}

// In the layer as it was, the weights that stand for 8-bit ones of the scaled layer err about as
// much as 8-bit ones of the layer itself.
TEST_P(AwqFold, UnscaledWeightsStandForTheQuantizedOnes) {
  const fs::path folder = fs::path(QPIPE_SHARED) / "oracles/models" / GetParam().model;
  if (!fs::exists(folder)) GTEST_SKIP() << "no oracle: " << folder;
  const Checkpoint checkpoint(folder);
  const Architecture a = read_architecture(checkpoint.config(), "config.json");
  LayerSource source(checkpoint, a, comm, stream);
  const std::vector<float> expected = forward(a, source.load_layer(0));
  LinearSettings settings;
  settings.method = Method::rtn;
  settings.bits = 8;
  settings.group_size = 32;
  settings.symmetric = false;
  const auto error = [&](const std::vector<ScaledPair>& pairs) {
    Layer layer = source.load_layer(0);
    const std::vector<LinearFactors> factors = linear_factors(layer, pairs);
    for (std::size_t i = 0; i < layer.linears.size(); ++i) {
      const Array<float> weight = scaled_weight(layer.linears[i], factors[i], stream);
      Linear scaled = layer.linears[i];
      scaled.stored = weight.view;
      const auto solved = solve(nullptr, {&scaled}, {settings}, comm, stream);
      unscaled_weight_into(solved.front(), factors[i], layer.linears[i].weight, stream);
    }
    return relative_error(forward(a, layer), expected);
  };
  std::vector<ScaledPair> pairs;
  for (const ScalingPair& pair : scaling_pairs(a)) {
    pairs.push_back({pair, {}, 0.0, 0.0});
    for (std::int64_t c = 0; c < input_width(a, pair.step); ++c)
      pairs.back().scale.push_back(c % 2 == 0 ? 0.7f : 1.6f);
  }
  const double plain = error({});
  EXPECT_LT(error(pairs), 2.3 * plain);  // a group's range, and with it the error of the small
                                         // columns, grows by 1.6 / 0.7 at most
  EXPECT_NE(error(pairs), plain);
}

std::vector<Case> cases() {
  const std::string q = "self_attn.q_proj";
  const std::vector<std::string> grouped = {"input_layernorm > " + q,
                                            "post_attention_layernorm > mlp.gate_proj",
                                            "mlp.up_proj > mlp.down_proj"};
  const std::vector<std::string> whole = {
      "input_layernorm > " + q, "self_attn.v_proj > self_attn.o_proj",
      "post_attention_layernorm > mlp.gate_proj", "mlp.up_proj > mlp.down_proj"};
  const std::string fused = "self_attention.query_key_value";
  return {{"llama", grouped},
          {"llama-mha", whole},
          {"llama-mha-tied-bias", whole},
          {"mistral", grouped},
          {"qwen2", grouped},
          {"qwen3", grouped},
          {"falcon-7b-style", {"input_layernorm > " + fused}},
          {"falcon-40b-style", {"ln_attn > " + fused, "ln_mlp > mlp.dense_h_to_4h"}},
          {"falcon-rw-alibi",
           {"input_layernorm > " + fused, "post_attention_layernorm > mlp.dense_h_to_4h"}}};
}

INSTANTIATE_TEST_SUITE_P(Families, AwqFold, testing::ValuesIn(cases()),
                         [](const testing::TestParamInfo<Case>& tested) {
                           std::string name = tested.param.model;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(AwqPairs, OnlyReluAndGatedMlpsPassAFactorOn) {
  Architecture a;
  a.qkv = {{"qkv", 96, 32}};
  a.attention_out = {"o", 32, 32};
  a.mlp_in = {{"fc1", 64, 32}};
  a.mlp_out = {"fc2", 32, 64};
  a.gated_mlp = false;
  a.ffn = 64;
  a.activation = Activation::gelu;
  EXPECT_EQ(scaling_pairs(a).size(), 2u);
  a.activation = Activation::relu;
  ASSERT_EQ(scaling_pairs(a).size(), 3u);
  EXPECT_EQ(scaling_pairs(a).back().source_linear, 2u);
  a.activation = Activation::silu;
  a.gated_mlp = true;
  a.mlp_in = {{"gate_up", 128, 32}};
  ASSERT_EQ(scaling_pairs(a).size(), 3u);
  EXPECT_EQ(scaling_pairs(a).back().source_first_row, 64);
}

TEST(AwqClip, QueriesAndKeysAreLeftAlone) {
  for (const char* kept : {"model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj",
                           "h.0.self_attention.query_key_value", "Wqkv"})
    EXPECT_FALSE(may_clip(kept)) << kept;
  for (const char* cut :
       {"model.layers.0.self_attn.v_proj", "model.layers.0.mlp.down_proj", "block_q_0.mlp.up_proj"})
    EXPECT_TRUE(may_clip(cut)) << cut;
}

}  // namespace
}  // namespace qpipe
