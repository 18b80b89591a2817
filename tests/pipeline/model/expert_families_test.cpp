// config.json → architecture for the families with experts: routers, which layers route, names,
// defaults of the reference, configurations as public repositories have them, and what is refused;
// checkpoints whose experts are missing or of another shape.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>

#include "pipeline/model/checkpoint.h"
#include "pipeline/model/readers.h"
#include "tests/pipeline/model/golden_models.h"

namespace qpipe {
namespace {

namespace fs = std::filesystem;
using Windows = std::vector<std::int64_t>;
using Layers = std::vector<std::int64_t>;

Architecture read(const Json& config) { return read_architecture(config, "config.json"); }

Architecture changed(const std::string& model, const Json& changes) {
  return read(with(config_of(model), changes));
}

const Experts& experts_of(const Architecture& a, std::int64_t layer = 0) {
  return std::get<Experts>(a.layer(layer).mlp);
}

// The layers that route.
Layers routing(const Architecture& a) {
  Layers layers;
  for (std::int64_t l = 0; l < a.layers; ++l)
    if (std::holds_alternative<Experts>(a.layer(l).mlp)) layers.push_back(l);
  return layers;
}

RouteOptions softmax(std::int64_t top_k, bool normalize) {
  RouteOptions options;
  options.top_k = top_k;
  options.normalize = normalize;
  return options;
}

// DeepSeek-V3's.
RouteOptions sigmoid(std::int64_t top_k, float scaling, std::int64_t groups = 1,
                     std::int64_t top_groups = 1) {
  RouteOptions options = softmax(top_k, true);
  options.scoring = Scoring::sigmoid;
  options.scaling = scaling;
  options.groups = groups;
  options.top_groups = top_groups;
  options.group_score = GroupScore::two_best;
  return options;
}

LinearSpec kept(const std::string& name, std::int64_t out, std::int64_t in) {
  LinearSpec linear{name, out, in};
  linear.kept = true;
  return linear;
}

void expect_gated(const Mlp& mlp, const MlpNames& names, std::int64_t ffn,
                  std::int64_t hidden = 64) {
  ASSERT_EQ(mlp.in.size(), 2u);
  EXPECT_EQ(mlp.in[0], (LinearSpec{names.gate, ffn, hidden}));
  EXPECT_EQ(mlp.in[1], (LinearSpec{names.up, ffn, hidden}));
  EXPECT_EQ(mlp.out, (LinearSpec{names.down, hidden, ffn}));
}

MlpNames inside(const std::string& module) {
  return {module + ".gate_proj", module + ".up_proj", module + ".down_proj"};
}

float second_frequency(const Architecture& a, std::int64_t layer = 0) {
  return attention_of(a, layer).rope.inverse_frequencies.at(1);
}

Json repeated(std::int64_t layers, const Json& value) {
  Json list = Json::array();
  for (std::int64_t l = 0; l < layers; ++l) list.push_back(value);
  return list;
}

TEST(Qwen, Experts) {
  const Architecture second = architecture_of("qwen2-moe");
  EXPECT_EQ(experts_of(second).router.options,
            softmax(config_of("qwen2-moe").at("num_experts_per_tok"), false));
  ASSERT_TRUE(experts_of(second).shared && experts_of(second).shared_gate);
  EXPECT_EQ(*experts_of(second).shared_gate, kept("mlp.shared_expert_gate", 1, 64));
  const Architecture third = architecture_of("qwen3-moe");
  EXPECT_TRUE(experts_of(third).router.options.normalize);
  EXPECT_FALSE(experts_of(third).shared);
  EXPECT_EQ(routing(changed("qwen3-moe", {{"decoder_sparse_step", 2}})), (Layers{1}));
  EXPECT_EQ(routing(changed("qwen3-moe", {{"mlp_only_layers", {0, 2}}})), (Layers{1}));
  expect_fault(with(config_of("qwen3-moe"), {{"mlp_only_layers", {3}}}), {"mlp_only_layers"});
  EXPECT_EQ(architecture_of("qwen3-vl-moe").model_type, "qwen3_vl_moe_text");
}

TEST(Mixtral, OfEight) {
  const Architecture a = architecture_of("mixtral");
  const Experts& e = experts_of(a);
  EXPECT_EQ(routing(a), (Layers{0, 1, 2}));
  EXPECT_EQ(e.experts.size(), 4u);
  expect_gated(e.experts[3],
               {"block_sparse_moe.experts.3.w1", "block_sparse_moe.experts.3.w3",
                "block_sparse_moe.experts.3.w2"},
               128);
  EXPECT_EQ(e.router.linear, kept("block_sparse_moe.gate", 4, 64));
  EXPECT_EQ(e.router.options, softmax(2, true));
  EXPECT_FALSE(e.shared);
  EXPECT_EQ(second_frequency(a), 1.0f / std::pow(1e6f, 2.0f / 16.0f));
  EXPECT_EQ(layer_of(a).mixer_norm->eps, 1e-5f);
  EXPECT_EQ(a.kinds.size(), 1u);
  EXPECT_EQ(windows_of(changed("mixtral", {{"sliding_window", 16}})), (Windows{16, 16, 16}));
  // As transformers 5 may name it.
  EXPECT_EQ(read(with(without(config_of("mixtral"), {"num_local_experts"}), {{"num_experts", 4}})),
            a);
  const Architecture bare = read({{"model_type", "mixtral"},
                                  {"hidden_size", 256},
                                  {"intermediate_size", 512},
                                  {"num_hidden_layers", 2},
                                  {"vocab_size", 100},
                                  {"num_attention_heads", 8}});
  EXPECT_EQ(experts_of(bare).experts.size(), 8u);
  EXPECT_EQ(experts_of(bare).per_token(), 2);
  EXPECT_EQ(attention_of(bare).heads.kv_heads, 8);
  EXPECT_EQ(bare.max_positions, 131072);
}

TEST(Olmoe, NormsOfAllHeads) {
  const Architecture a = architecture_of("olmoe");
  EXPECT_EQ(attention_of(a).q_norm->layout, HeadNorm::Weight::whole);
  EXPECT_EQ(attention_of(a).q_norm->norm.width, 64);
  EXPECT_EQ(experts_of(a).router.options, softmax(2, false));
  expect_gated(experts_of(a).experts[5], inside("mlp.experts.5"), 32);
  EXPECT_EQ(norms_of(layer_of(a)),
            (NormNames{"input_layernorm", "", "post_attention_layernorm", ""}));
  expect_fault(with(config_of("olmoe"), {{"clip_qkv", 8.0}}), {"clip_qkv = 8.0"});
}

TEST(MiniMaxM2, PartOfAHeadAndCorrections) {
  const Architecture a = architecture_of("minimax-m2");
  const Experts& e = experts_of(a);
  EXPECT_EQ(e.router.options, sigmoid(2, 1.0f));
  EXPECT_EQ(e.router.correction, "block_sparse_moe.e_score_correction_bias");
  EXPECT_EQ(e.router.linear, kept("block_sparse_moe.gate", 6, 64));
  EXPECT_EQ(e.experts[0].out.name, "block_sparse_moe.experts.0.w2");
  EXPECT_EQ(attention_of(a).rope.inverse_frequencies.size(), 8u);  // rotary_dim 16
  EXPECT_EQ(attention_of(a).k_norm->norm.width, 64);
  EXPECT_EQ(attention_of(a).k_norm->layout, HeadNorm::Weight::whole);
  // As MiniMaxAI/MiniMax-M2 has them.
  EXPECT_EQ(changed("minimax-m2", {{"attn_type_list", {1, 1, 1}},
                                   {"layernorm_full_attention_beta", 1.0},
                                   {"layernorm_linear_attention_beta", 1.0},
                                   {"layernorm_mlp_beta", 1.0},
                                   {"mlp_intermediate_size", 8192},
                                   {"mtp_transformer_layers", 1},
                                   {"num_mtp_modules", 3},
                                   {"use_mtp", true},
                                   {"shared_intermediate_size", 0},
                                   {"shared_moe_mode", "sigmoid"},
                                   {"sliding_window", nullptr}}),
            a);
  expect_fault(with(config_of("minimax-m2"), {{"attn_type_list", {1, 0, 1}}}),
               {"attn_type_list", "linear attention"});
  expect_fault(with(config_of("minimax-m2"), {{"attn_type_list", {1, 1}}}), {"attn_type_list"});
  expect_fault(with(config_of("minimax-m2"), {{"shared_intermediate_size", 512}}),
               {"shared_intermediate_size = 512"});
  expect_fault(with(config_of("minimax-m2"), {{"scoring_func", "softmax"}}),
               {"scoring_func = \"softmax\""});
  expect_fault(with(config_of("minimax-m2"), {{"rotary_dim", 48}}), {"rotary_dim = 48"});
}

TEST(GraniteMoe, StackedExperts) {
  const Architecture a = architecture_of("granitemoe");
  EXPECT_EQ(experts_of(a).router.linear, kept("block_sparse_moe.router.layer", 4, 64));
  EXPECT_EQ(experts_of(a).router.options, softmax(2, true));
  expect_gated(experts_of(a).experts[1], inside("block_sparse_moe.experts.1"), 32);
  EXPECT_EQ(layer_of(a).residual_multiplier, 0.5f);
  EXPECT_EQ(attention_of(a).scale, 0.1f);
  EXPECT_EQ(a.embedding.multiplier, 6.0f);
  EXPECT_EQ(a.head.multiplier, 0.25f);
}

TEST(Glm4Moe, BehindADenseLayer) {
  const Architecture a = architecture_of("glm4-moe");
  EXPECT_EQ(routing(a), (Layers{1, 2}));
  EXPECT_EQ(mlp_of(a, 0).width(), 96);
  const Experts& e = experts_of(a, 1);
  EXPECT_EQ(e.router.options, sigmoid(2, 2.5f));
  EXPECT_EQ(e.router.correction, "mlp.gate.e_score_correction_bias");
  ASSERT_TRUE(e.shared);
  expect_gated(*e.shared, inside("mlp.shared_experts"), 32);
  EXPECT_FALSE(attention_of(a).rope.interleaved);
  EXPECT_EQ(attention_of(a).rope.inverse_frequencies.size(), 8u);
  EXPECT_TRUE(attention_of(a).qkv[0].bias);
  EXPECT_FALSE(attention_of(a).out.bias);
  EXPECT_TRUE(attention_of(a).q_norm);
  EXPECT_FALSE(attention_of(changed("glm4-moe", {{"use_qk_norm", false}})).q_norm);
  EXPECT_EQ(experts_of(changed("glm4-moe", {{"n_shared_experts", 2}}), 1).shared->width(), 64);
  EXPECT_FALSE(experts_of(changed("glm4-moe", {{"n_shared_experts", 0}}), 1).shared);
  EXPECT_EQ(experts_of(changed("glm4-moe", {{"n_group", 3}, {"topk_group", 2}}), 1).router.options,
            sigmoid(2, 2.5f, 3, 2));
}

TEST(Dots1, Windows) {
  const Architecture a = architecture_of("dots1");
  EXPECT_EQ(routing(a), (Layers{1, 2}));
  EXPECT_EQ(experts_of(a, 1).router.options, sigmoid(2, 2.5f));
  EXPECT_EQ(windows_of(a), (Windows{0, 0, 0}));
  const Json bare = without(config_of("dots1"), {"layer_types", "max_window_layers"});
  EXPECT_EQ(windows_of(read(with(bare, {{"sliding_window", 16}, {"max_window_layers", 2}}))),
            (Windows{0, 0, 16}));
  EXPECT_EQ(windows_of(read(without(bare, {"sliding_window"}))), (Windows{0, 0, 0}));
  EXPECT_FALSE(experts_of(read(without(bare, {"norm_topk_prob"})), 1).router.options.normalize);
  // As rednote-hilab/dots.llm1.inst has them.
  EXPECT_EQ(changed("dots1", {{"moe_layer_freq", 1},
                              {"scoring_func", "sigmoid"},
                              {"topk_method", "noaux_tc"},
                              {"use_sliding_window", false}}),
            a);
  expect_fault(with(config_of("dots1"), {{"moe_layer_freq", 2}}), {"moe_layer_freq = 2"});
}

TEST(SolarOpen, ExpertsInAllLayers) {
  const Architecture a = architecture_of("solar-open");
  EXPECT_EQ(routing(a), (Layers{0, 1, 2}));
  EXPECT_EQ(experts_of(a).router.options, sigmoid(2, 1.0f));
  EXPECT_FALSE(attention_of(a).q_norm);
  EXPECT_EQ(attention_of(a).rope.amplitude, static_cast<float>(0.1 * std::log(2.0) + 1.0));
  // As upstage/Solar-Open-100B has them.
  EXPECT_EQ(changed("solar-open", {{"first_k_dense_replace", 0},
                                   {"intermediate_size", 10240},
                                   {"partial_rotary_factor", 1.0},
                                   {"use_qk_norm", false}}),
            a);
  expect_fault(with(config_of("solar-open"), {{"first_k_dense_replace", 1}}),
               {"first_k_dense_replace = 1"});
}

TEST(ExaoneMoe, PositionsOnLayersWithWindows) {
  const Architecture a = architecture_of("exaone-moe");
  EXPECT_EQ(routing(a), (Layers{1, 2}));
  EXPECT_EQ(experts_of(a, 1).router.options, sigmoid(2, 2.5f));
  EXPECT_EQ(experts_of(a, 1).router.correction, "mlp.e_score_correction_bias");
  EXPECT_EQ(windows_of(a), (Windows{16, 16, 0}));
  EXPECT_TRUE(attention_of(a, 0).rope.enabled);
  EXPECT_FALSE(attention_of(a, 2).rope.enabled);
  EXPECT_EQ(norms_of(layer_of(a)),
            (NormNames{"input_layernorm", "", "post_attention_layernorm", ""}));
  // As LGAI-EXAONE/K-EXAONE-236B-A23B had them first.
  const Json older = without(config_of("exaone-moe"),
                             {"mlp_layer_types", "first_k_dense_replace", "rope_parameters"});
  EXPECT_EQ(read(with(older, {{"is_moe_layer", {false, true, true}},
                              {"first_last_k_dense_replace", 1},
                              {"rope_scaling", nullptr},
                              {"rope_theta", 1000000},
                              {"scoring_func", "sigmoid"},
                              {"topk_method", "noaux_tc"},
                              {"sliding_window_pattern", "LLG"}})),
            a);
  EXPECT_EQ(routing(read(with(older, {{"first_k_dense_replace", 2}, {"rope_theta", 1000000}}))),
            (Layers{2}));
  expect_fault(with(older, {{"is_moe_layer", {false, true}}}), {"is_moe_layer", "3 layers"});
  expect_fault(with(config_of("exaone-moe"), {{"mlp_layer_types", {"dense", "sparse", "both"}}}),
               {"mlp_layer_types", "dense, sparse"});
}

TEST(BailingMoe, Second) {
  const Architecture a = architecture_of("bailing-moe-v2");
  EXPECT_EQ(a.embedding.tokens, "model.word_embeddings.weight");
  EXPECT_EQ(routing(a), (Layers{1, 2}));
  EXPECT_EQ(experts_of(a, 1).router.options, sigmoid(2, 2.5f, 3, 2));
  EXPECT_EQ(experts_of(a, 1).router.correction, "mlp.gate.expert_bias");
  ASSERT_EQ(attention_of(a).qkv.size(), 1u);
  EXPECT_EQ(attention_of(a).qkv[0], (LinearSpec{"attention.query_key_value", 256, 64}));
  EXPECT_EQ(attention_of(a).out, (LinearSpec{"attention.dense", 64, 128}));
  EXPECT_EQ(attention_of(a).q_norm->norm.name, "attention.query_layernorm");
  EXPECT_EQ(attention_of(a).rope.inverse_frequencies.size(), 8u);
  // As inclusionAI/Ling-mini-2.0 has them.
  EXPECT_EQ(changed("bailing-moe-v2", {{"embedding_dropout", 0.0},
                                       {"output_dropout", 0.0},
                                       {"moe_shared_expert_intermediate_size", 32},
                                       {"mtp_loss_scaling_factor", 0},
                                       {"use_rmsnorm", true}}),
            a);
  EXPECT_EQ(changed("bailing-moe-v2", {{"model_type", "bailing_moe_v2"}}), a);
  EXPECT_EQ(read(without(config_of("bailing-moe-v2"), {"partial_rotary_factor"})), a);
  EXPECT_EQ(experts_of(changed("bailing-moe-v2", {{"moe_shared_expert_intermediate_size", 48}}), 1)
                .shared->width(),
            48);
}

TEST(BailingMoe, First) {
  // As inclusionAI/Ling-lite-1.5 has them.
  const Json config = {{"model_type", "bailing_moe"},
                       {"attention_dropout", 0.0},
                       {"first_k_dense_replace", 0},
                       {"hidden_act", "silu"},
                       {"hidden_size", 2048},
                       {"intermediate_size", 1408},
                       {"max_position_embeddings", 32768},
                       {"moe_intermediate_size", 1408},
                       {"num_experts", 64},
                       {"num_shared_experts", 2},
                       {"norm_topk_prob", true},
                       {"num_attention_heads", 16},
                       {"num_experts_per_tok", 6},
                       {"num_hidden_layers", 28},
                       {"num_key_value_heads", 4},
                       {"pretraining_tp", 1},
                       {"rms_norm_eps", 1e-06},
                       {"rope_scaling", nullptr},
                       {"rope_theta", 600000},
                       {"tie_word_embeddings", false},
                       {"use_bias", false},
                       {"use_qkv_bias", false},
                       {"vocab_size", 126464},
                       {"embedding_dropout", 0.0},
                       {"norm_head", false},
                       {"norm_softmax", false},
                       {"output_dropout", 0.0}};
  const Architecture a = read(config);
  EXPECT_EQ(experts_of(a).router.options, softmax(6, true));
  EXPECT_EQ(experts_of(a).router.correction, "");
  EXPECT_EQ(experts_of(a).shared->width(), 2816);
  EXPECT_EQ(attention_of(a).rope.inverse_frequencies.size(), 64u);
  EXPECT_FALSE(attention_of(a).q_norm);
  EXPECT_EQ(a.kinds.size(), 1u);
  expect_fault(with(config, {{"norm_head", true}}), {"norm_head = true"});
  expect_fault(with(config, {{"use_bias", true}}), {"use_bias = true"});
  expect_fault(with(config, {{"score_function", "tanh"}}), {"score_function = \"tanh\""});
}

TEST(Ernie, Experts) {
  const Architecture a = architecture_of("ernie4_5-moe");
  EXPECT_EQ(routing(a), (Layers{1, 2}));
  EXPECT_EQ(experts_of(a, 1).router.options, softmax(2, true));
  EXPECT_EQ(experts_of(a, 1).router.correction, "mlp.moe_statics.e_score_correction_bias");
  EXPECT_EQ(experts_of(a, 1).shared->width(), 64);
  EXPECT_TRUE(attention_of(a).rope.interleaved);
  EXPECT_TRUE(a.head.tied);
  // As baidu/ERNIE-4.5-21B-A3B-PT has them.
  EXPECT_EQ(changed("ernie4_5-moe", {{"moe_layer_end_index", -1},
                                     {"moe_capacity", {64, 64, 64}},
                                     {"moe_gate", "topk"},
                                     {"moe_use_aux_free", true},
                                     {"num_nextn_predict_layers", 1}}),
            a);
  EXPECT_EQ(routing(changed("ernie4_5-moe", {{"moe_layer_end_index", 1}})), (Layers{1}));
  EXPECT_EQ(
      routing(changed("ernie4_5-moe", {{"moe_layer_start_index", 0}, {"moe_layer_interval", 2}})),
      (Layers{1}));
  expect_fault(with(config_of("ernie4_5-moe"), {{"use_bias", true}}), {"use_bias = true"});
}

TEST(Hunyuan, Experts) {
  const Architecture a = architecture_of("hunyuan-moe");
  const Experts& e = experts_of(a);
  EXPECT_EQ(e.router.linear, kept("mlp.gate.wg", 4, 64));
  EXPECT_EQ(e.router.options, softmax(2, true));
  expect_gated(*e.shared, inside("mlp.shared_mlp"), 48);
  expect_gated(e.experts[2], inside("mlp.experts.2"), 48);
  EXPECT_TRUE(attention_of(a).norms_after_rope);
  // As tencent/Hunyuan-A13B-Instruct has them.
  EXPECT_EQ(changed("hunyuan-moe", {{"moe_intermediate_size", repeated(3, 48)},
                                    {"moe_topk", repeated(3, 2)},
                                    {"num_shared_expert", repeated(3, 1)},
                                    {"moe_layer_num_skipped", 0},
                                    {"moe_drop_tokens", false},
                                    {"norm_topk_prob", true},
                                    {"use_mixed_mlp_moe", true},
                                    {"use_mla", false},
                                    {"routed_scaling_factor", false},
                                    {"n_group", false},
                                    {"use_qk_norm", true}}),
            a);
  const Architecture mixed = changed("hunyuan-moe", {{"moe_topk", {1, 2, 3}},
                                                     {"num_shared_expert", {1, 2, 1}},
                                                     {"moe_intermediate_size", {48, 48, 24}}});
  EXPECT_EQ(mixed.kinds.size(), 3u);
  EXPECT_EQ(experts_of(mixed, 1).shared->width(), 96);
  EXPECT_EQ(experts_of(mixed, 2).per_token(), 3);
  EXPECT_EQ(experts_of(mixed, 2).experts[0].width(), 24);
  EXPECT_EQ(experts_of(mixed, 2).shared->width(), 48);
  expect_fault(with(config_of("hunyuan-moe"), {{"moe_topk", {1, 2}}}), {"moe_topk", "3 layers"});
  expect_fault(with(config_of("hunyuan-moe"), {{"moe_topk", {1, 2, 5}}}), {"moe_topk", "1 to 4"});
  expect_fault(with(config_of("hunyuan-moe"), {{"use_mla", true}}), {"use_mla = true"});
}

TEST(Gemma4, ExpertsBesideTheMlp) {
  const Architecture a = architecture_of("gemma4-moe");
  const Experts& e = experts_of(a);
  EXPECT_EQ(routing(a), (Layers{0, 1, 2}));
  expect_gated(e.experts[0], inside("experts.0"), 24);
  expect_gated(*e.shared, inside("mlp"), 64);
  EXPECT_EQ(e.shared->activation, Activation::gelu_tanh);
  EXPECT_EQ(e.experts[0].activation, Activation::gelu_tanh);
  EXPECT_EQ(e.router.linear, kept("router.proj", 6, 64));
  EXPECT_EQ(e.router.options, softmax(2, true));
  EXPECT_EQ(e.router.expert_scale, "router.per_expert_scale");
  EXPECT_EQ(e.router.multiplier, 0.125f);
  EXPECT_EQ(name_of(e.router.norm), "router.scale");
  EXPECT_EQ(name_of(e.norm), "pre_feedforward_layernorm_2");
  EXPECT_EQ(name_of(e.after), "post_feedforward_layernorm_2");
  EXPECT_EQ(name_of(e.after_shared), "post_feedforward_layernorm_1");
  EXPECT_EQ(norms_of(layer_of(a)),
            (NormNames{"input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
                       "post_feedforward_layernorm"}));
  expect_fault(without(config_of("gemma4-moe"), {"num_experts"}), {"num_experts is missing"});
  expect_fault(with(config_of("gemma4-moe"), {{"top_k_experts", 7}}), {"top_k_experts = 7"});
}

TEST(PhiMoe, TwoMixers) {
  const Architecture a = architecture_of("phimoe");
  const RouteOptions& o = experts_of(a).router.options;
  EXPECT_EQ(o.scoring, Scoring::sparse_mixer);
  EXPECT_EQ(o.top_k, 2);
  EXPECT_EQ(o.threshold, 0.02f);
  EXPECT_EQ(experts_of(a).experts[1].in[1].name, "block_sparse_moe.experts.1.w3");
  EXPECT_FALSE(experts_of(a).experts[1].in[1].bias);
  EXPECT_EQ(layer_of(a).mixer_norm,
            (NormSpec{"input_layernorm", 64, NormKind::layer, 1e-5f, 0.0f, true, true}));
  EXPECT_TRUE(a.head.bias);
  EXPECT_TRUE(a.head.norm->bias);
  EXPECT_TRUE(attention_of(a).qkv[0].bias && attention_of(a).out.bias);
  const Rope& rope = attention_of(a).rope;
  EXPECT_EQ(rope.longest, 32);
  EXPECT_EQ(rope.amplitude, 1.2f);
  EXPECT_EQ(rope.longer_amplitude, 1.3f);
  EXPECT_FLOAT_EQ(rope.longer_frequencies[7], rope.inverse_frequencies[7] * 3.0f / 9.9f);
  EXPECT_EQ(experts_of(changed("phimoe", {{"router_jitter_noise", 0.0}})).router.options.threshold,
            0.0f);
  // As microsoft/Phi-3.5-MoE-instruct has them.
  EXPECT_EQ(windows_of(changed("phimoe", {{"sliding_window", 131072}})), Windows(3, 131072));
  expect_fault(with(config_of("phimoe"), {{"num_local_experts", 1}}), {"num_local_experts = 1"});
}

TEST(Llama4, ChunksAndScaledQueries) {
  const Architecture a = architecture_of("llama4-text");
  EXPECT_EQ(routing(a), (Layers{1}));
  expect_gated(mlp_of(a, 0), inside("feed_forward"), 128);
  const Experts& e = experts_of(a, 1);
  EXPECT_TRUE(e.scales_inputs);
  EXPECT_EQ(e.router.options.scoring, Scoring::logits);
  EXPECT_EQ(e.per_token(), 1);
  EXPECT_FALSE(e.router.options.normalize);
  EXPECT_EQ(e.router.linear, kept("feed_forward.router", 4, 64));
  expect_gated(e.experts[3], inside("feed_forward.experts.3"), 32);
  expect_gated(*e.shared, inside("feed_forward.shared_expert"), 32);
  EXPECT_EQ(attention_of(a, 0).chunk, 16);
  EXPECT_EQ(attention_of(a, 1).chunk, 0);
  EXPECT_TRUE(attention_of(a, 0).rope.interleaved);
  EXPECT_FALSE(attention_of(a, 1).rope.enabled);
  EXPECT_EQ(attention_of(a, 0).query_scale.beta, 0.0f);
  EXPECT_EQ(attention_of(a, 1).query_scale.beta, 0.1f);
  EXPECT_EQ(attention_of(a, 1).query_scale.positions, 8);
  EXPECT_EQ(attention_of(a, 1).query_scale.first, 1);
  EXPECT_FALSE(attention_of(a, 0).q_norm);
  // What follows from the other keys.
  EXPECT_EQ(
      read(without(config_of("llama4-text"), {"moe_layers", "layer_types", "no_rope_layers"})), a);
  EXPECT_EQ(changed("llama4-text", {{"no_rope_layers", Json::array()}}), a);
  EXPECT_EQ(attention_of(changed("llama4-text", {{"attn_temperature_tuning", false}}), 1)
                .query_scale.beta,
            0.0f);
  expect_fault(with(config_of("llama4-text"), {{"moe_layers", {3}}}), {"moe_layers = [3]"});
  expect_fault(with(config_of("llama4-text"), {{"no_rope_layers", {1, 2, 0}}}), {"no_rope_layers"});
}

TEST(Llama4, NormsWithoutWeights) {
  const Architecture a = architecture_of("llama4");
  EXPECT_EQ(a.model_type, "llama4_text");
  EXPECT_EQ(routing(a), (Layers{0, 1, 2}));
  ASSERT_TRUE(attention_of(a, 0).q_norm);
  EXPECT_FALSE(attention_of(a, 0).q_norm->norm.weight);
  EXPECT_TRUE(attention_of(a, 0).norms_after_rope);
  EXPECT_FALSE(attention_of(a, 1).q_norm);  // no positions, no norms
}

TEST(GptOss, LimitsAndSinks) {
  const Architecture a = architecture_of("gpt-oss");
  EXPECT_EQ(windows_of(a), (Windows{16, 0, 16}));
  EXPECT_EQ(attention_of(a).sinks, "self_attn.sinks");
  EXPECT_TRUE(attention_of(a).qkv[2].bias && attention_of(a).out.bias);
  const Experts& e = experts_of(a);
  EXPECT_TRUE(e.router.linear.bias && e.router.linear.kept);
  EXPECT_EQ(e.router.linear.name, "mlp.router");
  EXPECT_EQ(e.router.options, softmax(2, true));
  EXPECT_EQ(e.experts[0].activation, Activation::quick_gelu);
  EXPECT_EQ(e.experts[0].limits, (GatedLimits{7.0f, false, 1.0f}));
  EXPECT_TRUE(e.experts[3].in[0].bias && e.experts[3].in[1].bias && e.experts[3].out.bias);
  EXPECT_EQ(experts_of(architecture_of("gpt-oss"), 2).experts[3].out.name,
            "mlp.experts.3.down_proj");
  EXPECT_EQ(
      changed("gpt-oss",
              {{"swiglu_limit", 7.0}, {"experts_per_token", 2}, {"initial_context_length", 4096}}),
      a);
  EXPECT_EQ(experts_of(changed("gpt-oss", {{"swiglu_limit", 1.5}})).experts[0].limits.limit, 1.5f);
  EXPECT_EQ(read(without(config_of("gpt-oss"), {"rope_parameters", "layer_types"})), a);
  expect_fault(with(config_of("gpt-oss"), {{"experts_per_token", 3}}), {"experts_per_token = 3"});
  expect_fault(with(config_of("gpt-oss"), {{"swiglu_alpha", 1.5}}), {"swiglu_alpha = 1.5"});
}

TEST(Afmoe, GateOfTheHeads) {
  const Architecture a = architecture_of("afmoe");
  EXPECT_EQ(routing(a), (Layers{1, 2}));
  EXPECT_EQ(a.embedding.multiplier, 8.0f);
  EXPECT_EQ(attention_of(a).gate, (LinearSpec{"self_attn.gate_proj", 128, 64}));
  EXPECT_EQ(windows_of(a), (Windows{16, 16, 0}));
  EXPECT_TRUE(attention_of(a, 0).rope.enabled);
  EXPECT_FALSE(attention_of(a, 2).rope.enabled);
  EXPECT_EQ(norms_of(layer_of(a)), (NormNames{"input_layernorm", "post_attention_layernorm",
                                              "pre_mlp_layernorm", "post_mlp_layernorm"}));
  EXPECT_EQ(experts_of(a, 1).router.options, sigmoid(2, 2.826f));
  EXPECT_EQ(experts_of(a, 1).router.correction, "mlp.expert_bias");
  EXPECT_EQ(experts_of(a, 1).router.linear, kept("mlp.router.gate", 6, 64));
  // As arcee-ai/Trinity-Mini has them.
  EXPECT_EQ(changed("afmoe", {{"load_balance_coeff", 0.001},
                              {"n_group", 1},
                              {"num_expert_groups", 1},
                              {"num_limited_groups", 1},
                              {"route_norm", true},
                              {"score_func", "sigmoid"},
                              {"topk_group", 1},
                              {"use_grouped_mm", true}}),
            a);
  EXPECT_EQ(read(without(config_of("afmoe"), {"layer_types"})), a);
  expect_fault(with(config_of("afmoe"), {{"score_func", "softmax"}}), {"score_func"});
}

TEST(MimoV2Flash, ValuesOfAnotherWidth) {
  const Architecture a = architecture_of("mimo-v2-flash");
  EXPECT_EQ(routing(a), (Layers{1, 2}));
  EXPECT_EQ(windows_of(a), (Windows{0, 16, 0}));
  EXPECT_EQ(attention_of(a, 0).sinks, "");
  EXPECT_EQ(attention_of(a, 1).sinks, "self_attn.attention_sink_bias");
  EXPECT_EQ(attention_of(a, 0).heads.kv_heads, 2);
  EXPECT_EQ(attention_of(a, 1).heads.kv_heads, 4);
  EXPECT_EQ(attention_of(a, 1).qkv[2], (LinearSpec{"self_attn.v_proj", 64, 64}));
  EXPECT_EQ(attention_of(a, 0).qkv[2], (LinearSpec{"self_attn.v_proj", 32, 64}));
  EXPECT_EQ(attention_of(a, 0).qkv[1], (LinearSpec{"self_attn.k_proj", 48, 64}));
  EXPECT_EQ(attention_of(a, 0).out, (LinearSpec{"self_attn.o_proj", 64, 64}));
  EXPECT_EQ(attention_of(a, 0).value_scale, 0.707f);
  EXPECT_EQ(attention_of(a, 0).rope.inverse_frequencies.size(), 4u);  // of 24 columns 8
  EXPECT_EQ(second_frequency(a, 0), 1.0f / std::pow(5e6f, 2.0f / 8.0f));
  EXPECT_EQ(second_frequency(a, 1), 1.0f / std::pow(1e4f, 2.0f / 8.0f));
  EXPECT_FALSE(experts_of(a, 1).shared);
  EXPECT_EQ(experts_of(a, 1).router.options, sigmoid(2, 1.0f));
  // As XiaomiMiMo/MiMo-V2-Flash has them: without what transformers 5 adds.
  EXPECT_EQ(read(with(without(config_of("mimo-v2-flash"), {"layer_types", "mlp_layer_types",
                                                           "rope_parameters", "rms_norm_eps"}),
                      {{"attention_chunk_size", 16},
                       {"hybrid_block_size", nullptr},
                       {"layernorm_epsilon", 1e-5}})),
            a);
  EXPECT_EQ(windows_of(read(without(config_of("mimo-v2-flash"), {"sliding_window_size"}))),
            (Windows{0, 16, 0}));
  expect_fault(with(config_of("mimo-v2-flash"), {{"num_key_value_heads", 4}}),
               {"num_attention_heads = 4", "heads = 8"});
  expect_fault(with(config_of("mimo-v2-flash"), {{"swa_head_dim", 32}}), {"swa_head_dim = 32"});
}

TEST(Step3, ByLayer) {
  const Architecture a = architecture_of("step3p5");
  EXPECT_EQ(a.model_type, "step3p5");
  EXPECT_EQ(routing(a), (Layers{1, 2}));
  EXPECT_EQ(windows_of(a), (Windows{0, 16, 0}));
  EXPECT_EQ(attention_of(a, 0).heads.heads, 4);
  EXPECT_EQ(attention_of(a, 1).heads.heads, 6);
  EXPECT_EQ(attention_of(a, 1).gate, kept("self_attn.g_proj", 6, 64));
  EXPECT_EQ(attention_of(a, 1).q_norm->norm.offset, 1.0f);
  EXPECT_EQ(layer_of(a).mlp_norm->offset, 1.0f);
  EXPECT_EQ(attention_of(a, 0).rope.inverse_frequencies.size(), 8u);
  EXPECT_EQ(attention_of(a, 1).rope.inverse_frequencies.size(), 16u);
  EXPECT_EQ(second_frequency(a, 0), 1.0f / std::pow(5e6f, 2.0f / 16.0f));
  EXPECT_EQ(second_frequency(a, 1), 1.0f / std::pow(1e4f, 2.0f / 32.0f));
  EXPECT_EQ(mlp_of(a, 0).limits, GatedLimits{});
  EXPECT_EQ(experts_of(a, 1).experts[0].limits, GatedLimits{});
  EXPECT_EQ(experts_of(a, 2).experts[5].limits, (GatedLimits{0.7f, true, 0.0f}));
  EXPECT_EQ(experts_of(a, 2).shared->limits, (GatedLimits{0.6f, true, 0.0f}));
  expect_gated(*experts_of(a, 1).shared, inside("share_expert"), 32);
  expect_gated(experts_of(a, 1).experts[4], inside("moe.experts.4"), 32);
  EXPECT_EQ(experts_of(a, 1).router.linear, kept("moe.gate", 6, 64));
  EXPECT_EQ(experts_of(a, 1).router.correction, "moe.router_bias");
  EXPECT_EQ(experts_of(a, 1).router.options, sigmoid(2, 3.0f));

  // As stepfun-ai/Step-3.7-Flash has them: lists go on with layers that predict more tokens.
  const Json text = config_of("step3p5").at("text_config");
  const Json published = {
      {"num_nextn_predict_layers", 1},
      {"layer_types",
       {"full_attention", "sliding_attention", "full_attention", "sliding_attention"}},
      {"rope_theta", {5e6, 1e4, 5e6, 1e4}},
      {"partial_rotary_factors", {0.5, 1.0, 0.5, 1.0}},
      {"swiglu_limits", {0.0, 0.0, 0.7, 0.0}},
      {"swiglu_limits_shared", {nullptr, 0.0, 0.6, 0.0}},
      {"use_rope_layers", Json::array()},
      {"yarn_only_types", {"full_attention"}},
      {"use_moe", true},
      {"moe_every_n_layer", 1},
      {"max_seq_len", 128},
      {"att_impl_type", "GQA"},
      {"zero_centered", true},
      {"sink", false},
      {"use_mfa", false}};
  EXPECT_EQ(read(with(text, published)), a);
  // As transformers 5 saves it.
  const Json saved = {
      {"rope_parameters",
       {{"full_attention",
         {{"rope_type", "default"}, {"rope_theta", 5e6}, {"partial_rotary_factor", 0.5}}},
        {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 1e4}}}}},
      {"mlp_layer_types", {"dense", "sparse", "sparse"}},
      {"num_sliding_attention_heads", 6},
      {"n_routed_experts", 6},
      {"num_experts_per_tok", 2},
      {"num_key_value_heads", 2}};
  EXPECT_EQ(read(with(without(text, {"rope_theta", "partial_rotary_factors", "moe_layers_enum",
                                     "attention_other_setting", "moe_num_experts", "moe_top_k",
                                     "num_attention_groups"}),
                      saved)),
            a);
  const Json scaled = {{"rope_scaling",
                        {{"rope_type", "llama3"},
                         {"factor", 2.0},
                         {"original_max_position_embeddings", 64},
                         {"low_freq_factor", 1.0},
                         {"high_freq_factor", 32.0}}}};
  const Architecture longer = read(with(text, scaled));
  EXPECT_NE(attention_of(longer, 0).rope, attention_of(a, 0).rope);
  EXPECT_EQ(attention_of(longer, 1).rope, attention_of(a, 1).rope);

  expect_fault(with(text, {{"rope_theta", {5e6, 1e4}}}), {"rope_theta", "3 layers"});
  expect_fault(with(text, {{"swiglu_limits", {0.0, -1.0, 0.0}}}), {"swiglu_limits"});
  expect_fault(with(text, {{"moe_layers_enum", "1,3"}}), {"moe_layers_enum"});
  expect_fault(with(text, {{"moe_layers_enum", "1;2"}}), {"moe_layers_enum"});
  expect_fault(with(text, {{"use_rope_layers", {1, 0, 1}}}), {"use_rope_layers"});
  expect_fault(with(text, {{"attention_other_setting", {{"num_attention_heads", 5}}}}),
               {"attention_other_setting"});
}

// Of every family with experts.
TEST(ExpertFamilies, RefuseWhatCannotBe) {
  const std::map<std::string, std::string> top_k = {{"ernie4_5-moe", "moe_k"},
                                                    {"gemma4-moe", "top_k_experts"},
                                                    {"hunyuan-moe", "moe_topk"},
                                                    {"step3p5", "moe_top_k"}};
  for (const char* model :
       {"qwen2-moe",     "qwen3-moe",      "qwen3-vl-moe", "mixtral",     "olmoe",
        "minimax-m2",    "granitemoe",     "glm4-moe",     "dots1",       "solar-open",
        "exaone-moe",    "bailing-moe-v2", "ernie4_5-moe", "hunyuan-moe", "gemma4-moe",
        "phimoe",        "llama4-text",    "llama4",       "gpt-oss",     "afmoe",
        "mimo-v2-flash", "step3p5"}) {
    SCOPED_TRACE(model);
    Json config = config_of(model);
    Json& text = config.contains("text_config") ? config["text_config"] : config;
    const Architecture a = read(config);
    const auto count = std::ssize(experts_of(a, routing(a).front()).experts);
    const auto key = top_k.contains(model) ? top_k.at(model) : "num_experts_per_tok";
    const Json fine = text;
    text[key] = count + 1;
    expect_fault(config, {key.c_str(), std::to_string(count + 1).c_str()});
    text[key] = 0;
    expect_fault(config, {key.c_str()});
    text = fine;
    text["some_new_mathematics"] = 2;
    expect_fault(config, {"some_new_mathematics = 2", "does not know"});
    text = fine;
    for (const char* number :
         {"num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"})
      if (text.contains(number)) {
        text[number] = 1025;
        expect_fault(config, {number, "1 to 1024"});
        text[number] = 2.5;
        expect_fault(config, {number});
      }
  }
}

TEST(ExpertFamilies, RefuseGroupsThatCannotBe) {
  for (const char* model : {"glm4-moe", "dots1", "solar-open", "exaone-moe", "bailing-moe-v2",
                            "afmoe", "mimo-v2-flash"}) {
    SCOPED_TRACE(model);
    const Json config = config_of(model);
    expect_fault(with(config, {{"n_group", 4}, {"topk_group", 2}}), {"n_group = 4", "6 experts"});
    expect_fault(with(config, {{"n_group", 6}, {"topk_group", 2}}),
                 {"n_group = 6", "at least two"});
    expect_fault(with(config, {{"n_group", 3}, {"topk_group", 4}}), {"topk_group = 4"});
    expect_fault(with(config, {{"n_group", 3}, {"topk_group", 1}, {"num_experts_per_tok", 3}}),
                 {"topk_group = 1", "at least 3 experts"});
    const char* scaling = config.contains("route_scale") ? "route_scale" : "routed_scaling_factor";
    expect_fault(with(config, {{scaling, -1.0}}), {scaling});
  }
}

TEST(ExpertFamilies, RefuseSizesThatOverflow) {
  const Json config = with(config_of("mixtral"), {{"hidden_size", 1 << 14},
                                                  {"intermediate_size", 1 << 24},
                                                  {"num_local_experts", 1024},
                                                  {"num_hidden_layers", 100}});
  expect_fault(config, {"10^15 parameters"});
  expect_fault(with(config_of("glm4-moe"), {{"n_shared_experts", 1 << 24}}), {"n_shared_experts"});
  expect_fault(with(config_of("mixtral"), {{"num_experts", 5}}),
               {"num_local_experts = 4", "what num_experts says: 5"});
}

// A checkpoint of zeros as config.json makes it, but for some tensors.
class StoredExperts : public testing::Test {
 protected:
  StoredExperts()
      : folder(fs::temp_directory_path() / ("qpipe_stored_experts_" + std::to_string(getpid()))) {}
  ~StoredExperts() override { fs::remove_all(folder); }

  using Shapes = std::map<std::string, std::vector<std::int64_t>>;

  static Shapes shapes_of(const Json& config) {
    Shapes shapes;
    for (const TensorInfo& info : expected_tensors(read(config), DType::bf16))
      shapes[info.name] = info.shape;
    return shapes;
  }

  std::string fault(const Json& config, const Shapes& shapes) {
    fs::remove_all(folder);
    fs::create_directories(folder);
    std::ofstream(folder / "config.json") << config.dump();
    std::vector<TensorInfo> infos;
    for (const auto& [name, shape] : shapes) infos.push_back({name, DType::bf16, shape});
    SafetensorsWriter writer(folder / "model.safetensors", infos);
    for (const TensorInfo& info : infos)
      writer.write(info.name,
                   std::vector<unsigned char>(static_cast<std::size_t>(info.bytes())).data());
    writer.finish();
    try {
      const Checkpoint checkpoint(folder);
      check_tensors(read_architecture(checkpoint), checkpoint);
    } catch (const UserError& error) {
      EXPECT_EQ(error.code, ExitCode::data);
      return error.what();
    }
    return "no fault";
  }

  void expect_fault(const Json& config, const Shapes& shapes,
                    std::initializer_list<const char*> parts) {
    const std::string message = fault(config, shapes);
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_NE(message.find(folder.string()), std::string::npos) << message;
    for (const char* part : parts)
      EXPECT_NE(message.find(part), std::string::npos) << "'" << part << "' is not in: " << message;
  }

  fs::path folder;
};

TEST_F(StoredExperts, OfEveryFamilyPass) {
  for (const char* model : {"qwen2-moe", "qwen3-moe", "mixtral", "olmoe", "minimax-m2",
                            "granitemoe", "glm4-moe", "dots1", "solar-open", "exaone-moe",
                            "bailing-moe-v2", "ernie4_5-moe", "hunyuan-moe", "gemma4-moe"})
    EXPECT_EQ(fault(config_of(model), shapes_of(config_of(model))), "no fault") << model;
}

TEST_F(StoredExperts, MissingOrOfAnotherShape) {
  const Json config = config_of("glm4-moe");
  const Shapes shapes = shapes_of(config);
  const auto without_one = [&](const std::string& name) {
    Shapes less = shapes;
    EXPECT_EQ(less.erase(name), 1u) << name;
    return less;
  };
  const auto reshaped = [&](const std::string& name, const std::vector<std::int64_t>& shape) {
    Shapes other = shapes;
    other.at(name) = shape;
    return other;
  };
  const char* down = "model.layers.1.mlp.experts.5.down_proj.weight";
  expect_fault(config, without_one(down), {down, "missing"});
  expect_fault(config, reshaped(down, {64, 48}), {down, "[64, 48]", "[64, 32]"});
  const char* router = "model.layers.2.mlp.gate.weight";
  expect_fault(config, reshaped(router, {7, 64}), {router, "[7, 64]", "[6, 64]"});
  const char* correction = "model.layers.1.mlp.gate.e_score_correction_bias";
  expect_fault(config, reshaped(correction, {5}), {correction, "[5]", "[6]"});
  expect_fault(config, without_one(correction), {correction, "missing"});
  EXPECT_EQ(fault(config, reshaped(correction, {1, 6})), "no fault");
  const char* shared = "model.layers.1.mlp.shared_experts.gate_proj.weight";
  expect_fault(config, reshaped(shared, {64, 64}), {shared, "[64, 64]", "[32, 64]"});
}

// Granite's gate and up of all experts lie in one tensor, their downs in another.
TEST_F(StoredExperts, StacksOfAnotherShape) {
  const Json config = config_of("granitemoe");
  Shapes shapes = shapes_of(config);
  for (auto shape = shapes.begin(); shape != shapes.end();)
    shape = shape->first.find(".experts.") == std::string::npos ? std::next(shape)
                                                                : shapes.erase(shape);
  for (int layer = 0; layer < 3; ++layer) {
    const std::string moe = "model.layers." + std::to_string(layer) + ".block_sparse_moe.";
    shapes[moe + "input_linear.weight"] = {4, 64, 64};
    shapes[moe + "output_linear.weight"] = {4, 64, 32};
  }
  EXPECT_EQ(fault(config, shapes), "no fault");
  const std::string moe = "model.layers.1.block_sparse_moe.";
  const auto changed_to = [&](const std::string& name, const std::vector<std::int64_t>& shape) {
    Shapes other = shapes;
    other.at(moe + name) = shape;
    return other;
  };
  expect_fault(config, changed_to("input_linear.weight", {3, 64, 64}),
               {"model.layers.1.block_sparse_moe.experts.3.gate_proj.weight", "missing"});
  expect_fault(config, changed_to("output_linear.weight", {4, 64, 24}),
               {"model.layers.1.block_sparse_moe.experts.0.down_proj.weight", "[64, 24]"});
  expect_fault(
      config, changed_to("input_linear.weight", {4, 64, 48}),
      {"model.layers.1.block_sparse_moe.input_linear.weight", "[4, 64, 48]", "hidden_size = 64"});
}

}  // namespace
}  // namespace qpipe
