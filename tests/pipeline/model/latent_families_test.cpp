// config.json → architecture for the families with latent attention: widths and names, defaults of
// the reference, scores' scales, configurations as public repositories have them, and what is
// refused.
#include <gtest/gtest.h>

#include <cmath>

#include "stages/layer.h"
#include "tests/pipeline/model/golden_models.h"

namespace qpipe {
namespace {

Architecture read(const Json& config) { return read_architecture(config, "config.json"); }

const LatentAttention& latent_of(const Architecture& a, std::int64_t layer = 0) {
  return std::get<LatentAttention>(a.layer(layer).mixer);
}

const Experts& experts_of(const Architecture& a, std::int64_t layer) {
  return std::get<Experts>(a.layer(layer).mlp);
}

std::int64_t first_sparse(const Architecture& a) {
  std::int64_t l = 0;
  while (l < a.layers && !std::holds_alternative<Experts>(a.layer(l).mlp)) ++l;
  return l;
}

float scale_of(std::int64_t width, double factor = 1.0) {
  return static_cast<float>(factor / std::sqrt(static_cast<double>(width)));
}

// What deepseek-ai/DeepSeek-V3 publishes.
Json deepseek_v3() {
  return {{"architectures", {"DeepseekV3ForCausalLM"}},
          {"attention_bias", false},
          {"attention_dropout", 0.0},
          {"auto_map", {{"AutoConfig", "configuration_deepseek.DeepseekV3Config"}}},
          {"bos_token_id", 0},
          {"eos_token_id", 1},
          {"ep_size", 1},
          {"first_k_dense_replace", 3},
          {"hidden_act", "silu"},
          {"hidden_size", 7168},
          {"initializer_range", 0.02},
          {"intermediate_size", 18432},
          {"kv_lora_rank", 512},
          {"max_position_embeddings", 163840},
          {"model_type", "deepseek_v3"},
          {"moe_intermediate_size", 2048},
          {"moe_layer_freq", 1},
          {"n_group", 8},
          {"n_routed_experts", 256},
          {"n_shared_experts", 1},
          {"norm_topk_prob", true},
          {"num_attention_heads", 128},
          {"num_experts_per_tok", 8},
          {"num_hidden_layers", 61},
          {"num_key_value_heads", 128},
          {"num_nextn_predict_layers", 1},
          {"q_lora_rank", 1536},
          {"qk_nope_head_dim", 128},
          {"qk_rope_head_dim", 64},
          {"quantization_config",
           {{"activation_scheme", "dynamic"},
            {"fmt", "e4m3"},
            {"quant_method", "fp8"},
            {"weight_block_size", {128, 128}}}},
          {"rms_norm_eps", 1e-06},
          {"rope_scaling",
           {{"beta_fast", 32},
            {"beta_slow", 1},
            {"factor", 40},
            {"mscale", 1.0},
            {"mscale_all_dim", 1.0},
            {"original_max_position_embeddings", 4096},
            {"type", "yarn"}}},
          {"rope_theta", 10000},
          {"routed_scaling_factor", 2.5},
          {"scoring_func", "sigmoid"},
          {"tie_word_embeddings", false},
          {"topk_group", 4},
          {"topk_method", "noaux_tc"},
          {"torch_dtype", "bfloat16"},
          {"transformers_version", "4.33.1"},
          {"use_cache", true},
          {"v_head_dim", 128},
          {"vocab_size", 129280}};
}

TEST(DeepSeekV3, AsPublished) {
  const Architecture a = read(deepseek_v3());
  const LatentAttention& m = latent_of(a);
  EXPECT_EQ(m.q_a, (LinearSpec{"self_attn.q_a_proj", 1536, 7168}));
  EXPECT_EQ(m.q, (LinearSpec{"self_attn.q_b_proj", 128 * 192, 1536}));
  EXPECT_EQ(m.kv_a, (LinearSpec{"self_attn.kv_a_proj_with_mqa", 512 + 64, 7168}));
  EXPECT_EQ(m.kv_b, (LinearSpec{"self_attn.kv_b_proj", 128 * 256, 512}));
  EXPECT_EQ(m.out, (LinearSpec{"self_attn.o_proj", 7168, 128 * 128}));
  EXPECT_EQ(m.q_norm->eps, 1e-6f);
  EXPECT_TRUE(m.rope.interleaved);
  EXPECT_EQ(m.rope.inverse_frequencies.size(), 32u);
  EXPECT_EQ(m.rope.amplitude, 1.0f);  // m(1) / m(1)
  const double m1 = 0.1 * std::log(40.0) + 1.0;
  EXPECT_FLOAT_EQ(m.scale, scale_of(192, m1 * m1));
  EXPECT_EQ(first_sparse(a), 3);
  const Experts& e = experts_of(a, 3);
  EXPECT_EQ(e.experts.size(), 256u);
  EXPECT_EQ(e.shared->width(), 2048);
  EXPECT_EQ(e.router.options.groups, 8);
  EXPECT_EQ(e.router.options.top_groups, 4);
  EXPECT_EQ(e.router.options.scaling, 2.5f);
  EXPECT_EQ(e.router.correction, "mlp.gate.e_score_correction_bias");
  EXPECT_EQ(a.kinds.size(), 2u);
  // Kimi K2 is the same under another name, with one group.
  EXPECT_EQ(latent_of(read(with(deepseek_v3(), {{"model_type", "kimi_k2"}}))), m);
}

TEST(DeepSeekV3, StepsOfTheLatents) {
  const Architecture a = read(deepseek_v3());
  const std::vector<Step> steps = layer_steps(a.layer(0));
  ASSERT_EQ(steps.size(), 5u);
  EXPECT_EQ(steps[0].width, 7168);
  EXPECT_EQ(steps[0].groups.size(), 1u);
  EXPECT_EQ(steps[1].width, 1536 + 576);
  ASSERT_EQ(steps[1].groups.size(), 2u);
  EXPECT_EQ(steps[1].groups[0].width, 1536);
  EXPECT_EQ(steps[1].groups[1].panel, 1u);
  EXPECT_EQ(steps[1].groups[1].width, 512);  // the rotated key behind it is nobody's input
  EXPECT_EQ(steps[2].width, 128 * 128);
  EXPECT_EQ(steps[1].attention_width, 128 * (192 + 128) / 2);
  // Without a latent of q, q itself waits beside the latent of k and v.
  const Architecture plain = read(with(deepseek_v3(), {{"q_lora_rank", nullptr}}));
  const std::vector<Step> plain_steps = layer_steps(plain.layer(0));
  EXPECT_EQ(plain_steps[1].width, 128 * 192 + 576);
  ASSERT_EQ(plain_steps[1].groups.size(), 1u);
  EXPECT_EQ(plain_steps[1].groups[0].panel, 1u);
  EXPECT_EQ(latent_of(plain).q, (LinearSpec{"self_attn.q_proj", 128 * 192, 7168}));
}

TEST(DeepSeekV3, DefaultsAndForms) {
  const Architecture bare = read({{"model_type", "deepseek_v3"},
                                  {"hidden_size", 7168},
                                  {"intermediate_size", 18432},
                                  {"num_hidden_layers", 4},
                                  {"vocab_size", 100},
                                  {"num_attention_heads", 128}});
  EXPECT_EQ(latent_of(bare).q_a->out_features, 1536);
  EXPECT_EQ(latent_of(bare).latent(), 512);
  EXPECT_EQ(latent_of(bare).scale, scale_of(192));
  EXPECT_EQ(first_sparse(bare), 3);
  EXPECT_EQ(experts_of(bare, 3).experts.size(), 256u);
  EXPECT_EQ(bare.max_positions, 4096);
  EXPECT_FALSE(latent_of(read(with(deepseek_v3(), {{"rope_interleave", false}}))).rope.interleaved);
  const LatentAttention biased = latent_of(read(with(deepseek_v3(), {{"attention_bias", true}})));
  EXPECT_TRUE(biased.q_a->bias && biased.kv_a.bias && biased.out.bias);
  EXPECT_FALSE(biased.q.bias || biased.kv_b.bias);
}

TEST(DeepSeekV2, RoutersAndScales) {
  const Architecture lite = architecture_of("deepseek-v2-lite");
  EXPECT_FALSE(latent_of(lite).q_a);
  EXPECT_EQ(latent_of(lite).rope.amplitude, 1.0f);  // m(0.707) / m(0.707)
  const double m = 0.1 * 0.707 * std::log(40.0) + 1.0;
  EXPECT_FLOAT_EQ(latent_of(lite).scale, scale_of(24, m * m));
  EXPECT_EQ(experts_of(lite, 1).shared->width(), 64);
  EXPECT_EQ(experts_of(lite, 1).router.options.groups, 1);
  const Architecture groups = architecture_of("deepseek-v2-groups");
  const RouteOptions& o = experts_of(groups, 1).router.options;
  EXPECT_EQ(o.scoring, Scoring::softmax);
  EXPECT_FALSE(o.normalize);
  EXPECT_EQ(o.scaling, 16.0f);
  EXPECT_EQ(o.groups, 4);
  EXPECT_EQ(o.group_score, GroupScore::best);
  const auto m_of = [](double mscale) { return 0.1 * mscale * std::log(40.0) + 1.0; };
  EXPECT_FLOAT_EQ(latent_of(groups).rope.amplitude, static_cast<float>(m_of(1.0) / m_of(0.5)));
  EXPECT_FLOAT_EQ(latent_of(groups).scale, scale_of(24, m_of(0.5) * m_of(0.5)));
  // Groups that greedy choice does not look at.
  EXPECT_EQ(
      experts_of(read(with(config_of("deepseek-v2"), {{"n_group", 3}})), 1).router.options.groups,
      1);
  expect_fault(with(config_of("deepseek-v2"), {{"norm_topk_prob", true}}), {"norm_topk_prob"});
  expect_fault(with(config_of("deepseek-v2"), {{"topk_method", "noaux_tc"}}), {"topk_method"});
  expect_fault(with(config_of("deepseek-v2-groups"), {{"n_group", 3}}), {"n_group"});
}

TEST(GlmFlash, WiderValues) {
  const Architecture a = architecture_of("glm4-moe-lite");
  EXPECT_EQ(latent_of(a).value_dim, 24);
  EXPECT_EQ(latent_of(a).nope, 16);
  EXPECT_EQ(latent_of(a).kv_norm.eps, 1e-6f);  // the attention's, whatever rms_norm_eps says
  EXPECT_EQ(layer_of(a).mixer_norm->eps, 1e-5f);
  EXPECT_EQ(first_sparse(a), 1);
}

TEST(Mistral4, ShareOfWholeHeads) {
  const Architecture a = architecture_of("mistral4");
  const LatentAttention& m = latent_of(a);
  EXPECT_EQ(m.rope.inverse_frequencies.size(), 8u);
  EXPECT_EQ(m.query_scale.beta, 0.1f);
  EXPECT_EQ(m.query_scale.positions, 16);
  EXPECT_EQ(experts_of(a, 0).router.options.group_score, GroupScore::two_best);
  Json text = config_of("mistral4");
  text["text_config"]["rope_parameters"]["partial_rotary_factor"] = 0.25;
  EXPECT_NE(fault(text).find("qk_rope_head_dim"), std::string::npos) << fault(text);
}

TEST(MiniCpm3, Multipliers) {
  const Json config{
      {"model_type", "minicpm3"}, {"hidden_size", 2560},       {"intermediate_size", 6400},
      {"num_hidden_layers", 62},  {"num_attention_heads", 40}, {"num_key_value_heads", 40},
      {"vocab_size", 73448},      {"q_lora_rank", 768},        {"kv_lora_rank", 256},
      {"qk_nope_head_dim", 64},   {"qk_rope_head_dim", 32},    {"scale_emb", 12},
      {"dim_model_base", 256},    {"scale_depth", 1.4}};
  const Architecture a = read(config);
  EXPECT_EQ(a.embedding.multiplier, 12.0f);
  EXPECT_EQ(a.head.multiplier, 0.1f);
  EXPECT_FLOAT_EQ(layer_of(a).residual_multiplier, 1.4f / std::sqrt(62.0f));
  EXPECT_EQ(latent_of(a).value_dim, 64);
  EXPECT_FALSE(latent_of(a).rope.interleaved);
  EXPECT_TRUE(a.head.tied);
  EXPECT_EQ(layer_of(read(with(config, {{"scale_depth", nullptr}}))).residual_multiplier, 1.0f);
}

TEST(DeepSeekV32, Indexers) {
  const Architecture a = architecture_of("deepseek-v32");
  const TokenIndexer& i = *latent_of(a).indexer;
  EXPECT_FALSE(i.interleaved);
  EXPECT_EQ(i.top_k, 12);
  EXPECT_EQ(i.q.name, "self_attn.indexer.wq_b");
  EXPECT_TRUE(i.q.kept && i.k.kept && i.weights.kept);
  // All that reads a norm is in its group, and takes AWQ's factor.
  const std::vector<Step> steps = layer_steps(a.layer(0));
  EXPECT_EQ(steps[0].groups.at(0).linears.size(), 4u);
  EXPECT_EQ(steps[1].groups.at(0).linears.size(), 2u);
  EXPECT_EQ(steps[1].panels.size(), 3u);
  EXPECT_NO_THROW(check_sequence_length(a, 4096));
  expect_fault(with(config_of("deepseek-v32"), {{"q_lora_rank", nullptr}}), {"q_lora_rank"});
  expect_fault(with(config_of("deepseek-v32"), {{"index_head_dim", 4}}), {"index_head_dim"});
}

TEST(Glm5, LayersWithoutAnIndexerOfTheirOwn) {
  EXPECT_TRUE(latent_of(architecture_of("glm-moe-dsa")).indexer->interleaved);
  const Json shared = with(without(config_of("glm-moe-dsa"), {"indexer_types"}),
                           {{"index_topk_freq", 2}, {"index_skip_topk_offset", 1}});
  const Architecture a = read(shared);
  EXPECT_TRUE(latent_of(a, 0).indexer && latent_of(a, 2).indexer);
  EXPECT_FALSE(latent_of(a, 1).indexer);
  EXPECT_EQ(latent_of(a, 1).chosen_before, 12);
  EXPECT_NO_THROW(check_sequence_length(a, 12));
  EXPECT_THROW(check_sequence_length(a, 13), UserError);
  const Json pattern =
      with(without(config_of("glm-moe-dsa"), {"indexer_types"}), {{"index_topk_pattern", "FSF"}});
  EXPECT_EQ(read(pattern), a);
  expect_fault(with(pattern, {{"index_topk_pattern", "FXF"}}), {"index_topk_pattern"});
  expect_fault(with(pattern, {{"index_topk_pattern", "SFF"}}), {"indexer_types"});
  expect_fault(with(config_of("glm-moe-dsa"), {{"indexer_types", {"full", "none", "full"}}}),
               {"indexer_types"});
}

TEST(LatentAttention, WidthsThatDoNotFit) {
  const Json config = deepseek_v3();
  expect_fault(with(config, {{"num_key_value_heads", 8}}), {"num_key_value_heads"});
  expect_fault(with(config, {{"kv_lora_rank", 0}}), {"kv_lora_rank"});
  expect_fault(with(config, {{"qk_nope_head_dim", 1 << 20}}), {"qk_nope_head_dim"});
  expect_fault(with(config, {{"qk_rope_head_dim", 63}}), {"rotary"});
  expect_fault(with(config, {{"v_head_dim", "wide"}}), {"v_head_dim"});
}

}  // namespace
}  // namespace qpipe
