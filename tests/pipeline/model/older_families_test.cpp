// config.json → architecture for the families before and beside Llama: what tells each from the
// others, defaults of the reference, forms that are refused.
#include <gtest/gtest.h>

#include <cmath>

#include "pipeline/model/readers.h"
#include "tests/pipeline/model/golden_models.h"

namespace qpipe {
namespace {

Architecture changed(const std::string& model, const Json& changes) {
  return read_architecture(with(config_of(model), changes), "config.json");
}

NormSpec layer_norm(const std::string& name, float eps = 1e-5f, std::int64_t width = 64) {
  return {name, width, NormKind::layer, eps, 0.0f, true, true};
}

std::size_t rotated(const Architecture& a) {
  return 2 * attention_of(a).rope.inverse_frequencies.size();
}

void expect_names(const Architecture& a, const std::string& tokens, const std::string& layers,
                  const std::string& last_norm, const std::string& head, bool tied) {
  EXPECT_EQ(a.embedding.tokens, tokens);
  EXPECT_EQ(layer_prefix(a, 1), layers + ".1.");
  EXPECT_EQ(name_of(a.head.norm), last_norm);
  EXPECT_EQ(a.head.name, head);
  EXPECT_EQ(a.head.tied, tied);
}

TEST(OlderFamilies, Phi) {
  const Architecture a = architecture_of("phi");
  expect_names(a, "model.embed_tokens.weight", "model.layers", "model.final_layernorm", "lm_head",
               false);
  EXPECT_TRUE(a.head.bias);
  EXPECT_TRUE(layer_of(a).shares_norm());
  EXPECT_EQ(layer_of(a).mixer_norm, layer_norm("input_layernorm"));
  EXPECT_EQ(attention_of(a).qkv[1], (LinearSpec{"self_attn.k_proj", 32, 64, true}));
  EXPECT_EQ(attention_of(a).out, (LinearSpec{"self_attn.dense", 64, 64, true}));
  EXPECT_EQ(rotated(a), 8u);
  EXPECT_FALSE(attention_of(a).rope.interleaved);
  EXPECT_FALSE(attention_of(a).q_norm);
  EXPECT_EQ(mlp_of(a).in[0], (LinearSpec{"mlp.fc1", 128, 64, true}));
  EXPECT_EQ(mlp_of(a).activation, Activation::gelu_tanh);

  const Architecture with_norms = changed("phi", {{"qk_layernorm", true}});
  EXPECT_EQ(attention_of(with_norms).q_norm,
            (HeadNorm{layer_norm("self_attn.q_layernorm", 1e-5f, 16)}));
  EXPECT_EQ(attention_of(with_norms).k_norm->layout, HeadNorm::Weight::shared);
  const Json bare = without(config_of("phi"), {"rope_parameters", "partial_rotary_factor"});
  EXPECT_EQ(read_architecture(bare, "c"), a);  // half of the head
}

TEST(OlderFamilies, Persimmon) {
  const Architecture a = architecture_of("persimmon");
  expect_names(a, "model.embed_tokens.weight", "model.layers", "model.final_layernorm", "lm_head",
               false);
  EXPECT_EQ(layer_of(a).residual, Residual::sequential);
  EXPECT_EQ(attention_of(a).heads, by_group(4, 4, 16));
  EXPECT_EQ(attention_of(a).qkv[0], (LinearSpec{"self_attn.query_key_value", 192, 64, true}));
  EXPECT_EQ(attention_of(a).k_norm, (HeadNorm{layer_norm("self_attn.k_layernorm", 1e-5f, 16)}));
  EXPECT_EQ(mlp_of(a).activation, Activation::relu2);
  EXPECT_EQ(rotated(a), 8u);
  EXPECT_FALSE(attention_of(changed("persimmon", {{"qk_layernorm", false}})).q_norm);
  EXPECT_EQ(changed("persimmon", {{"num_key_value_heads", 4}}), a);
  expect_fault(with(config_of("persimmon"), {{"num_key_value_heads", 2}}),
               {"num_key_value_heads = 2"});
}

TEST(OlderFamilies, Olmo) {
  const Architecture a = architecture_of("olmo");
  NormSpec norm{"input_layernorm", 64, NormKind::layer, 1e-5f};
  norm.weight = false;
  EXPECT_EQ(layer_of(a).mixer_norm, norm);
  norm.name = "model.norm";
  EXPECT_EQ(a.head.norm, norm);
  EXPECT_EQ(attention_of(a).clip_qkv, 1.0f);
  EXPECT_EQ(attention_of(changed("olmo", {{"clip_qkv", nullptr}})).clip_qkv, 0.0f);
  EXPECT_TRUE(attention_of(changed("olmo", {{"attention_bias", true}})).out.bias);
  EXPECT_TRUE(mlp_of(a).gated);
  expect_fault(with(config_of("olmo"), {{"clip_qkv", -1.0}}), {"clip_qkv = -1.0", "above 0"});
}

TEST(OlderFamilies, StableLm) {
  const Architecture one = architecture_of("stablelm");
  expect_names(one, "model.embed_tokens.weight", "model.layers", "model.norm", "lm_head", false);
  EXPECT_EQ(norms_of(layer_of(one)),
            (NormNames{"input_layernorm", "", "post_attention_layernorm", ""}));
  EXPECT_EQ(layer_of(one).mlp_norm, layer_norm("post_attention_layernorm"));
  EXPECT_TRUE(attention_of(one).qkv[2].bias);
  EXPECT_FALSE(attention_of(one).out.bias);
  EXPECT_FALSE(mlp_of(one).out.bias);
  EXPECT_EQ(rotated(one), 4u);
  EXPECT_EQ(read_architecture(
                without(config_of("stablelm"), {"rope_parameters", "partial_rotary_factor"}), "c"),
            one);  // a quarter of the head

  const Architecture two = architecture_of("stablelm-2");
  EXPECT_TRUE(layer_of(two).shares_norm());
  HeadNorm norm{layer_norm("self_attn.q_layernorm", 1e-5f, 16), HeadNorm::Weight::modules};
  norm.norm.bias = false;
  EXPECT_EQ(attention_of(two).q_norm, norm);
  norm.norm.name = "self_attn.k_layernorm";
  EXPECT_EQ(attention_of(two).k_norm, norm);
  EXPECT_FALSE(attention_of(two).qkv[0].bias);
}

TEST(OlderFamilies, StarCoder2) {
  const Architecture a = architecture_of("starcoder2");
  expect_names(a, "model.embed_tokens.weight", "model.layers", "model.norm", "lm_head", true);
  EXPECT_EQ(windows_of(a), std::vector<std::int64_t>(3, 16));
  EXPECT_EQ(layer_of(a).mlp_norm, layer_norm("post_attention_layernorm"));
  EXPECT_TRUE(attention_of(a).qkv[0].bias && attention_of(a).out.bias);
  EXPECT_EQ(mlp_of(a).in, (std::vector<LinearSpec>{{"mlp.c_fc", 128, 64, true}}));
  EXPECT_EQ(mlp_of(a).activation, Activation::gelu_tanh);
  EXPECT_FALSE(attention_of(changed("starcoder2", {{"use_bias", false}})).out.bias);
  EXPECT_EQ(windows_of(changed("starcoder2", {{"sliding_window", nullptr}})),
            std::vector<std::int64_t>(3, 0));
  // Keys of the public repositories that the reference does not read, and some that it assumes.
  EXPECT_EQ(changed("starcoder2", {{"activation_function", "gelu"},
                                   {"attention_softmax_in_fp32", true},
                                   {"layer_norm_epsilon", 1e-5},
                                   {"mlp_type", "default"},
                                   {"norm_type", "layer_norm"},
                                   {"scale_attn_weights", true},
                                   {"scale_attention_softmax_in_fp32", true}}),
            a);
  expect_fault(with(config_of("starcoder2"), {{"mlp_type", "gated"}}), {"mlp_type = \"gated\""});
}

TEST(OlderFamilies, GptNeoX) {
  const Architecture a = architecture_of("gpt-neox");
  expect_names(a, "gpt_neox.embed_in.weight", "gpt_neox.layers", "gpt_neox.final_layer_norm",
               "embed_out", false);
  EXPECT_EQ(layer_of(a).residual, Residual::parallel);
  EXPECT_FALSE(layer_of(a).shares_norm());
  EXPECT_EQ(attention_of(a).heads, (HeadLayout{4, 4, 16, 48, 48, 16, 32}));
  EXPECT_EQ(attention_of(a).qkv[0], (LinearSpec{"attention.query_key_value", 192, 64, true}));
  EXPECT_EQ(rotated(a), 8u);
  EXPECT_EQ(mlp_of(a).activation, Activation::gelu);

  const Architecture sequential = architecture_of("gpt-neox-sequential");
  EXPECT_EQ(layer_of(sequential).residual, Residual::sequential);
  EXPECT_EQ(rotated(sequential), 4u);
  EXPECT_FALSE(attention_of(changed("gpt-neox", {{"attention_bias", false}})).out.bias);
  EXPECT_TRUE(mlp_of(changed("gpt-neox", {{"attention_bias", false}})).out.bias);
  // The names before transformers 5, and a quarter without them.
  const Json bare = without(config_of("gpt-neox"), {"rope_parameters"});
  EXPECT_EQ(rotated(read_architecture(bare, "c")), 4u);
  const Architecture older =
      read_architecture(with(bare, {{"rotary_pct", 0.5}, {"rotary_emb_base", 100}}), "c");
  EXPECT_EQ(rotated(older), 8u);
  EXPECT_FLOAT_EQ(attention_of(older).rope.inverse_frequencies[2], 0.1f);
}

TEST(OlderFamilies, Gpt2) {
  const Architecture a = architecture_of("gpt2");
  expect_names(a, "transformer.wte.weight", "transformer.h", "transformer.ln_f", "lm_head", true);
  EXPECT_EQ(a.embedding.positions, "transformer.wpe.weight");
  EXPECT_EQ(a.embedding.first_position, 0);
  EXPECT_EQ(a.max_positions, 128);
  EXPECT_FALSE(attention_of(a).rope.enabled);
  EXPECT_EQ(attention_of(a).heads, side_by_side(4, 4, 16));
  EXPECT_EQ(attention_of(a).qkv[0], (LinearSpec{"attn.c_attn", 192, 64, true, true}));
  EXPECT_EQ(attention_of(a).out, (LinearSpec{"attn.c_proj", 64, 64, true, true}));
  EXPECT_EQ(mlp_of(a).in[0], (LinearSpec{"mlp.c_fc", 256, 64, true, true}));
  EXPECT_EQ(mlp_of(a).out, (LinearSpec{"mlp.c_proj", 64, 256, true, true}));
  EXPECT_EQ(mlp_of(a).activation, Activation::gelu_tanh);
  EXPECT_EQ(attention_of(a).scale, 0.25f);
  EXPECT_EQ(mlp_of(changed("gpt2", {{"n_inner", 100}})).width(), 100);

  EXPECT_EQ(attention_of(changed("gpt2", {{"scale_attn_weights", false}})).scale, 1.0f);
  const Architecture by_layer = changed("gpt2", {{"scale_attn_by_inverse_layer_idx", true}});
  EXPECT_EQ(by_layer.kinds.size(), 3u);
  EXPECT_EQ(attention_of(by_layer, 2).scale, 0.25f / 3.0f);
  EXPECT_EQ(changed("gpt2", {{"reorder_and_upcast_attn", true}}), a);
  expect_fault(with(config_of("gpt2"), {{"add_cross_attention", true}}),
               {"add_cross_attention = true"});
  expect_fault(with(config_of("gpt2"), {{"attention_head_type", "multiquery"}}),
               {"attention_head_type"});  // SantaCoder
}

TEST(OlderFamilies, GptBigCode) {
  const Architecture a = architecture_of("gpt-bigcode");
  EXPECT_EQ(attention_of(a).heads, side_by_side(4, 1, 16));
  EXPECT_EQ(attention_of(a).qkv[0], (LinearSpec{"attn.c_attn", 96, 64, true}));
  EXPECT_EQ(a.embedding.positions, "transformer.wpe.weight");
  EXPECT_TRUE(a.head.tied);
  const Architecture many =
      changed("gpt-bigcode", {{"multi_query", false}, {"num_key_value_heads", 4}});
  EXPECT_EQ(attention_of(many).heads, by_group(4, 4, 16));
  expect_fault(with(config_of("gpt-bigcode"), {{"num_key_value_heads", 4}}),
               {"num_key_value_heads = 4"});
}

TEST(OlderFamilies, GptNeo) {
  const Architecture a = architecture_of("gpt-neo");
  EXPECT_EQ(windows_of(a), (std::vector<std::int64_t>{0, 16, 0}));
  EXPECT_EQ(a.kind_of_layer, (std::vector<std::uint16_t>{0, 1, 0}));
  EXPECT_EQ(attention_of(a).scale, 1.0f);
  EXPECT_EQ(attention_of(a).qkv[0], (LinearSpec{"attn.attention.q_proj", 64, 64, false}));
  EXPECT_EQ(attention_of(a).out, (LinearSpec{"attn.attention.out_proj", 64, 64, true}));
  EXPECT_EQ(mlp_of(a).width(), 256);
  const Json bare =
      with(without(config_of("gpt-neo"), {"attention_types", "attention_layers", "window_size"}),
           {{"num_layers", 24}});
  EXPECT_EQ(attention_of(read_architecture(bare, "c"), 1).window, 256);
  const Json types = with(bare, {{"num_layers", 3}});
  expect_fault(types, {"attention_types", "together 3"});
  for (const Json& wrong : std::vector<Json>{Json{{{"global", "local"}, 1}}, "local",
                                             Json{{{"global", "near", "local"}, 1}},
                                             Json{{{"global"}, -3}}, Json{{"global", 3}}})
    expect_fault(with(types, {{"attention_types", wrong}}), {"attention_types"});
  expect_fault(with(config_of("gpt-neo"), {{"attention_layers", {"global", "local", "local"}}}),
               {"attention_layers"});
}

TEST(OlderFamilies, GptJ) {
  const Architecture a = architecture_of("gptj");
  expect_names(a, "transformer.wte.weight", "transformer.h", "transformer.ln_f", "lm_head", false);
  EXPECT_TRUE(a.head.bias);
  EXPECT_TRUE(layer_of(a).shares_norm());
  EXPECT_EQ(rotated(a), 8u);
  EXPECT_TRUE(attention_of(a).rope.interleaved);
  EXPECT_FALSE(attention_of(a).qkv[0].bias || attention_of(a).out.bias);
  EXPECT_EQ(mlp_of(a).in[0], (LinearSpec{"mlp.fc_in", 256, 64, true}));
  EXPECT_EQ(changed("gptj", {{"rotary", true}, {"scale_attn_weights", true}}), a);
  expect_fault(with(config_of("gptj"), {{"rotary_dim", nullptr}}), {"rotary_dim = null"});
  expect_fault(with(config_of("gptj"), {{"rotary_dim", 18}}), {"rotary_dim = 18", "to 16"});
}

TEST(OlderFamilies, CodeGen) {
  const Architecture a = architecture_of("codegen");
  const HeadLayout& heads = attention_of(a).heads;
  EXPECT_EQ(attention_of(a).qkv[0], (LinearSpec{"attn.qkv_proj", 192, 64, false}));
  for (int head = 0; head < 4; ++head) {  // q v k of each quarter: here, of each head
    EXPECT_EQ(heads.q_column(head), head * 48);
    EXPECT_EQ(heads.v_column(head), head * 48 + 16);
    EXPECT_EQ(heads.k_column(head), head * 48 + 32);
  }
  const HeadLayout eight = attention_of(changed("codegen", {{"n_head", 8}})).heads;
  EXPECT_EQ(eight.q_column(3), 48 + 8);  // the second head of the second quarter
  EXPECT_EQ(eight.k_column(3), 48 + 32 + 8);
  EXPECT_TRUE(attention_of(a).rope.interleaved);
  EXPECT_TRUE(layer_of(a).shares_norm());
  expect_fault(with(config_of("codegen"), {{"n_head", 2}}), {"n_head = 2", "multiple of 4"});
}

TEST(OlderFamilies, Opt) {
  const Architecture a = architecture_of("opt");
  expect_names(a, "model.decoder.embed_tokens.weight", "model.decoder.layers",
               "model.decoder.final_layer_norm", "lm_head", true);
  EXPECT_EQ(a.embedding.positions, "model.decoder.embed_positions.weight");
  EXPECT_EQ(a.embedding.first_position, 2);
  EXPECT_EQ(norms_of(layer_of(a)), (NormNames{"self_attn_layer_norm", "", "final_layer_norm", ""}));
  EXPECT_EQ(layer_of(a).mixer_norm, layer_norm("self_attn_layer_norm"));
  EXPECT_EQ(mlp_of(a).in[0], (LinearSpec{"fc1", 128, 64, true}));
  EXPECT_EQ(mlp_of(a).activation, Activation::relu);
  EXPECT_FALSE(a.embedding.projection || a.head.projection);
  EXPECT_FALSE(changed("opt", {{"_remove_final_layer_norm", true}}).head.norm);
  EXPECT_FALSE(attention_of(changed("opt", {{"enable_bias", false}})).out.bias);
  const Architecture plain = changed("opt", {{"layer_norm_elementwise_affine", false}});
  EXPECT_FALSE(plain.head.norm->weight || plain.head.norm->bias);

  const Architecture post = architecture_of("opt-350m-style");
  EXPECT_EQ(layer_of(post).residual, Residual::normed);
  EXPECT_EQ(norms_of(layer_of(post)),
            (NormNames{"", "self_attn_layer_norm", "", "final_layer_norm"}));
  EXPECT_FALSE(post.head.norm);
  EXPECT_EQ(post.embedding.width, 32);
  EXPECT_EQ(post.embedding.projection, (LinearSpec{"model.decoder.project_in", 64, 32}));
  EXPECT_EQ(post.head.projection, (LinearSpec{"model.decoder.project_out", 32, 64}));
}

TEST(OlderFamilies, Bloom) {
  const Architecture a = architecture_of("bloom");
  expect_names(a, "transformer.word_embeddings.weight", "transformer.h", "transformer.ln_f",
               "lm_head", true);
  EXPECT_EQ(a.embedding.norm, layer_norm("transformer.word_embeddings_layernorm"));
  EXPECT_EQ(attention_of(a).heads, by_group(4, 4, 16));
  EXPECT_EQ(attention_of(a).alibi.slopes, alibi_slopes(4));
  EXPECT_EQ(attention_of(a).alibi.scale, 1.0f);
  EXPECT_FALSE(attention_of(a).alibi.in_bf16);
  EXPECT_EQ(mlp_of(a).width(), 256);
  EXPECT_EQ(mlp_of(a).activation, Activation::gelu_tanh);
  // As bigscience/bloom-560m has them.
  Json public_keys = without(config_of("bloom"), {"hidden_size", "n_head"});
  public_keys.update({{"n_embed", 64},
                      {"num_attention_heads", 4},
                      {"n_inner", nullptr},
                      {"attention_softmax_in_fp32", true},
                      {"bias_dropout_fusion", true},
                      {"masked_softmax_fusion", true},
                      {"offset_alibi", 100},
                      {"seq_length", 2048},
                      {"skip_bias_add", true},
                      {"skip_bias_add_qkv", false}});
  EXPECT_EQ(read_architecture(public_keys, "c"), a);
  expect_fault(with(config_of("bloom"), {{"apply_residual_connection_post_layernorm", true}}),
               {"apply_residual_connection_post_layernorm = true"});
}

TEST(OlderFamilies, Mpt) {
  const Architecture a = architecture_of("mpt");
  expect_names(a, "transformer.wte.weight", "transformer.blocks", "transformer.norm_f", "lm_head",
               true);
  NormSpec norm = layer_norm("norm_1");
  norm.bias = false;
  EXPECT_EQ(layer_of(a).mixer_norm, norm);
  EXPECT_EQ(attention_of(a).heads, side_by_side(4, 4, 16));
  EXPECT_EQ(attention_of(a).qkv[0], (LinearSpec{"attn.Wqkv", 192, 64, false}));
  EXPECT_EQ(mlp_of(a).in[0], (LinearSpec{"ffn.up_proj", 256, 64, false}));
  EXPECT_EQ(mlp_of(a).activation, Activation::gelu);
  EXPECT_EQ(a.max_positions, 128);
  const auto attn = [](const Json& changes) {
    return Json{{"attn_config", with(config_of("mpt").at("attn_config"), changes)}};
  };
  EXPECT_EQ(attention_of(changed("mpt", attn({{"clip_qkv", 6}}))).clip_qkv, 6.0f);
  EXPECT_EQ(attention_of(changed("mpt", attn({{"softmax_scale", 0.5}}))).scale, 0.5f);
  EXPECT_EQ(attention_of(changed("mpt", attn({{"alibi_bias_max", 16}}))).alibi.slopes[0], 0.0625f);
  EXPECT_EQ(mlp_of(changed("mpt", {{"expansion_ratio", 2}})).width(), 128);
  EXPECT_EQ(changed("mpt", {{"logit_scale", "inv_sqrt_d_model"}}).head.multiplier, 0.125f);
  EXPECT_EQ(read_architecture(without(config_of("mpt"), {"attn_config"}), "c"), a);
  expect_fault(with(config_of("mpt"), attn({{"qk_ln", true}})), {"attn_config: qk_ln = true"});
  expect_fault(with(config_of("mpt"), attn({{"alibi", false}})), {"attn_config: alibi = false"});
  expect_fault(with(config_of("mpt"), {{"no_bias", false}}), {"no_bias = false"});
  expect_fault(with(config_of("mpt"), {{"norm_type", "rmsnorm"}}), {"norm_type = \"rmsnorm\""});
}

// build_mpt_alibi_tensor: slopes 2^(−8 i/16) of 16 heads, those with even i first, cut to 12.
TEST(OlderFamilies, MptSlopesOfHeadsThatAreNoPowerOfTwo) {
  const Architecture a = changed("mpt", {{"d_model", 96}, {"n_heads", 12}});
  const std::vector<float>& slopes = attention_of(a).alibi.slopes;
  ASSERT_EQ(slopes.size(), 12u);
  for (int head = 0; head < 12; ++head) {
    const int i = head < 8 ? 2 * (head + 1) : 2 * (head - 8) + 1;
    EXPECT_FLOAT_EQ(slopes[static_cast<std::size_t>(head)],
                    std::exp2(-0.5f * static_cast<float>(i)));
  }
}

TEST(OlderFamilies, Nemotron) {
  const Architecture a = architecture_of("nemotron");
  NormSpec norm = layer_norm("input_layernorm");
  norm.offset = 1.0f;
  EXPECT_EQ(layer_of(a).mixer_norm, norm);
  EXPECT_EQ(a.head.norm->offset, 1.0f);
  EXPECT_EQ(mlp_of(a).in, (std::vector<LinearSpec>{{"mlp.up_proj", 96, 64, false}}));
  EXPECT_EQ(mlp_of(a).activation, Activation::relu2);
  EXPECT_EQ(rotated(a), 8u);
  const Json bare = without(config_of("nemotron"), {"partial_rotary_factor", "head_dim"});
  EXPECT_EQ(read_architecture(bare, "c"), a);
  EXPECT_EQ(rotated(read_architecture(with(bare, {{"rope_percent", 0.25}}), "c")), 4u);
}

TEST(OlderFamilies, Exaone) {
  const Architecture a = architecture_of("exaone");
  expect_names(a, "transformer.wte.weight", "transformer.h", "transformer.ln_f", "lm_head", false);
  EXPECT_EQ(layer_of(a).mixer_norm, (NormSpec{"ln_1", 64, NormKind::rms, 1e-5f}));
  EXPECT_EQ(attention_of(a).qkv[1], (LinearSpec{"attn.attention.k_proj", 32, 64, false}));
  EXPECT_EQ(mlp_of(a).in[0].name, "mlp.c_fc_0");
  EXPECT_EQ(mlp_of(a).in[1].name, "mlp.c_fc_1");
  EXPECT_EQ(mlp_of(a).out.name, "mlp.c_proj");
  EXPECT_TRUE(mlp_of(a).gated);
  // The keys that transformers 5 writes for it.
  Json newer =
      without(config_of("exaone"), {"num_layers", "layer_norm_epsilon", "activation_function"});
  newer.update({{"num_hidden_layers", 3}, {"rms_norm_eps", 1e-5}, {"hidden_act", "silu"}});
  EXPECT_EQ(read_architecture(newer, "c"), a);
}

TEST(OlderFamilies, GlmAndErnie) {
  const Architecture glm = architecture_of("glm");
  EXPECT_TRUE(attention_of(glm).rope.interleaved);
  EXPECT_EQ(rotated(glm), 16u);
  EXPECT_EQ(attention_of(glm).heads.head_dim, 32);
  EXPECT_TRUE(attention_of(glm).qkv[0].bias);
  EXPECT_FALSE(attention_of(glm).out.bias);
  EXPECT_EQ(mlp_of(glm).in, (std::vector<LinearSpec>{{"mlp.gate_up_proj", 192, 64, false}}));
  EXPECT_TRUE(mlp_of(glm).gated);
  EXPECT_EQ(layer_of(glm).mixer_norm->eps, 1.5625e-7f);
  EXPECT_EQ(
      read_architecture(without(config_of("glm"), {"partial_rotary_factor", "rms_norm_eps"}), "c"),
      glm);

  const Architecture glm4 = architecture_of("glm4");
  EXPECT_EQ(norms_of(layer_of(glm4)),
            (NormNames{"input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm",
                       "post_mlp_layernorm"}));
  EXPECT_EQ(layer_of(glm4).residual, Residual::sequential);

  const Architecture ernie = architecture_of("ernie4_5");
  EXPECT_TRUE(attention_of(ernie).rope.interleaved);
  EXPECT_EQ(rotated(ernie), 32u);
  EXPECT_TRUE(attention_of(ernie).out.bias && mlp_of(ernie).in[0].bias && mlp_of(ernie).out.bias);
  EXPECT_TRUE(ernie.head.tied);
  EXPECT_FALSE(attention_of(changed("ernie4_5", {{"use_bias", nullptr}})).out.bias);
  EXPECT_EQ(read_architecture(without(config_of("ernie4_5"), {"rope_theta"}), "c"), ernie);
}

TEST(OlderFamilies, InternLm2) {
  const Architecture a = architecture_of("internlm2");
  expect_names(a, "model.tok_embeddings.weight", "model.layers", "model.norm", "output", false);
  EXPECT_EQ(attention_of(a).heads, by_group(4, 2, 16));
  EXPECT_EQ(attention_of(a).qkv[0], (LinearSpec{"attention.wqkv", 128, 64, false}));
  EXPECT_EQ(mlp_of(a).in[0].name, "feed_forward.w1");
  EXPECT_EQ(mlp_of(a).in[1].name, "feed_forward.w3");
  EXPECT_EQ(mlp_of(a).out.name, "feed_forward.w2");
  EXPECT_EQ(norms_of(layer_of(a)), (NormNames{"attention_norm", "", "ffn_norm", ""}));
  EXPECT_EQ(attention_of(a).rope.longest, 128);
  EXPECT_TRUE(attention_of(read_architecture(without(config_of("internlm2"), {"bias"}), "c"))
                  .out.bias);  // its configuration class says so
}

TEST(OlderFamilies, Baichuan) {
  const Architecture a = architecture_of("baichuan-7b");
  EXPECT_EQ(attention_of(a).heads, side_by_side(4, 4, 16));
  EXPECT_EQ(attention_of(a).qkv[0], (LinearSpec{"self_attn.W_pack", 192, 64, false}));
  EXPECT_TRUE(attention_of(a).rope.enabled);
  const Json thirteen =
      with(without(config_of("baichuan-7b"), {"max_position_embeddings"}),
           {{"hidden_size", 5120}, {"num_attention_heads", 40}, {"model_max_length", 4096}});
  const Architecture b = read_architecture(thirteen, "c");
  EXPECT_FALSE(attention_of(b).rope.enabled);
  EXPECT_EQ(attention_of(b).alibi.slopes, alibi_slopes(40));
  EXPECT_EQ(b.max_positions, 4096);
  expect_fault(with(thirteen, {{"max_position_embeddings", 4096}}), {"max_position_embeddings"});
  expect_fault(with(config_of("baichuan-7b"), {{"vocab_size", 125696}}),
               {"vocab_size = 125696", "normalized"});
}

TEST(OlderFamilies, Deci) {
  const Architecture a = architecture_of("deci");
  EXPECT_EQ(a.kinds.size(), 3u);
  for (const auto& [layer, kv_heads] : {std::pair{0, 1}, {1, 4}, {2, 2}}) {
    EXPECT_EQ(attention_of(a, layer).heads, side_by_side(4, kv_heads, 16));
    EXPECT_EQ(attention_of(a, layer).qkv[2].out_features, 16 * kv_heads);
  }
  const std::string key = "num_key_value_heads_per_layer";
  for (const Json& wrong :
       std::vector<Json>{{1, 2}, {1, 3, 2}, {1, 0, 2}, {1, "4", 2}, {1, 8, 2}, 2, nullptr})
    expect_fault(with(config_of("deci"), {{key, wrong}}), {key.c_str()});
}

TEST(OlderFamilies, NemotronNas) {
  const Architecture a = architecture_of("nemotron-nas");
  EXPECT_EQ(a.kinds.size(), 5u);
  EXPECT_EQ(attention_of(a, 0).heads.kv_heads, 1);
  EXPECT_EQ(mlp_of(a, 0).width(), 256);  // 2/3 · 2.625 · 64 = 112, up to 256
  EXPECT_EQ(attention_of(a, 1).heads.kv_heads, 2);
  EXPECT_EQ(std::get<SingleLinear>(a.layer(1).mlp).linear, (LinearSpec{"mlp.linear_mlp", 64, 64}));
  EXPECT_TRUE(std::holds_alternative<Nothing>(a.layer(2).mixer));
  EXPECT_EQ(norms_of(a.layer(2)), (NormNames{"", "", "post_attention_layernorm", ""}));
  EXPECT_EQ(mlp_of(a, 2).width(), 512);
  EXPECT_TRUE(std::holds_alternative<Nothing>(a.layer(3).mlp));
  EXPECT_EQ(norms_of(a.layer(3)), (NormNames{"input_layernorm", "", "", ""}));
  EXPECT_EQ(std::get<SingleLinear>(a.layer(4).mixer).linear,
            (LinearSpec{"self_attn.linear_attn", 64, 64}));

  const auto blocks = [](const char* part, const Json& changes) {
    Json config = config_of("nemotron-nas");
    config["block_configs"][0][part].update(changes);
    return config;
  };
  expect_fault(blocks("attention", {{"window_length", 8192}}),
               {"block_configs[0]: attention: window_length = 8192"});
  expect_fault(blocks("attention", {{"num_sink_tokens", 4}}), {"num_sink_tokens = 4"});
  expect_fault(blocks("attention", {{"unshifted_sink", true}}), {"unshifted_sink = true"});
  expect_fault(blocks("attention", {{"n_heads_in_group", 3}}), {"n_heads_in_group = 3", "divide"});
  expect_fault(blocks("ffn", {{"ffn_mult", nullptr}}), {"ffn: ffn_mult = null"});
  expect_fault(blocks("ffn", {{"ffn_mult", 1e30}}), {"ffn_mult", "too large"});
  expect_fault(blocks("ffn", {{"sparsify", {"2:4"}}}), {"sparsify"});
  expect_fault(with(config_of("nemotron-nas"), {{"num_hidden_layers", 6}}),
               {"block_configs", "6 layers"});
  expect_fault(with(config_of("nemotron-nas"), {{"block_configs", {1, 2, 3, 4, 5}}}),
               {"block_configs[0]: attention is missing"});
}

// Keys that no reader asked for.
TEST(UnreadKeys, AreFaultsWhereTheyMaySaySomething) {
  const Json llama = config_of("llama");
  for (const Json& wrong : std::vector<Json>{true, 1, 0.5, "yes", Json{1}, Json{{"a", 1}}})
    expect_fault(with(llama, {{"attn_gate", wrong}}), {"attn_gate = ", "does not know"});
  for (const Json& nothing :
       std::vector<Json>{nullptr, false, 0, "", Json::array(), Json::object()})
    EXPECT_EQ(fault(with(llama, {{"attn_gate", nothing}})), "no fault") << nothing;
  EXPECT_EQ(fault(with(llama, {{"pretraining_tp", 2},
                               {"attention_dropout", 0.1},
                               {"_name_or_path", "x"},
                               {"custom_pipelines", {{"a", 1}}},
                               {"transformers_version", "4.40.0"},
                               {"num_beams", 1},
                               {"temperature", 1.0}})),
            "no fault");
}

}  // namespace
}  // namespace qpipe
