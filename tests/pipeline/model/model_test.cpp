// config.json → architecture: the tiny models of every family, older and newer spellings of the
// same model, rope values of the reference implementation, tensors of a checkpoint, faults.
#include "pipeline/model/model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>

#include "pipeline/files/error.h"
#include "pipeline/model/config_json.h"
#include "pipeline/model/rope_config.h"
#include "tests/pipeline/model/golden_models.h"

namespace qpipe {
namespace {

namespace fs = std::filesystem;

// In the order of attention, MLP.
std::vector<LinearSpec> linears_of(const LayerSpec& layer) {
  const auto& attention = std::get<Attention>(layer.mixer);
  const Mlp& mlp = std::get<Mlp>(layer.mlp);
  std::vector<LinearSpec> linears = attention.qkv;
  linears.push_back(attention.out);
  linears.insert(linears.end(), mlp.in.begin(), mlp.in.end());
  linears.push_back(mlp.out);
  return linears;
}

void expect_linear(const LinearSpec& linear, const char* name, std::int64_t out, std::int64_t in,
                   bool bias) {
  EXPECT_EQ(linear, (LinearSpec{name, out, in, bias}))
      << linear.name << " " << linear.out_features << " " << linear.in_features;
}

void expect_common(const Architecture& a) {
  EXPECT_EQ(a.layers, 3);
  EXPECT_EQ(a.hidden, 64);
  EXPECT_EQ(a.vocab, 320);
  EXPECT_EQ(a.max_positions, 128);
  EXPECT_EQ(a.carried, 0);
  EXPECT_EQ(a.kinds.size(), 1u);
  EXPECT_EQ(a.kind_of_layer, (std::vector<std::uint16_t>{0, 0, 0}));
  EXPECT_EQ(attention_of(a).heads.heads, 4);
  EXPECT_EQ(layer_of(a).residual_multiplier, 1.0f);
  EXPECT_FALSE(layer_of(a).after_mixer || layer_of(a).after_mlp || layer_of(a).per_layer);
  EXPECT_EQ(a.embedding.multiplier, 1.0f);
  EXPECT_EQ(a.embedding.width, 64);
  EXPECT_TRUE(a.embedding.positions.empty());
  EXPECT_FALSE(a.embedding.norm || a.embedding.projection || a.per_layer);
  EXPECT_FALSE(a.head.bias || a.head.projection);
  EXPECT_EQ(a.head.multiplier, 1.0f);
}

TEST(Model, Llama) {
  const Architecture a = architecture_of("llama");
  expect_common(a);
  const LayerSpec& layer = layer_of(a);
  EXPECT_EQ(a.model_type, "llama");
  EXPECT_EQ(layer.mixer_norm, (NormSpec{"input_layernorm", 64, NormKind::rms, 1e-6f}));
  EXPECT_EQ(layer.mlp_norm, (NormSpec{"post_attention_layernorm", 64, NormKind::rms, 1e-6f}));
  EXPECT_EQ(norms_of(layer), (NormNames{"input_layernorm", "", "post_attention_layernorm", ""}));
  EXPECT_EQ(layer.residual, Residual::sequential);
  EXPECT_FALSE(layer.shares_norm());

  const Attention& attention = attention_of(a);
  EXPECT_EQ(attention.heads, (HeadLayout{4, 2, 16, 32, 16, 64, 96}));
  EXPECT_EQ(attention.scale, 0.25f);
  EXPECT_EQ(windows_of(a), std::vector<std::int64_t>(3, 0));
  EXPECT_FALSE(attention.q_norm || attention.k_norm || attention.v_norm);
  EXPECT_TRUE(attention.alibi.slopes.empty());
  ASSERT_EQ(attention.qkv.size(), 3u);
  expect_linear(attention.qkv[0], "self_attn.q_proj", 64, 64, false);
  expect_linear(attention.qkv[1], "self_attn.k_proj", 32, 64, false);
  expect_linear(attention.qkv[2], "self_attn.v_proj", 32, 64, false);
  expect_linear(attention.out, "self_attn.o_proj", 64, 64, false);
  EXPECT_TRUE(attention.rope.enabled);
  EXPECT_FALSE(attention.rope.interleaved);
  EXPECT_EQ(attention.rope.inverse_frequencies.size(), 8u);

  const Mlp& mlp = mlp_of(a);
  EXPECT_TRUE(mlp.gated);
  EXPECT_EQ(mlp.activation, Activation::silu);
  EXPECT_EQ(mlp.width(), 128);
  ASSERT_EQ(mlp.in.size(), 2u);
  expect_linear(mlp.in[0], "mlp.gate_proj", 128, 64, false);
  expect_linear(mlp.in[1], "mlp.up_proj", 128, 64, false);
  expect_linear(mlp.out, "mlp.down_proj", 64, 128, false);

  EXPECT_EQ(a.layer_prefix, "model.layers.");
  EXPECT_EQ(layer_prefix(a, 2), "model.layers.2.");
  EXPECT_EQ(a.embedding.tokens, "model.embed_tokens.weight");
  EXPECT_EQ(a.head.norm, (NormSpec{"model.norm", 64, NormKind::rms, 1e-6f}));
  EXPECT_EQ(a.head.name, "lm_head");
  EXPECT_FALSE(a.head.tied);
}

TEST(Model, LlamaForms) {
  const Architecture mha = architecture_of("llama-mha");
  expect_common(mha);
  EXPECT_EQ(attention_of(mha).heads, (HeadLayout{4, 4, 16, 16, 16, 64, 128}));
  const Architecture tied = architecture_of("llama-mha-tied-bias");
  expect_common(tied);
  EXPECT_TRUE(tied.head.tied);
  EXPECT_EQ(linears_of(layer_of(tied)).size(), 7u);
  for (const LinearSpec& linear : linears_of(layer_of(tied)))
    EXPECT_TRUE(linear.bias) << linear.name;
  EXPECT_EQ(attention_of(architecture_of("llama-yarn")).rope.amplitude,
            static_cast<float>(0.1 * std::log(4.0) + 1.0));
  // The rope kinds change rope alone.
  for (const char* name : {"llama3-rope", "llama-linear-rope", "llama-yarn"}) {
    Architecture a = architecture_of(name);
    const Architecture plain = architecture_of("llama");
    ASSERT_EQ(a.kinds.size(), 1u) << name;
    EXPECT_NE(attention_of(a).rope, attention_of(plain).rope) << name;
    std::get<Attention>(a.kinds[0].mixer).rope = attention_of(plain).rope;
    EXPECT_EQ(a, plain) << name;
  }
}

TEST(Model, Mistral) {
  Architecture a = architecture_of("mistral");
  EXPECT_EQ(a.model_type, "mistral");
  EXPECT_EQ(windows_of(a), std::vector<std::int64_t>(3, 0));
  a.model_type = "llama";
  EXPECT_EQ(a, architecture_of("llama"));

  const Architecture windowed = architecture_of("mistral-window");
  expect_common(windowed);
  const Attention& attention = attention_of(windowed);
  EXPECT_EQ(windows_of(windowed), std::vector<std::int64_t>(3, 16));
  EXPECT_EQ(attention.heads,
            (HeadLayout{4, 2, 32, 64, 32, 128, 192}));  // head_dim is not hidden / heads
  expect_linear(attention.qkv[0], "self_attn.q_proj", 128, 64, false);
  expect_linear(attention.out, "self_attn.o_proj", 64, 128, false);
  EXPECT_EQ(attention.scale, 1.0f / std::sqrt(32.0f));
}

TEST(Model, Qwen) {
  const Architecture qwen2 = architecture_of("qwen2");
  expect_common(qwen2);
  for (const LinearSpec& linear : attention_of(qwen2).qkv) EXPECT_TRUE(linear.bias);
  EXPECT_FALSE(attention_of(qwen2).out.bias);
  EXPECT_FALSE(mlp_of(qwen2).out.bias);
  EXPECT_EQ(windows_of(qwen2), std::vector<std::int64_t>(3, 0));
  EXPECT_FALSE(attention_of(qwen2).q_norm);

  const Architecture qwen3 = architecture_of("qwen3");
  expect_common(qwen3);
  const Attention& attention = attention_of(qwen3);
  EXPECT_EQ(attention.q_norm, (HeadNorm{{"self_attn.q_norm", 32, NormKind::rms, 1e-6f}}));
  EXPECT_EQ(attention.k_norm, (HeadNorm{{"self_attn.k_norm", 32, NormKind::rms, 1e-6f}}));
  EXPECT_FALSE(attention.v_norm || attention.norms_after_rope);
  EXPECT_EQ(attention.heads.head_dim, 32);
  for (const LinearSpec& linear : attention.qkv) EXPECT_FALSE(linear.bias);
}

TEST(Model, Falcon) {
  const Architecture seven = architecture_of("falcon-7b-style");
  expect_common(seven);
  EXPECT_EQ(layer_of(seven).mixer_norm,
            (NormSpec{"input_layernorm", 64, NormKind::layer, 1e-5f, 0.0f, true, true}));
  EXPECT_EQ(layer_of(seven).residual, Residual::parallel);
  EXPECT_TRUE(layer_of(seven).shares_norm());
  EXPECT_EQ(norms_of(layer_of(seven)), (NormNames{"input_layernorm", "", "", ""}));
  const Attention& attention = attention_of(seven);
  EXPECT_EQ(attention.heads, (HeadLayout{4, 1, 16, 64, 16, 64, 80}));
  ASSERT_EQ(attention.qkv.size(), 1u);
  expect_linear(attention.qkv[0], "self_attention.query_key_value", 96, 64, false);
  expect_linear(attention.out, "self_attention.dense", 64, 64, false);
  const Mlp& mlp = mlp_of(seven);
  ASSERT_EQ(mlp.in.size(), 1u);
  expect_linear(mlp.in[0], "mlp.dense_h_to_4h", 256, 64, false);
  expect_linear(mlp.out, "mlp.dense_4h_to_h", 64, 256, false);
  EXPECT_FALSE(mlp.gated);
  EXPECT_EQ(mlp.activation, Activation::gelu);
  EXPECT_TRUE(seven.head.tied);
  EXPECT_EQ(seven.layer_prefix, "transformer.h.");
  EXPECT_EQ(seven.embedding.tokens, "transformer.word_embeddings.weight");
  EXPECT_EQ(name_of(seven.head.norm), "transformer.ln_f");
  EXPECT_TRUE(attention.rope.enabled);

  const Architecture forty = architecture_of("falcon-40b-style");
  EXPECT_EQ(layer_of(forty).residual, Residual::parallel);
  EXPECT_FALSE(layer_of(forty).shares_norm());
  EXPECT_EQ(norms_of(layer_of(forty)), (NormNames{"ln_attn", "", "ln_mlp", ""}));
  EXPECT_EQ(attention_of(forty).heads,
            (HeadLayout{4, 2, 16, 64, 64, 32, 48}));  // q q k v of group 0, then of group 1
  expect_linear(attention_of(forty).qkv[0], "self_attention.query_key_value", 128, 64, false);

  const Architecture eleven = read_architecture(
      with(config_of("falcon-40b-style"), {{"num_ln_in_parallel_attn", 1}}), "config.json");
  EXPECT_TRUE(layer_of(eleven).shares_norm());
  EXPECT_EQ(norms_of(layer_of(eleven)), (NormNames{"input_layernorm", "", "", ""}));
  EXPECT_EQ(attention_of(eleven).heads, attention_of(forty).heads);

  const Architecture rw = architecture_of("falcon-rw-alibi");
  EXPECT_EQ(layer_of(rw).residual, Residual::sequential);
  EXPECT_FALSE(layer_of(rw).shares_norm());
  EXPECT_EQ(norms_of(layer_of(rw)),
            (NormNames{"input_layernorm", "", "post_attention_layernorm", ""}));
  const Attention& with_alibi = attention_of(rw);
  EXPECT_EQ(with_alibi.heads, (HeadLayout{4, 4, 16, 48, 48, 16, 32}));  // q k v of each head
  expect_linear(with_alibi.qkv[0], "self_attention.query_key_value", 192, 64, true);
  EXPECT_TRUE(mlp_of(rw).out.bias);
  EXPECT_FALSE(with_alibi.rope.enabled);
  EXPECT_TRUE(with_alibi.alibi.in_bf16);
  EXPECT_EQ(with_alibi.alibi.scale, 0.25f);
  EXPECT_EQ(with_alibi.alibi.slopes,
            (std::vector<float>{0.25f, 0.0625f, 0.015625f,
                                0.00390625f}));  // the ALiBi paper: 2^(-8 i / heads)
}

// The ALiBi paper's code for 12 heads: those of 8, then every other one of 16.
TEST(Model, AlibiSlopesOfHeadsThatAreNoPowerOfTwo) {
  const Architecture a = read_architecture(
      with(config_of("falcon-rw-alibi"),
           {{"hidden_size", 96}, {"num_attention_heads", 12}, {"num_kv_heads", 12}}),
      "config.json");
  const std::vector<float>& slopes = attention_of(a).alibi.slopes;
  ASSERT_EQ(slopes.size(), 12u);
  for (int i = 0; i < 8; ++i)
    EXPECT_FLOAT_EQ(slopes[static_cast<std::size_t>(i)], std::exp2(-static_cast<float>(i + 1)));
  for (int i = 0; i < 4; ++i)
    EXPECT_FLOAT_EQ(slopes[static_cast<std::size_t>(8 + i)],
                    std::exp2(-0.5f * static_cast<float>(2 * i + 1)));
}

// What transformers before 5 wrote for the same models.
Json older(Json config) {
  const Json rope = config.at("rope_parameters");
  config.erase("rope_parameters");
  config["torch_dtype"] = config.at("dtype");
  config.erase("dtype");
  const bool neox = config.at("model_type") == "gpt_neox";
  config[neox ? "rotary_emb_base" : "rope_theta"] = rope.at("rope_theta");
  if (rope.contains("partial_rotary_factor"))
    config[neox ? "rotary_pct" : "partial_rotary_factor"] = rope.at("partial_rotary_factor");
  Json scaling = without(rope, {"rope_theta", "partial_rotary_factor"});
  config["rope_scaling"] = scaling.at("rope_type") == "default" ? Json() : scaling;
  return config;
}

Json oldest(const Json& config) {
  Json result = older(config);
  Json& scaling = result["rope_scaling"];
  if (!scaling.is_null()) {
    scaling["type"] = scaling.at("rope_type");
    scaling.erase("rope_type");
  }
  return result;
}

// Of the models that the newer transformers wrote, with one rope for all layers.
TEST(Model, OlderSpellingsGiveTheSameArchitecture) {
  int models = 0;
  for (const fs::directory_entry& folder : fs::directory_iterator(golden / "models")) {
    const Json config = config_of(folder.path().filename().string());
    if (!config.contains("dtype") || !config.contains("rope_parameters") ||
        !config.at("rope_parameters").contains("rope_theta"))
      continue;
    const Architecture a = read_architecture(config, "config.json");
    EXPECT_EQ(read_architecture(older(config), "config.json"), a) << folder;
    EXPECT_EQ(read_architecture(oldest(config), "config.json"), a) << folder;
    ++models;
  }
  EXPECT_GE(models, 17);
}

// Of every golden model, every key that may be left out: null reads as absence, but where
// transformers gives it a meaning of its own, and for flags, which null turns off.
TEST(Model, NullMeansAbsent) {
  const std::set<std::string> have_a_meaning = {
      "sliding_window",          "num_key_value_heads",  "attn_logit_softcapping", "rotary_dim",
      "final_logit_softcapping", "attention_chunk_size", "attention_value_scale",  "q_lora_rank"};
  int keys = 0;
  for (const fs::directory_entry& folder : fs::directory_iterator(golden / "models")) {
    const Json config = config_of(folder.path().filename().string());
    for (const auto& [key, value] : config.items()) {
      if (have_a_meaning.contains(key) || value.is_boolean()) continue;
      const Json absent = without(config, {key.c_str()});
      if (fault(absent) != "no fault") continue;
      EXPECT_EQ(fault(with(config, {{key, nullptr}})), "no fault") << folder << ": " << key;
      EXPECT_EQ(read_architecture(with(config, {{key, nullptr}}), "m/config.json"),
                read_architecture(absent, "m/config.json"))
          << folder << ": " << key;
      ++keys;
    }
  }
  EXPECT_GT(keys, 200);
}

TEST(Model, SizesThatNoMachineHolds) {
  const Json llama = config_of("llama");
  for (const Json& size : std::vector<Json>{1000000000000000000, 9007199254740993, -1, 1e30, 1e18})
    for (const std::string key : {"vocab_size", "num_hidden_layers", "hidden_size"})
      expect_fault(with(llama, {{key, size}}), {(key + " = ").c_str(), "from 1 to"});
  expect_fault(with(llama, {{"num_hidden_layers", 10000},
                            {"hidden_size", 1 << 23},
                            {"vocab_size", 1 << 24},
                            {"intermediate_size", 1 << 24}}),
               {"10^15 parameters"});
}

TEST(Model, RefinedWebIsFalcon) {
  // The keys of tiiuae/falcon-7b's and falcon-40b's first config.json, at the tiny models' sizes.
  const Json common = {{"alibi", false},
                       {"apply_residual_connection_post_layernorm", false},
                       {"bias", false},
                       {"hidden_size", 64},
                       {"layer_norm_epsilon", 1e-5},
                       {"max_position_embeddings", 128},
                       {"n_head", 4},
                       {"n_layer", 3},
                       {"parallel_attn", true},
                       {"torch_dtype", "bfloat16"},
                       {"vocab_size", 320}};
  const Json seven = with(common, {{"model_type", "RefinedWebModel"}, {"multi_query", true}});
  EXPECT_EQ(read_architecture(seven, "config.json"), architecture_of("falcon-7b-style"));
  const Json forty = with(common, {{"model_type", "RefinedWeb"}, {"n_head_kv", 2}});
  EXPECT_EQ(read_architecture(forty, "config.json"), architecture_of("falcon-40b-style"));
  expect_fault(without(seven, {"multi_query"}), {"multi_query is missing"});
}

TEST(Model, DefaultsAreThoseOfTheReference) {
  const Json llama =
      without(config_of("llama"), {"num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps",
                                   "max_position_embeddings", "attention_bias", "mlp_bias",
                                   "tie_word_embeddings", "rope_parameters"});
  const Architecture a = read_architecture(llama, "config.json");
  EXPECT_EQ(attention_of(a).heads.kv_heads, 4);
  EXPECT_EQ(attention_of(a).heads.head_dim, 16);
  EXPECT_EQ(mlp_of(a).activation, Activation::silu);
  EXPECT_EQ(layer_of(a).mixer_norm->eps, 1e-6f);
  EXPECT_EQ(a.max_positions, 2048);
  EXPECT_FALSE(a.head.tied);
  EXPECT_EQ(attention_of(a).rope, attention_of(architecture_of("llama")).rope);  // theta 10000

  const Json sizes = {{"hidden_size", 4096},
                      {"num_attention_heads", 32},
                      {"num_hidden_layers", 30},
                      {"vocab_size", 100},
                      {"intermediate_size", 64}};
  const Architecture mistral =
      read_architecture(with(sizes, {{"model_type", "mistral"}}), "config.json");
  EXPECT_EQ(windows_of(mistral), std::vector<std::int64_t>(30, 4096));
  EXPECT_EQ(attention_of(mistral).heads.kv_heads, 8);
  EXPECT_EQ(mistral.max_positions, 131072);
  EXPECT_EQ(attention_of(read_architecture(with(sizes, {{"model_type", "mistral"},
                                                        {"num_key_value_heads", nullptr}}),
                                           "c"))
                .heads.kv_heads,
            32);
  const Architecture qwen3 = read_architecture(
      with(sizes, {{"model_type", "qwen3"}, {"use_sliding_window", true}}), "config.json");
  EXPECT_EQ(attention_of(qwen3).heads.head_dim, 128);
  EXPECT_EQ(attention_of(qwen3).heads.kv_heads, 32);
  EXPECT_EQ(qwen3.max_positions, 32768);
  std::vector<std::int64_t> last_two(30, 0);
  last_two[28] = last_two[29] = 4096;  // max_window_layers is 28
  EXPECT_EQ(windows_of(qwen3), last_two);
  const Architecture falcon = read_architecture(
      without(with(sizes, {{"model_type", "falcon"}}), {"intermediate_size"}), "config.json");
  EXPECT_EQ(mlp_of(falcon).width(), 4 * 4096);
  EXPECT_EQ(falcon.max_positions, 2048);
  EXPECT_TRUE(falcon.head.tied);
  EXPECT_EQ(attention_of(falcon).heads.kv_heads, 1);
}

TEST(Model, WindowsByLayer) {
  const Json base = with(without(config_of("qwen2"), {"layer_types"}),
                         {{"use_sliding_window", true}, {"sliding_window", 16}});
  using Window = std::vector<std::int64_t>;
  const auto windows = [&](const Json& changes) {
    return windows_of(read_architecture(with(base, changes), "c"));
  };
  EXPECT_EQ(windows({{"max_window_layers", 1}}), (Window{0, 16, 16}));
  EXPECT_EQ(windows({{"max_window_layers", 1}, {"use_sliding_window", false}}), (Window{0, 0, 0}));
  EXPECT_EQ(windows({{"max_window_layers", 1}, {"sliding_window", nullptr}}), (Window{0, 0, 0}));
  const Json types = {"sliding_attention", "full_attention", "sliding_attention"};
  EXPECT_EQ(windows({{"layer_types", types}}), (Window{16, 0, 16}));
  // Layers that differ are kinds, each once.
  const Architecture a = read_architecture(with(base, {{"layer_types", types}}), "c");
  EXPECT_EQ(a.kinds.size(), 2u);
  EXPECT_EQ(a.kind_of_layer, (std::vector<std::uint16_t>{0, 1, 0}));
  expect_fault(with(base, {{"layer_types", types}, {"use_sliding_window", false}}),
               {"layer_types", "layer 0", "no window"});
  expect_fault(with(base, {{"layer_types", {"sliding_attention"}}}), {"layer_types", "3 layers"});
  expect_fault(
      with(base, {{"layer_types", {"full_attention", "chunked_attention", "full_attention"}}}),
      {"layer_types", "must hold only"});
  expect_fault(with(base, {{"sliding_window", 0}, {"max_window_layers", 1}}),
               {"sliding_window = 0"});
  expect_fault(with(config_of("llama"), {{"layer_types", types}}), {"layer_types", "no window"});
  expect_fault(with(config_of("mistral-window"), {{"layer_types", types}}),
               {"layer_types", "layer 1 full"});
}

// A case's rule: what a family's reader asks for.
RopeRule rule_of(const Json& one) {
  RopeRule rule{.head_dim = one.at("head_dim"),
                .max_positions = one.at("config").at("max_position_embeddings")};
  const Json stated = one.value("rule", Json::object());
  rule.partial = true;
  rule.theta = stated.value("theta", rule.theta);
  rule.theta_key = stated.value("theta_key", rule.theta_key);
  rule.layer_type = stated.value("layer_type", rule.layer_type);
  rule.scaled = stated.value("scaled", rule.scaled);
  rule.original_positions = stated.value("original_positions", rule.original_positions);
  return rule;
}

void expect_frequencies(const std::vector<float>& found, const Json& values,
                        const std::string& name) {
  const auto expected = values.get<std::vector<float>>();
  ASSERT_EQ(found.size(), expected.size()) << name;
  for (std::size_t i = 0; i < expected.size(); ++i)
    EXPECT_NEAR(found[i], expected[i], 8 * std::exp2(-24.0) * expected[i]) << name << " " << i;
}

// tests/golden/rope.json: the values of transformers 5.24's own functions and configuration classes
// (tests/golden/make_rope_json.py). Powers differ by a unit in the last place between libraries,
// and the ramps of yarn and llama3 (differences of such values) by a few: 8 units.
TEST(Rope, MatchesTheReference) {
  const Json cases = golden_json("rope.json");
  ASSERT_GE(cases.size(), 30u);
  for (const Json& one : cases) {
    const std::string name = one.at("name");
    const Rope rope = read_rope({one.at("config"), name}, rule_of(one));
    EXPECT_TRUE(rope.enabled);
    const auto longest = name == "dynamic" ? one.at("config").at("max_position_embeddings")
                                           : one.value("longest", Json(0));
    EXPECT_EQ(rope.longest, longest.get<std::int64_t>()) << name;
    EXPECT_FLOAT_EQ(rope.amplitude, one.at("amplitude").get<float>()) << name;
    EXPECT_FLOAT_EQ(rope.longer_amplitude, one.value("longer_amplitude", 1.0f)) << name;
    expect_frequencies(rope.inverse_frequencies, one.at("inverse_frequencies"), name);
    expect_frequencies(rope.longer_frequencies, one.value("longer_frequencies", Json::array()),
                       name);
  }
}

TEST(Rope, RopeScalingAndItsThetaComeFirst) {
  const Json config = {
      {"rope_theta", 10.0},
      {"rope_scaling", {{"rope_type", "linear"}, {"factor", 2.0}, {"rope_theta", 100.0}}},
      {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 7.0}}}};
  EXPECT_EQ(read_rope({config, "c"}, {4, 128}).inverse_frequencies,
            (std::vector<float>{0.5f, 0.05f}));
  const Json empty = {
      {"rope_theta", 100.0}, {"rope_scaling", nullptr}, {"rope_parameters", Json::object()}};
  EXPECT_EQ(read_rope({empty, "c"}, {4, 128}).inverse_frequencies,
            (std::vector<float>{1.0f, 0.1f}));
}

TEST(Rope, DynamicScalingHoldsUpToItsContext) {
  const Json config =
      with(config_of("llama"), {{"rope_parameters", {{"rope_type", "dynamic"}, {"factor", 2.0}}}});
  const Architecture a = read_architecture(config, "config.json");
  EXPECT_EQ(attention_of(a).rope.inverse_frequencies,
            attention_of(architecture_of("llama")).rope.inverse_frequencies);
  EXPECT_NO_THROW(check_sequence_length(a, 128));
  EXPECT_THROW(check_sequence_length(a, 129), UserError);
  EXPECT_NO_THROW(check_sequence_length(architecture_of("llama"), 100000));
}

TEST(RopeFaults, NameTheKey) {
  const auto rope = [](const Json& parameters) {
    return with(config_of("llama"), {{"rope_parameters", parameters}});
  };
  expect_fault(rope({{"rope_type", "axial"}}),
               {"rope_parameters: rope_type = \"axial\"", "proportional, yarn"});
  expect_fault(rope({{"rope_type", "longrope"}}), {"short_factor is missing", "8 numbers"});
  expect_fault(rope({{"rope_type", "longrope"}, {"short_factor", {1, 2}}}),
               {"short_factor = [1,2]", "8 numbers"});
  expect_fault(rope({{"rope_type", 3}}), {"rope_type = 3", "string"});
  expect_fault(rope({{"rope_type", "linear"}}), {"rope_parameters: factor is missing"});
  expect_fault(rope({{"rope_type", "linear"}, {"factor", -2}}), {"factor = -2", "above 0"});
  expect_fault(rope({{"rope_type", "yarn"}}), {"factor is missing"});
  expect_fault(rope({{"rope_type", "llama3"}, {"factor", 8}}), {"low_freq_factor is missing"});
  expect_fault(rope({{"rope_type", "llama3"},
                     {"factor", 8},
                     {"low_freq_factor", 4},
                     {"high_freq_factor", 3}}),
               {"high_freq_factor = 3"});
  expect_fault(rope({{"rope_theta", "10000"}}), {"rope_theta = \"10000\""});
  expect_fault(rope({{"rope_theta", 0}}), {"rope_theta = 0"});
  expect_fault(rope({{"partial_rotary_factor", 0.5}}),
               {"partial_rotary_factor = 0.5", "whole heads"});
  expect_fault(rope({{"partial_rotary_factor", 1.5}}), {"at most 1"});
  EXPECT_EQ(fault(rope({{"partial_rotary_factor", 1.0}})), "no fault");
  expect_fault(rope({{"full_attention", {{"rope_type", "default"}}}}),
               {"rope_parameters = {", "one object for all layers"});
  expect_fault(with(config_of("llama"), {{"rope_scaling", "linear"}}),
               {"rope_scaling = \"linear\"", "object"});
  expect_fault(with(config_of("llama"), {{"head_dim", 15}}), {"head_dim 15", "even"});
}

TEST(ModelFaults, UnknownFamilyNamesTheNearest) {
  const std::vector<std::string> known = supported_families();
  EXPECT_TRUE(std::is_sorted(known.begin(), known.end()));
  for (const char* name : {"RefinedWeb", "RefinedWebModel", "falcon", "llama", "mistral", "qwen2",
                           "qwen3", "gpt2", "nemotron-nas"})
    EXPECT_NE(std::find(known.begin(), known.end(), name), known.end()) << name;
  EXPECT_EQ(std::adjacent_find(known.begin(), known.end()), known.end());  // each once
  expect_fault(with(config_of("llama"), {{"model_type", "lama"}}),
               {"'lama'", "did you mean 'llama'?", ", falcon, ", ", llama, "});
  expect_fault(with(config_of("llama"), {{"model_type", "zzz"}}),
               {"'zzz' is not supported. Supported:"});
  expect_fault(without(config_of("llama"), {"model_type"}), {"model_type is missing", "falcon"});
  expect_fault(with(config_of("llama"), {{"model_type", 7}}), {"model_type = 7", "string"});
  expect_fault(Json::array(), {"object"});
  try {
    read_architecture(with(config_of("llama"), {{"model_type", "mamba"}}), "c");
    FAIL();
  } catch (const UserError& error) {
    EXPECT_EQ(error.code, ExitCode::unavailable);
  }
}

TEST(ModelFaults, NameTheKey) {
  const Json llama = config_of("llama");
  for (const char* key :
       {"hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "intermediate_size", "vocab_size", "max_position_embeddings"}) {
    for (const Json& wrong : std::vector<Json>{0, -1, 2.5, "64", true, std::int64_t{1} << 50,
                                               ~std::uint64_t{0}, Json::array({64})}) {
      const std::string expected = std::string(key) + " = " + wrong.dump();
      expect_fault(with(llama, {{key, wrong}}), {expected.c_str(), "an integer from 1 to"});
    }
  }
  for (const char* key : {"hidden_size", "num_hidden_layers", "num_attention_heads",
                          "intermediate_size", "vocab_size"})
    expect_fault(without(llama, {key}), {key, "is missing"});
  expect_fault(with(llama, {{"num_key_value_heads", 3}}),
               {"num_attention_heads = 4", "not a multiple", "= 3"});
  expect_fault(without(with(llama, {{"hidden_size", 66}}), {"head_dim"}),
               {"hidden_size = 66", "num_attention_heads = 4", "head_dim"});
  expect_fault(with(config_of("falcon-rw-alibi"), {{"hidden_size", 66}}),
               {"hidden_size = 66", "num_attention_heads = 4"});
  expect_fault(with(llama, {{"num_attention_heads", 1 << 20}, {"head_dim", 1 << 20}}),
               {"wider than"});
  expect_fault(with(llama, {{"hidden_act", "mish"}}), {"hidden_act = \"mish\"", "silu"});
  expect_fault(with(llama, {{"rms_norm_eps", "1e-6"}}), {"rms_norm_eps = \"1e-6\""});
  expect_fault(with(llama, {{"rms_norm_eps", 0.0}}), {"rms_norm_eps = 0.0"});
  expect_fault(with(llama, {{"attention_bias", "yes"}}),
               {"attention_bias = \"yes\"", "true or false"});
  expect_fault(with(llama, {{"tie_word_embeddings", 1}}), {"tie_word_embeddings = 1"});
  expect_fault(with(config_of("qwen2"), {{"use_mrope", true}}), {"use_mrope = true", "false"});
  expect_fault(with(llama, {{"hidden_size", nullptr}}), {"hidden_size = null"});
  const Json falcon = config_of("falcon-40b-style");
  expect_fault(with(falcon, {{"parallel_attn", false}}),
               {"parallel_attn = false", "always parallel"});
  expect_fault(with(falcon, {{"num_ln_in_parallel_attn", 3}}),
               {"num_ln_in_parallel_attn = 3", "1, 2"});
  expect_fault(with(falcon, {{"multi_query", "no"}}), {"multi_query = \"no\"", "true, false"});
  expect_fault(with(falcon, {{"apply_residual_connection_post_layernorm", true}}),
               {"apply_residual_connection_post_layernorm = true"});
  expect_fault(with(config_of("falcon-7b-style"), {{"num_ln_in_parallel_attn", 2}}), {"two norms"});
  // A long value is cut, invalid UTF-8 is escaped.
  EXPECT_LT(fault(with(llama, {{"hidden_act", std::string(100000, 'x')}})).size(), 300u);
  expect_fault(with(llama, {{"hidden_act", "\xff\n"}}), {"hidden_act"});
}

}  // namespace
}  // namespace qpipe
