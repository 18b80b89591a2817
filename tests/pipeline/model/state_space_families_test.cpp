// config.json → architecture for families with state spaces and short convolutions: kinds of
// layers, widths, defaults of the reference, forms that are refused.
#include <gtest/gtest.h>

#include <limits>

#include "pipeline/model/readers.h"
#include "stages/layer.h"
#include "tests/pipeline/model/golden_models.h"

namespace qpipe {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

Architecture read(const Json& config) { return read_architecture(config, "config.json"); }

Architecture changed(const std::string& model, const Json& changes) {
  return read(with(config_of(model), changes));
}

template <class Kind>
const Kind& mixer_of(const Architecture& a, std::int64_t layer = 0) {
  return std::get<Kind>(a.layer(layer).mixer);
}

template <class Kind>
bool mixes(const Architecture& a, std::int64_t layer) {
  return std::holds_alternative<Kind>(a.layer(layer).mixer);
}

std::vector<std::string> tensor_names(const LayerSpec& spec) {
  std::vector<std::string> names;
  for (const TensorSpec& tensor : layer_tensors(spec)) names.push_back(tensor.name);
  return names;
}

TEST(Mamba2, LayersOfOneMixer) {
  const Architecture a = architecture_of("mamba2");
  const Mamba2& m = mixer_of<Mamba2>(a);
  EXPECT_EQ(a.layer_prefix, "backbone.layers.");
  EXPECT_EQ(a.embedding.tokens, "backbone.embeddings.weight");
  EXPECT_EQ(m.layout, (StateSpaceLayout{4, 32, 2, 16}));
  EXPECT_EQ(m.in, (LinearSpec{"mixer.in_proj", 324, 64}));
  EXPECT_EQ(m.out, (LinearSpec{"mixer.out_proj", 64, 128}));
  EXPECT_EQ(m.conv, (CausalConv{"mixer.conv1d", 192, 4, true}));
  EXPECT_EQ(m.norm_groups, 2);
  EXPECT_TRUE(m.gate_first);
  EXPECT_EQ(m.shortest_step, 0.0f);
  EXPECT_EQ(m.longest_step, infinity);
  EXPECT_EQ(
      tensor_names(a.layer(0)),
      (std::vector<std::string>{"mixer.in_proj.weight", "mixer.out_proj.weight", "norm.weight",
                                "mixer.norm.weight", "mixer.conv1d.weight", "mixer.conv1d.bias",
                                "mixer.A_log", "mixer.dt_bias", "mixer.D"}));
  EXPECT_EQ(layer_steps(a.layer(0)).size(), 2u);
}

TEST(Mamba2, RefusesWhatDoesNotFit) {
  const Json config = config_of("mamba2");
  expect_fault(with(config, {{"head_dim", 16}}), {"head_dim = 16", "must be 32"});
  expect_fault(with(config, {{"num_heads", 3}}), {"num_heads = 3", "must divide the 128"});
  expect_fault(with(config, {{"n_groups", 3}}), {"n_groups = 3", "must divide the 4 heads"});
  expect_fault(with(config, {{"state_size", 257}}), {"state_size = 257", "at most 256"});
  expect_fault(with(config, {{"hidden_act", "gelu"}}), {"hidden_act"});
  for (const Json& limits :
       {Json{0.5, 0.25}, Json{-1.0, 1.0}, Json{0.5}, Json("long"), Json{0.0, Json::array({"NaN"})}})
    expect_fault(with(config, {{"time_step_limit", limits}}), {"time_step_limit"});
  const Architecture a = read(with(config, {{"time_step_limit", {0.001, 0.5}}}));
  EXPECT_EQ(mixer_of<Mamba2>(a).longest_step, 0.5f);
  const Json python = {{"time_step_limit", {0.0, Json::array({"Infinity"})}}};
  EXPECT_EQ(changed("mamba2", python), architecture_of("mamba2"));
}

TEST(NemotronH, OneThingALayer) {
  const Architecture a = architecture_of("nemotron-h");
  EXPECT_TRUE(mixes<Mamba2>(a, 0));
  EXPECT_TRUE(mixes<Nothing>(a, 1));
  EXPECT_TRUE(mixes<Attention>(a, 2));
  EXPECT_TRUE(mixes<Nothing>(a, 3));
  EXPECT_FALSE(a.layer(0).mlp_norm);
  EXPECT_FALSE(a.layer(1).mixer_norm);
  EXPECT_EQ(a.layer(1).mlp_norm->name, "norm");
  EXPECT_TRUE(std::holds_alternative<Nothing>(a.layer(2).mlp));
  EXPECT_FALSE(mixer_of<Attention>(a, 2).rope.enabled);
  EXPECT_EQ(std::get<Mlp>(a.layer(1).mlp).activation, Activation::relu2);
  const Experts& experts = std::get<Experts>(a.layer(3).mlp);
  EXPECT_EQ(experts.experts.size(), 6u);
  EXPECT_FALSE(experts.experts[5].gated);
  EXPECT_EQ(experts.experts[5].out, (LinearSpec{"mixer.experts.5.down_proj", 64, 32}));
  EXPECT_EQ(experts.shared->width(), 48);
  EXPECT_EQ(experts.router.options.scaling, 2.5f);
  // The reference's shortest step is time_step_min, whatever the limit says.
  EXPECT_EQ(mixer_of<Mamba2>(a).shortest_step, 0.001f);
  EXPECT_EQ(mixer_of<Mamba2>(a).longest_step, infinity);
}

TEST(NemotronH, KindsByLettersOrNames) {
  const Json names = {"linear_attention", "mlp", "full_attention", "moe"};
  const Json older = {"mamba", "mlp", "attention", "moe"};
  for (const Json& list : {names, older}) {
    const Json both = {{"layers_block_type", list}};
    EXPECT_EQ(changed("nemotron-h", both), architecture_of("nemotron-h"));
    EXPECT_EQ(read(with(without(config_of("nemotron-h"), {"hybrid_override_pattern"}), both)),
              architecture_of("nemotron-h"));
  }
  const Json config = config_of("nemotron-h");
  expect_fault(with(config, {{"hybrid_override_pattern", "M-*X"}}),
               {"hybrid_override_pattern", "layer 3"});
  expect_fault(with(config, {{"hybrid_override_pattern", "M-*"}}),
               {"hybrid_override_pattern", "4 layers"});
  expect_fault(with(config, {{"layers_block_type", {"mamba", "mlp", "moe", "moe"}}}),
               {"hybrid_override_pattern", "layers_block_type"});
  expect_fault(without(config, {"hybrid_override_pattern"}), {"hybrid_override_pattern"});
  expect_fault(with(config, {{"moe_latent_size", 16}}), {"moe_latent_size = 16"});
  expect_fault(with(config, {{"attention_bias", true}}), {"attention_bias = true"});
}

TEST(FalconH1, BothMixersOnOneNorm) {
  const Architecture a = architecture_of("falcon-h1");
  const auto& both = mixer_of<AttentionBesideMamba2>(a);
  EXPECT_EQ(both.mamba.layout, (StateSpaceLayout{6, 16, 2, 16}));
  EXPECT_FLOAT_EQ(both.mamba.multipliers[0], 1.2f * 0.9f);
  EXPECT_FLOAT_EQ(both.mamba.multipliers[4], 1.2f * 0.6f);
  EXPECT_FLOAT_EQ(both.attention.scale, 0.25f * 1.1f * 1.1f * 0.7f);
  EXPECT_EQ(both.attention.value_scale, 1.1f);
  EXPECT_EQ(both.attention_multiplier, 0.8f);
  EXPECT_EQ(both.mamba_multiplier, 0.7f);
  EXPECT_EQ(mlp_of(a).gate_multiplier, 0.9f);
  EXPECT_EQ(mlp_of(a).out_multiplier, 0.6f);
  const std::vector<Step> steps = layer_steps(a.layer(0));
  ASSERT_EQ(steps.size(), 4u);
  EXPECT_EQ(steps[0].groups.size(), 1u);
  EXPECT_EQ(steps[0].runs, (std::vector<std::size_t>{0, 1, 2, 3}));
  ASSERT_EQ(steps[1].panels.size(), 2u);
  EXPECT_EQ(steps[1].panels[0].columns, 64);
  EXPECT_EQ(steps[1].panels[1].columns, 96);
  EXPECT_EQ(steps[1].groups[1].linears, (std::vector<std::size_t>{5}));
  EXPECT_EQ(layer_linears(a.layer(0))[5].name, "mamba.out_proj");

  const Architecture plain = changed("falcon-h1", {{"mamba_rms_norm", false}});
  EXPECT_FALSE(mixer_of<AttentionBesideMamba2>(plain).mamba.norm);
  const Json config = config_of("falcon-h1");
  expect_fault(with(config, {{"attention_bias", true}}), {"attention_bias = true"});
  expect_fault(with(config, {{"mamba_proj_bias", true}}), {"mamba_proj_bias = true"});
  expect_fault(with(config, {{"ssm_multipliers", {1.0, 2.0}}}), {"ssm_multipliers", "5 numbers"});
  expect_fault(with(config, {{"mamba_d_ssm", 100}}), {"mamba_n_heads", "must divide"});
}

TEST(Granite, HybridOfMambaAndAttention) {
  const Architecture a = architecture_of("granitemoehybrid");
  EXPECT_TRUE(mixes<Mamba2>(a, 0));
  EXPECT_TRUE(mixes<Attention>(a, 2));
  EXPECT_FALSE(mixer_of<Attention>(a, 2).rope.enabled);
  const Experts& experts = std::get<Experts>(a.layer(0).mlp);
  EXPECT_EQ(experts.experts.size(), 4u);
  EXPECT_EQ(experts.shared->in[0], (LinearSpec{"shared_mlp.input_linear", 96, 64}));
  EXPECT_TRUE(std::holds_alternative<Mlp>(
      changed("granitemoehybrid", {{"num_local_experts", 0}}).layer(0).mlp));
  const Json config = config_of("granitemoehybrid");
  EXPECT_TRUE(mixes<Mamba2>(read(without(config, {"layer_types"})), 2));
  expect_fault(with(config, {{"layer_types", {"mamba", "rwkv", "attention"}}}), {"layer_types"});
  expect_fault(with(config, {{"layers_block_type", {"mamba", "attention", "attention"}}}),
               {"layers_block_type", "layer_types"});
}

TEST(Bamba, AttentionWhereTheIndicesSay) {
  const Json config = {{"model_type", "bamba"},    {"hidden_size", 64},  {"intermediate_size", 96},
                       {"num_hidden_layers", 3},   {"vocab_size", 320},  {"num_attention_heads", 4},
                       {"num_key_value_heads", 2}, {"mamba_n_heads", 4}, {"mamba_d_state", 16},
                       {"attn_layer_indices", {1}}};
  const Architecture a = read(config);
  EXPECT_TRUE(mixes<Mamba2>(a, 0));
  EXPECT_TRUE(mixes<Attention>(a, 1));
  EXPECT_EQ(mixer_of<Mamba2>(a).layout, (StateSpaceLayout{4, 32, 1, 16}));
  EXPECT_EQ(mixer_of<Attention>(a, 1).rope.inverse_frequencies.size(), 4u);  // half of 16 columns
  EXPECT_EQ(a.head.norm->name, "model.final_layernorm");
}

TEST(Jamba, PeriodsAndOffsets) {
  const Architecture a = architecture_of("jamba");
  EXPECT_TRUE(mixes<Mamba>(a, 0));
  EXPECT_TRUE(mixes<Attention>(a, 1));
  EXPECT_TRUE(mixes<Mamba>(a, 2));
  EXPECT_TRUE(std::holds_alternative<Mlp>(a.layer(0).mlp));
  EXPECT_TRUE(std::holds_alternative<Experts>(a.layer(1).mlp));
  const Mamba& m = mixer_of<Mamba>(a);
  EXPECT_EQ(m.x_proj, (LinearSpec{"mamba.x_proj", 24, 128}));
  EXPECT_TRUE(m.dt_proj.kept);
  EXPECT_TRUE(m.dt_proj.bias);
  const std::vector<Step> steps = layer_steps(a.layer(0));
  ASSERT_EQ(steps.size(), 5u);
  EXPECT_EQ(steps[1].panels.size(), 2u);
  EXPECT_EQ(steps[1].groups.size(), 1u);
  EXPECT_EQ(steps[1].runs, (std::vector<std::size_t>{1, 2}));
  EXPECT_EQ(mixer_of<Mamba>(changed("jamba", {{"mamba_dt_rank", "auto"}})).rank(), 4);
  const Json config = config_of("jamba");
  expect_fault(with(config, {{"attn_layer_offset", 3}}), {"attn_layer_offset = 3"});
  expect_fault(with(config, {{"mamba_d_state", 65}}), {"mamba_d_state = 65"});
}

TEST(Lfm2, ConvolutionsAndAttention) {
  const Architecture a = architecture_of("lfm2");
  EXPECT_TRUE(mixes<ShortConv>(a, 0));
  EXPECT_TRUE(mixes<Attention>(a, 1));
  EXPECT_EQ(mixer_of<ShortConv>(a).in, (LinearSpec{"conv.in_proj", 192, 64}));
  EXPECT_EQ(mixer_of<ShortConv>(a).conv, (CausalConv{"conv.conv", 64, 3, false}));
  EXPECT_EQ(mlp_of(a).width(), 64);  // 2/3 of 96
  EXPECT_EQ(a.head.norm->name, "model.embedding_norm");
  EXPECT_EQ(mlp_of(changed("lfm2", {{"block_auto_adjust_ff_dim", false}})).width(), 96);
  EXPECT_EQ(mlp_of(changed("lfm2", {{"block_multiple_of", 48}})).width(), 96);
  const Json numbers = {{"full_attn_idxs", {1}}};
  EXPECT_EQ(changed("lfm2", numbers), a);
  EXPECT_EQ(read(with(without(config_of("lfm2"), {"layer_types"}), numbers)), a);
  expect_fault(with(config_of("lfm2"), {{"full_attn_idxs", {0}}}),
               {"full_attn_idxs", "layer_types"});
  expect_fault(with(config_of("lfm2"), {{"layer_types", {"conv", "mamba", "conv"}}}),
               {"layer_types"});

  const Architecture moe = architecture_of("lfm2-moe");
  EXPECT_TRUE(std::holds_alternative<Mlp>(moe.layer(0).mlp));
  const Experts& experts = std::get<Experts>(moe.layer(1).mlp);
  EXPECT_EQ(experts.router.correction, "feed_forward.expert_bias");
  EXPECT_EQ(experts.experts[0].out, (LinearSpec{"feed_forward.experts.0.w2", 64, 32}));
}

// Public repositories have them; they decide nothing.
TEST(StateSpaces, KeysOfPublishedConfigurations) {
  EXPECT_EQ(read(with(config_of("falcon-h1"), {{"mlp_expansion_factor", 8}})),
            architecture_of("falcon-h1"));
  EXPECT_EQ(read(with(config_of("nemotron-h"), {{"time_step_rank", 256}})),
            architecture_of("nemotron-h"));
  EXPECT_EQ(read(with(config_of("mamba2"), {{"time_step_rank", 256},
                                            {"time_step_scale", 1.0},
                                            {"time_step_init_scheme", "random"}})),
            architecture_of("mamba2"));
}

}  // namespace
}  // namespace qpipe
