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
#include "tests/paths.h"

namespace qpipe {
namespace {

namespace fs = std::filesystem;

struct Case {
  const char* model;
  std::int64_t layer;              // the first of its kind
  std::vector<std::string> pairs;  // source → first linear
};

std::string spelled(const testing::TestParamInfo<Case>& tested) {
  std::string name = tested.param.model + std::string("_") + std::to_string(tested.param.layer);
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

fs::path oracle(const std::string& model) { return shared_folder() / "oracles/models" / model; }

class AwqFold : public testing::TestWithParam<Case> {
 protected:
  AwqFold() : stream(Backend::cpu, 0), comm(stream, {std::chrono::seconds(60), true}) {}

  void SetUp() override {
    if (!fs::exists(oracle(GetParam().model)))
      GTEST_SKIP() << "no oracle: " << oracle(GetParam().model);
  }

  // The layer on random hidden states and, where the model carries any, random carried columns.
  static constexpr std::int64_t tokens = 24;
  std::vector<float> forward(const Architecture& a, const Layer& layer) {
    std::mt19937 generator(3);
    std::normal_distribution<float> normal;
    TensorArray hidden(DType::f32, tokens, a.stream_width(), stream);
    TensorArray input(DType::f32, tokens, widest_input(a), stream);
    TensorArray scratch(DType::f32, tokens, scratch_width(a), stream);
    const auto values = hidden.view.as<float>();
    for (std::int64_t i = 0; i < values.size(); ++i) values.data[i] = normal(generator);
    Block block{hidden, input};
    forward_layer(layer, make_tables(a, tokens, stream), tokens, block, scratch, stream);
    return {values.data, values.data + values.size()};
  }

  static std::int64_t width_of(const LayerSpec& spec, const ScalingPair& pair) {
    return layer_steps(spec).at(pair.step).groups.at(pair.groups.front()).width;
  }

  // Factors from a quarter to four for every pair.
  std::vector<ScaledPair> random_factors(const LayerSpec& spec) {
    std::vector<ScaledPair> pairs;
    std::mt19937 generator(4);
    std::uniform_real_distribution<float> exponent(-2.0f, 2.0f);
    for (const ScalingPair& pair : scaling_pairs(spec)) {
      pairs.push_back({pair, {}, 0.0, 0.0});
      for (std::int64_t c = 0; c < width_of(spec, pair); ++c)
        pairs.back().scale.push_back(std::exp2(exponent(generator)));
    }
    return pairs;
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

// Of a token; the median. A norm behind a gate that nearly closes makes any error of its token
// large.
double token_error(const std::vector<float>& a, const std::vector<float>& b, std::int64_t tokens) {
  const auto width = static_cast<std::ptrdiff_t>(b.size()) / tokens;
  std::vector<double> errors;
  for (std::ptrdiff_t t = 0; t < tokens; ++t) {
    const auto row = [&](const std::vector<float>& values) {
      return std::vector(values.begin() + t * width, values.begin() + (t + 1) * width);
    };
    errors.push_back(relative_error(row(a), row(b)));
  }
  std::sort(errors.begin(), errors.end());
  return errors[errors.size() / 2];
}

TEST_P(AwqFold, LeavesTheLayerUnchanged) {
  const Checkpoint checkpoint(oracle(GetParam().model));
  const Architecture a = read_architecture(checkpoint);
  const std::int64_t index = GetParam().layer;
  const LayerSpec& spec = a.layer(index);
  LayerSource source(checkpoint, a, comm, stream);
  Layer original = source.load_layer(index);
  Layer folded = source.load_layer(index);

  const std::vector<ScaledPair> pairs = random_factors(spec);
  std::vector<std::string> names;
  for (const ScaledPair& p : pairs)
    names.push_back(source_name(spec, p.pair) + " > " +
                    layer_linears(spec)[p.pair.linears.front()].name);
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
  for (auto& [name, norm] : folded.norms) {
    replace(layer_prefix(a, index) + name + ".weight", norm.weight);
    replace(layer_prefix(a, index) + name + ".bias", norm.bias);
  }
  for (Linear& linear : folded.linears) replace(linear.name + ".bias", linear.bias);
  EXPECT_EQ(used, changed.size());

  const std::vector<float> expected = forward(a, original);
  EXPECT_LT(relative_error(forward(a, folded), expected), 2e-6);
  // The comparison can fail: one linear of each pair that does not take its factor shows.
  for (const ScaledPair& p : pairs) {
    const std::size_t last = p.pair.linears.back();
    std::swap(folded.linears[last].weight, original.linears[last].weight);
    EXPECT_GT(relative_error(forward(a, folded), expected), 1e-4) << source_name(spec, p.pair);
    std::swap(folded.linears[last].weight, original.linears[last].weight);
  }
}

// In the layer as it was, the weights that stand for 8-bit ones of the scaled layer err about as
// much as 8-bit ones of the layer itself.
TEST_P(AwqFold, UnscaledWeightsStandForTheQuantizedOnes) {
  const Checkpoint checkpoint(oracle(GetParam().model));
  const Architecture a = read_architecture(checkpoint);
  const LayerSpec& spec = a.layer(GetParam().layer);
  LayerSource source(checkpoint, a, comm, stream);
  const std::vector<float> expected = forward(a, source.load_layer(GetParam().layer));
  LinearSettings settings;
  settings.method = Method::rtn;
  settings.bits = 8;
  settings.group_size = 16;
  settings.symmetric = false;
  const std::vector<LinearSpec> linears = layer_linears(spec);
  const auto error = [&](const std::vector<ScaledPair>& pairs) {
    Layer layer = source.load_layer(GetParam().layer);
    const std::vector<LinearFactors> factors = linear_factors(layer, pairs);
    for (std::size_t i = 0; i < layer.linears.size(); ++i) {
      if (linears[i].kept) continue;
      const Array<float> weight = scaled_weight(layer.linears[i], factors[i], stream);
      Linear scaled = layer.linears[i];
      scaled.stored = weight.view;
      const auto solved = solve(nullptr, {&scaled}, {settings}, comm, stream);
      unscaled_weight_into(solved.front(), factors[i], layer.linears[i].weight, stream);
    }
    return token_error(forward(a, layer), expected, tokens);
  };
  std::vector<ScaledPair> pairs;
  for (const ScalingPair& pair : scaling_pairs(spec)) {
    pairs.push_back({pair, {}, 0.0, 0.0});
    for (std::int64_t c = 0; c < width_of(spec, pair); ++c)
      pairs.back().scale.push_back(c % 2 == 0 ? 0.7f : 1.6f);
  }
  const double plain = error({});
  EXPECT_LT(error(pairs), 2.3 * plain);  // a group's range, and with it the error of the small
                                         // columns, grows by 1.6 / 0.7 at most
  EXPECT_NE(error(pairs), plain);
}

// Every kind of layer of every dense variant: its pairs, and the layers that have them. Judged by
// shared/oracles/README.md; further ones are those that the graph allows (OPT-350m's and GPT-2's
// v → o, for example).
struct Layers {
  std::vector<std::string> pairs;
  std::vector<std::pair<const char*, std::int64_t>> layers;
};

std::vector<Case> cases() {
  const std::vector<Layers> table = {
      {{"input_layernorm > self_attn.q_proj", "post_attention_layernorm > mlp.gate_proj",
        "mlp.up_proj > mlp.down_proj"},
       {{"llama", 0},         {"llama3-rope", 0}, {"llama-linear-rope", 0},
        {"llama-yarn", 0},    {"mistral", 0},     {"mistral-window", 0},
        {"qwen2", 0},         {"qwen3", 0},       {"gemma", 0},
        {"stablelm", 0},      {"smollm3", 0},     {"smollm3", 2},
        {"seed-oss", 0},      {"mistral3", 0},    {"mistral3-ministral3", 0},
        {"deci", 0},          {"deci", 2},        {"nemotron-nas", 0},
        {"hunyuan-dense", 0}, {"ernie4_5", 0},    {"qwen2_5-vl", 0},
        {"qwen3-vl", 0},      {"granite", 0},     {"qwen3_5", 2},
        {"kimi-linear", 0}}},
      {{"input_layernorm > linear_attn.in_proj_qkv", "post_attention_layernorm > mlp.gate_proj",
        "mlp.up_proj > mlp.down_proj"},
       {{"qwen3_5", 0}}},
      {{"input_layernorm > self_attn.q_proj", "post_attention_layernorm > mlp.experts.0.gate_proj",
        "mlp.experts.0.up_proj > mlp.experts.0.down_proj",
        "mlp.experts.1.up_proj > mlp.experts.1.down_proj",
        "mlp.experts.2.up_proj > mlp.experts.2.down_proj",
        "mlp.experts.3.up_proj > mlp.experts.3.down_proj",
        "mlp.shared_expert.up_proj > mlp.shared_expert.down_proj"},
       {{"qwen2-moe", 0}, {"qwen2-moe", 2}}},
      {{"input_layernorm > self_attn.q_proj", "self_attn.v_proj > self_attn.o_proj",
        "post_attention_layernorm > mlp.gate_proj", "mlp.up_proj > mlp.down_proj"},
       {{"llama-mha", 0}, {"llama-mha-tied-bias", 0}, {"deci", 1}}},
      {{"input_layernorm > self_attn.q_proj", "pre_feedforward_layernorm > mlp.gate_proj",
        "mlp.up_proj > mlp.down_proj"},
       {{"gemma2", 0},
        {"gemma2", 1},
        {"gemma3", 0},
        {"gemma3", 1},
        {"gemma3-mm", 0},
        {"gemma3-mm", 1},
        {"gemma3-mm-v5", 0},
        {"gemma3-mm-v5", 1},
        {"gemma4-text", 0},
        {"gemma4-text", 2},
        {"gemma4-small", 0},
        {"gemma4-small", 1},
        {"gemma4-small", 2},
        {"gemma4-small", 3}}},
      {{"input_layernorm > self_attn.qkv_proj", "post_attention_layernorm > mlp.gate_up_proj",
        "mlp.gate_up_proj > mlp.down_proj"},
       {{"phi3", 0}, {"phi3-longrope", 0}, {"phi3-longrope-short", 0}}},
      {{"input_layernorm > self_attn.q_proj"}, {{"phi", 0}, {"nemotron-nas", 3}}},
      {{"input_layernorm > self_attention.query_key_value"},
       {{"falcon-7b-style", 0}, {"falcon-11b-style", 0}}},
      {{"ln_attn > self_attention.query_key_value", "ln_mlp > mlp.dense_h_to_4h"},
       {{"falcon-40b-style", 0}}},
      {{"input_layernorm > self_attention.query_key_value",
        "post_attention_layernorm > mlp.dense_h_to_4h"},
       {{"falcon-rw-alibi", 0}, {"bloom", 0}}},
      {{"self_attn_layer_norm > self_attn.q_proj", "self_attn.v_proj > self_attn.out_proj",
        "final_layer_norm > fc1", "fc1 > fc2"},
       {{"opt", 0}}},
      {{"self_attn.v_proj > self_attn.out_proj", "fc1 > fc2"}, {{"opt-350m-style", 0}}},
      {{"input_layernorm > attention.query_key_value",
        "post_attention_layernorm > mlp.dense_h_to_4h"},
       {{"gpt-neox", 0}}},
      {{"ln_1 > attn.c_attn", "attn.c_attn > attn.c_proj", "ln_2 > mlp.c_fc"}, {{"gpt2", 0}}},
      {{"ln_1 > attn.q_proj", "attn.v_proj > attn.out_proj"}, {{"gptj", 0}}},
      {{"ln_1 > attn.c_attn", "ln_2 > mlp.c_fc"}, {{"gpt-bigcode", 0}}},
      {{"norm_1 > attn.Wqkv", "attn.Wqkv > attn.out_proj", "norm_2 > ffn.up_proj"}, {{"mpt", 0}}},
      {{"input_layernorm > self_attn.q_proj", "post_attention_layernorm > mlp.c_fc"},
       {{"starcoder2", 0}}},
      {{"input_layernorm > self_attn.q_proj", "mlp.up_proj > mlp.down_proj"},
       {{"stablelm-2", 0}, {"cohere", 0}, {"cohere-qk-norm", 0}, {"cohere2", 0}, {"cohere2", 2}}},
      {{"mlp.up_proj > mlp.down_proj"},
       {{"olmo", 0}, {"olmo2", 0}, {"olmo3", 0}, {"olmo3", 2}, {"exaone4", 0}, {"exaone4", 2}}},
      {{"input_layernorm > self_attn.q_proj", "post_attention_layernorm > mlp.up_proj"},
       {{"arcee", 0}, {"nemotron", 0}}},
      {{"attention_layernorm > self_attn.q_proj", "feedforward_layernorm > mlp.up_proj"},
       {{"apertus", 0}}},
      {{"ln_1 > attn.attention.q_proj", "ln_2 > mlp.c_fc_0", "mlp.c_fc_1 > mlp.c_proj"},
       {{"exaone", 0}}},
      {{"attention_norm > attention.wqkv", "ffn_norm > feed_forward.w1",
        "feed_forward.w3 > feed_forward.w2"},
       {{"internlm2", 0}}},
      {{"input_layernorm > self_attn.W_pack", "self_attn.W_pack > self_attn.o_proj",
        "post_attention_layernorm > mlp.gate_proj", "mlp.up_proj > mlp.down_proj"},
       {{"baichuan-7b", 0}}},
      {{"input_layernorm > self_attn.q_proj", "post_attention_layernorm > mlp.linear"},
       {{"nemotron-nas", 1}}},
      {{"post_attention_layernorm > mlp.gate_proj", "mlp.up_proj > mlp.down_proj"},
       {{"nemotron-nas", 2}}},
      {{"input_layernorm > self_attn.linear", "post_attention_layernorm > mlp.gate_proj",
        "mlp.up_proj > mlp.down_proj"},
       {{"nemotron-nas", 4}}},
      {{"input_layernorm > self_attn.q_proj", "post_attention_layernorm > mlp.gate_up_proj",
        "mlp.gate_up_proj > mlp.down_proj"},
       {{"glm", 0}, {"glm4", 0}}},
      {{"input_layernorm > self_attn.q_proj", "post_attention_layernorm > shared_mlp.input_linear",
        "shared_mlp.input_linear > shared_mlp.output_linear"},
       {{"granitemoehybrid-dense", 0}}},
      {{"norm > mixer.in_proj"}, {{"mamba2", 0}, {"nemotron-h", 0}}},
      {{"norm > mixer.up_proj"}, {{"nemotron-h", 1}}},
      {{"norm > mixer.q_proj"}, {{"nemotron-h", 2}}},
      {{"input_layernorm > mamba.in_proj", "pre_ff_layernorm > feed_forward.gate_proj",
        "feed_forward.up_proj > feed_forward.down_proj"},
       {{"jamba", 0}}},
      {{"input_layernorm > self_attn.q_proj", "pre_ff_layernorm > feed_forward.gate_proj",
        "feed_forward.up_proj > feed_forward.down_proj"},
       {{"falcon-h1", 0}}},
      {{"operator_norm > conv.in_proj", "ffn_norm > feed_forward.w1",
        "feed_forward.w3 > feed_forward.w2"},
       {{"lfm2", 0}, {"lfm2-moe", 0}}},
      {{"operator_norm > self_attn.q_proj", "ffn_norm > feed_forward.w1",
        "feed_forward.w3 > feed_forward.w2"},
       {{"lfm2", 1}}},
  };
  std::vector<Case> all;
  for (const Layers& row : table)
    for (const auto& [model, layer] : row.layers) all.push_back({model, layer, row.pairs});
  return all;
}

INSTANTIATE_TEST_SUITE_P(Families, AwqFold, testing::ValuesIn(cases()), spelled);

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
