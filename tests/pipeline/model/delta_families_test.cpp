// config.json → architecture for the families with delta nets: where the projections' columns lie,
// which layers attend, names, defaults of the reference, and what is refused.
#include <gtest/gtest.h>

#include <cmath>

#include "stages/layer.h"
#include "tests/pipeline/model/golden_models.h"

namespace qpipe {
namespace {

Architecture read(const Json& config) { return read_architecture(config, "config.json"); }

Architecture changed(const std::string& model, const Json& changes) {
  return read(with(config_of(model), changes));
}

const DeltaNet& net_of(const Architecture& a, std::int64_t layer = 0) {
  return std::get<DeltaNet>(a.layer(layer).mixer);
}

const Experts& experts_of(const Architecture& a, std::int64_t layer = 0) {
  return std::get<Experts>(a.layer(layer).mlp);
}

std::vector<bool> delta_layers(const Architecture& a) {
  std::vector<bool> layers;
  for (std::int64_t l = 0; l < a.layers; ++l)
    layers.push_back(std::holds_alternative<DeltaNet>(a.layer(l).mixer));
  return layers;
}

LinearSpec kept(const std::string& name, std::int64_t out, std::int64_t in) {
  LinearSpec linear{name, out, in};
  linear.kept = true;
  return linear;
}

SlicedColumns columns(std::int64_t first, std::int64_t heads, std::int64_t width,
                      std::int64_t stride) {
  return {first, {heads, width, stride}};
}

// Columns of x Wᵀ side by side that are read: each once.
std::vector<int> times_read(const DeltaNet& n) {
  std::int64_t width = 0;
  for (const LinearSpec& linear : n.in) width += linear.out_features;
  std::vector<int> times(static_cast<std::size_t>(width));
  for (const SlicedColumns& c : {n.q, n.k, n.v, n.gate, n.strength, n.decay})
    for (std::int64_t i = 0; i < c.count(); ++i)
      ++times.at(static_cast<std::size_t>(c.first + i / c.slices.head_dim * c.slices.stride +
                                          i % c.slices.head_dim));
  return times;
}

TEST(QwenNext, ProjectionsAreFusedByHead) {
  const Architecture a = architecture_of("qwen3-next");
  EXPECT_EQ(a.model_type, "qwen3_next");
  EXPECT_EQ(delta_layers(a), (std::vector<bool>{true, true, false}));
  const DeltaNet& n = net_of(a);
  EXPECT_EQ(n.heads, (DeltaHeads{2, 4, 16, 8, false}));
  EXPECT_EQ(n.in, (std::vector<LinearSpec>{{"linear_attn.in_proj_qkvz", 128, 64},
                                           kept("linear_attn.in_proj_ba", 8, 64)}));
  // Of each head of k: q 16, k 16, v 2 · 8, z 2 · 8; b 2, a 2.
  EXPECT_EQ(n.q, columns(0, 2, 16, 64));
  EXPECT_EQ(n.k, columns(16, 2, 16, 64));
  EXPECT_EQ(n.v, columns(32, 2, 16, 64));
  EXPECT_EQ(n.gate, columns(48, 2, 16, 64));
  EXPECT_EQ(n.strength, columns(128, 2, 2, 4));
  EXPECT_EQ(n.decay, columns(130, 2, 2, 4));
  EXPECT_EQ(times_read(n), std::vector<int>(136, 1));
  EXPECT_EQ(n.convolutions, (std::vector<CausalConv>{{"linear_attn.conv1d", 96, 4}}));
  EXPECT_EQ(n.out, (LinearSpec{"linear_attn.out_proj", 64, 32}));
  EXPECT_EQ(n.norm_gate, NormGate::silu);
}

TEST(QwenNext, AttentionHasAGateBesideQ) {
  const Architecture a = architecture_of("qwen3-next");
  const Attention& attention = attention_of(a, 2);
  EXPECT_TRUE(attention.gate_beside_q);
  EXPECT_EQ(attention.qkv.at(0), (LinearSpec{"self_attn.q_proj", 256, 64}));
  EXPECT_EQ(attention.heads.q_column(3), 3 * 64);
  EXPECT_EQ(attention.heads.k_column(0), 256);
  EXPECT_EQ(attention.heads.v_column(1), 256 + 64 + 32);
  EXPECT_EQ(attention.rope.inverse_frequencies.size(), 4u);  // a quarter of 32 columns
  EXPECT_EQ(attention.scale, 1.0f / std::sqrt(32.0f));
  for (const LayerSpec& kind : a.kinds) {
    EXPECT_EQ(kind.mixer_norm->offset, 1.0f);
    EXPECT_EQ(kind.mlp_norm->offset, 1.0f);
  }
  EXPECT_EQ(attention.q_norm->norm.offset, 1.0f);
  EXPECT_EQ(attention.k_norm->norm.offset, 1.0f);
  EXPECT_EQ(a.head.norm->offset, 1.0f);
}

TEST(QwenNext, ExpertsBesideASharedOne) {
  const Architecture a = architecture_of("qwen3-next");
  const Experts& experts = experts_of(a);
  EXPECT_EQ(experts.experts.size(), 6u);
  EXPECT_EQ(experts.router.options.top_k, 2);
  EXPECT_TRUE(experts.router.options.normalize);
  EXPECT_EQ(experts.shared_gate, kept("mlp.shared_expert_gate", 1, 64));
  EXPECT_FALSE(
      experts_of(changed("qwen3-next", {{"norm_topk_prob", false}})).router.options.normalize);
}

TEST(QwenNext, DefaultsOfTheReference) {
  Json config = without(
      config_of("qwen3-next"),
      {"layer_types", "linear_conv_kernel_dim", "linear_key_head_dim", "linear_num_key_heads",
       "linear_num_value_heads", "linear_value_head_dim", "num_experts", "num_experts_per_tok",
       "moe_intermediate_size", "shared_expert_intermediate_size", "partial_rotary_factor",
       "head_dim", "num_key_value_heads", "decoder_sparse_step", "mlp_only_layers"});
  config["num_hidden_layers"] = 8;
  const Architecture a = read(config);
  EXPECT_EQ(delta_layers(a), (std::vector<bool>{true, true, true, false, true, true, true, false}));
  EXPECT_EQ(net_of(a).heads, (DeltaHeads{16, 32, 128, 128, false}));
  EXPECT_EQ(net_of(a).convolutions.at(0).kernel, 4);
  EXPECT_EQ(experts_of(a).experts.size(), 512u);
  EXPECT_EQ(experts_of(a).per_token(), 10);
  EXPECT_EQ(experts_of(a).shared->width(), 512);
  EXPECT_EQ(attention_of(a, 3).heads.head_dim, 256);
  EXPECT_EQ(attention_of(a, 3).heads.kv_heads, 2);
  EXPECT_EQ(attention_of(a, 3).rope.inverse_frequencies.size(), 32u);
  config["full_attention_interval"] = 2;
  EXPECT_EQ(delta_layers(read(config)),
            (std::vector<bool>{true, false, true, false, true, false, true, false}));
}

TEST(Qwen3_5, ProjectionsAreApart) {
  const Architecture a = architecture_of("qwen3_5");
  EXPECT_EQ(a.model_type, "qwen3_5_text");
  EXPECT_TRUE(a.head.tied);
  const DeltaNet& n = net_of(a);
  EXPECT_EQ(n.in, (std::vector<LinearSpec>{{"linear_attn.in_proj_qkv", 96, 64},
                                           {"linear_attn.in_proj_z", 32, 64},
                                           kept("linear_attn.in_proj_b", 4, 64),
                                           kept("linear_attn.in_proj_a", 4, 64)}));
  EXPECT_EQ(n.q, columns(0, 1, 32, 32));
  EXPECT_EQ(n.k, columns(32, 1, 32, 32));
  EXPECT_EQ(n.v, columns(64, 1, 32, 32));
  EXPECT_EQ(n.gate, columns(96, 1, 32, 32));
  EXPECT_EQ(n.strength, columns(128, 1, 4, 4));
  EXPECT_EQ(n.decay, columns(132, 1, 4, 4));
  EXPECT_EQ(times_read(n), std::vector<int>(136, 1));
  EXPECT_EQ(mlp_of(a).width(), 96);
  EXPECT_EQ(attention_of(a, 2).rope.inverse_frequencies.size(), 8u);  // half of 32 columns
}

TEST(Qwen3_5, ExpertsInStacksAndApart) {
  const Architecture stacks = architecture_of("qwen3_5-moe");
  const Architecture apart = architecture_of("qwen3_5-moe-per-expert");
  EXPECT_EQ(stacks.model_type, "qwen3_5_moe_text");
  EXPECT_EQ(experts_of(stacks), experts_of(apart));
  EXPECT_EQ(net_of(stacks), net_of(apart));
  EXPECT_TRUE(experts_of(stacks).router.options.normalize);
}

TEST(KimiLinear, DeltaNetsDecayByChannel) {
  const Architecture a = architecture_of("kimi-linear");
  EXPECT_EQ(delta_layers(a), (std::vector<bool>{true, true, false}));
  const DeltaNet& n = net_of(a);
  EXPECT_EQ(n.heads, (DeltaHeads{4, 4, 16, 16, true}));
  EXPECT_EQ(n.in, (std::vector<LinearSpec>{{"self_attn.q_proj", 64, 64},
                                           {"self_attn.k_proj", 64, 64},
                                           {"self_attn.v_proj", 64, 64},
                                           kept("self_attn.f_a_proj", 16, 64),
                                           kept("self_attn.g_a_proj", 16, 64),
                                           kept("self_attn.b_proj", 4, 64)}));
  EXPECT_EQ(n.decay_up, kept("self_attn.f_b_proj", 64, 16));
  EXPECT_EQ(n.gate_up, kept("self_attn.g_b_proj", 64, 16));
  EXPECT_EQ(times_read(n), std::vector<int>(228, 1));
  EXPECT_EQ(n.norm_gate, NormGate::sigmoid);
  EXPECT_EQ(n.eps, 1e-5f);

  const auto& attention = std::get<LatentAttention>(a.layer(2).mixer);
  EXPECT_FALSE(attention.q_a);
  EXPECT_FALSE(attention.rope.enabled);
  EXPECT_EQ(attention.scale, 1.0f / std::sqrt(24.0f));

  EXPECT_TRUE(std::holds_alternative<Mlp>(a.layer(0).mlp));
  const Experts& experts = experts_of(a, 1);
  EXPECT_EQ(experts.router.options.scoring, Scoring::sigmoid);
  EXPECT_EQ(experts.router.options.scaling, 2.446f);
  EXPECT_EQ(experts.experts.at(5).in.at(1).name, "block_sparse_moe.experts.5.w3");
}

TEST(KimiLinear, LayersByTypesOrByNumbers) {
  const Architecture a = architecture_of("kimi-linear");
  EXPECT_EQ(changed("kimi-linear",
                    {{"layer_types", {"linear_attention", "linear_attention", "full_attention"}}}),
            a);
  Json config = without(config_of("kimi-linear"), {"linear_attn_config"});
  config.update(Json{{"linear_num_heads", 4}, {"linear_head_dim", 16}, {"num_hidden_layers", 6}});
  EXPECT_EQ(delta_layers(read(config)), (std::vector<bool>{true, true, true, true, false, true}));
}

// A group has every reader of the norm, kept ones included; what a linear of low rank reads is
// nobody's stored input.
TEST(DeltaNets, StepsAndTensors) {
  const Architecture a = architecture_of("kimi-linear");
  const LayerSpec& layer = a.layer(0);
  const std::vector<Step> steps = layer_steps(layer);
  ASSERT_EQ(steps.size(), 4u);
  EXPECT_EQ(steps[0].runs, (std::vector<std::size_t>{0, 1, 2, 3, 4, 5, 6, 7}));
  ASSERT_EQ(steps[0].groups.size(), 1u);
  EXPECT_EQ(steps[0].groups[0].linears, (std::vector<std::size_t>{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(steps[0].state_width, 4 * (3 * 16 * 16 + 64 * (16 + 16)));
  EXPECT_EQ(steps[1].runs, (std::vector<std::size_t>{8}));
  EXPECT_EQ(steps[1].width, 64);
  EXPECT_EQ(steps[1].hidden, Access::update);
  std::map<std::string, std::vector<std::int64_t>> vectors;
  for (const TensorSpec& tensor : layer_tensors(layer))
    if (tensor.role == TensorRole::vector) vectors[tensor.name] = tensor.shape;
  const std::map<std::string, std::vector<std::int64_t>> want{
      {"self_attn.A_log", {1, 1, 4, 1}},         {"self_attn.dt_bias", {64}},
      {"self_attn.o_norm.weight", {16}},         {"self_attn.q_conv1d.weight", {64, 1, 4}},
      {"self_attn.k_conv1d.weight", {64, 1, 4}}, {"self_attn.v_conv1d.weight", {64, 1, 4}}};
  EXPECT_EQ(vectors, want);
}

// Public repositories have them; they decide nothing, or say what is so anyway.
TEST(DeltaNets, KeysOfPublishedConfigurations) {
  Json config = config_of("qwen3_5");
  config["text_config"].update(Json{{"attn_output_gate", true},
                                    {"mamba_ssm_dtype", "float32"},
                                    {"mtp_num_hidden_layers", 1},
                                    {"mtp_use_dedicated_embeddings", false}});
  EXPECT_EQ(read(config), architecture_of("qwen3_5"));
  config["text_config"]["attn_output_gate"] = false;
  expect_fault(config, {"attn_output_gate"});
}

TEST(DeltaNets, Faults) {
  const Json next = config_of("qwen3-next");
  expect_fault(with(next, {{"layer_types", {"linear_attention", "mamba", "full_attention"}}}),
               {"layer_types", "linear_attention"});
  expect_fault(with(next, {{"layer_types", {"linear_attention"}}}), {"layer_types", "3 layers"});
  expect_fault(with(next, {{"linear_num_value_heads", 3}}),
               {"linear_num_value_heads", "linear_num_key_heads"});
  expect_fault(with(next, {{"linear_key_head_dim", 0}}), {"linear_key_head_dim"});
  expect_fault(with(next, {{"linear_conv_kernel_dim", 65}}), {"linear_conv_kernel_dim"});
  expect_fault(with(next, {{"hidden_act", "gelu"}}), {"hidden_act"});
  const Json kimi = config_of("kimi-linear");
  const auto numbered = [&](const Json& full, const Json& delta) {
    Json config = kimi;
    config["linear_attn_config"]["full_attn_layers"] = full;
    config["linear_attn_config"]["kda_layers"] = delta;
    return config;
  };
  expect_fault(numbered({3}, {1}), {"linear_attn_config", "layer 2"});
  expect_fault(numbered({2, 3}, {1, 2}), {"linear_attn_config", "layer 2"});
  expect_fault(numbered({4}, {1, 2, 3}), {"full_attn_layers", "from 1 to 3"});
  expect_fault(numbered("3", {1, 2}), {"full_attn_layers", "array"});
  expect_fault(with(kimi, {{"mla_use_nope", false}}), {"mla_use_nope"});
  expect_fault(with(kimi, {{"linear_attn_config", 3}}), {"linear_attn_config", "object"});
}

}  // namespace
}  // namespace qpipe
