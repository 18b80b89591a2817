// config.json → architecture for the families since Gemma: what tells each from Llama, defaults of
// the reference, configurations as public repositories have them, forms that are refused.
#include <gtest/gtest.h>

#include <cmath>

#include "pipeline/model/readers.h"
#include "tests/pipeline/model/golden_models.h"

namespace qpipe {
namespace {

using Windows = std::vector<std::int64_t>;

Architecture read(const Json& config) { return read_architecture(config, "config.json"); }

Architecture changed(const std::string& model, const Json& changes) {
  return read(with(config_of(model), changes));
}

NormSpec rms(const std::string& name, std::int64_t width = 64, float eps = 1e-6f) {
  return {name, width, NormKind::rms, eps};
}

NormSpec gemma_norm(const std::string& name, std::int64_t width = 64) {
  NormSpec norm = rms(name, width);
  norm.offset = 1.0f;
  return norm;
}

// The first frequency after 1: θ^(−2 / rotated).
float second_frequency(const Architecture& a, std::int64_t layer = 0) {
  return attention_of(a, layer).rope.inverse_frequencies.at(1);
}

std::vector<bool> ropes_of(const Architecture& a) {
  std::vector<bool> ropes;
  for (std::int64_t layer = 0; layer < a.layers; ++layer)
    ropes.push_back(attention_of(a, layer).rope.enabled);
  return ropes;
}

// Sizes of a public model, or any.
Json sizes(const std::string& model_type) {
  return {{"model_type", model_type}, {"hidden_size", 256}, {"intermediate_size", 512},
          {"num_hidden_layers", 8},   {"vocab_size", 100},  {"num_attention_heads", 8}};
}

TEST(Gemma, First) {
  const Architecture a = architecture_of("gemma");
  EXPECT_EQ(a.embedding.multiplier, 8.0f);
  EXPECT_TRUE(a.head.tied);
  EXPECT_EQ(a.head.soft_cap, 0.0f);
  EXPECT_EQ(a.head.norm, gemma_norm("model.norm"));
  EXPECT_EQ(layer_of(a).mlp_norm, gemma_norm("post_attention_layernorm"));
  EXPECT_EQ(norms_of(layer_of(a)),
            (NormNames{"input_layernorm", "", "post_attention_layernorm", ""}));
  EXPECT_EQ(mlp_of(a).activation, Activation::gelu_tanh);
  EXPECT_EQ(attention_of(a).heads.kv_heads, 1);
  EXPECT_EQ(attention_of(a).scale, 1.0f / std::sqrt(32.0f));
  // gelu means its tanh form.
  EXPECT_EQ(changed("gemma", {{"hidden_act", "gelu"}, {"hidden_activation", nullptr}}), a);
  EXPECT_EQ(read(without(config_of("gemma"), {"tie_word_embeddings", "hidden_act"})), a);
  EXPECT_EQ(attention_of(read(without(sizes("gemma"), {"num_attention_heads"}))).heads,
            side_by_side(16, 16, 256));
}

TEST(Gemma, Second) {
  const Architecture a = architecture_of("gemma2");
  EXPECT_EQ(norms_of(layer_of(a)),
            (NormNames{"input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
                       "post_feedforward_layernorm"}));
  EXPECT_EQ(windows_of(a), (Windows{16, 0, 16}));
  EXPECT_EQ(a.kinds.size(), 2u);
  EXPECT_EQ(attention_of(a).soft_cap, 50.0f);
  EXPECT_EQ(a.head.soft_cap, 30.0f);
  EXPECT_EQ(attention_of(a).scale, static_cast<float>(1.0 / std::sqrt(24.0)));
  EXPECT_FALSE(attention_of(a).q_norm);
  const Architecture bare = read(sizes("gemma2"));
  EXPECT_EQ(windows_of(bare), (Windows{4096, 0, 4096, 0, 4096, 0, 4096, 0}));
  EXPECT_EQ(attention_of(bare).scale, 0.0625f);
  EXPECT_EQ(attention_of(bare).soft_cap, 50.0f);
  EXPECT_EQ(bare.head.soft_cap, 30.0f);
  const Architecture no_caps = changed(
      "gemma2", {{"attn_logit_softcapping", nullptr}, {"final_logit_softcapping", nullptr}});
  EXPECT_EQ(attention_of(no_caps).soft_cap, 0.0f);
  EXPECT_EQ(no_caps.head.soft_cap, 0.0f);
  // As google/gemma-2-9b has them, where hidden_activation counts.
  EXPECT_EQ(changed("gemma2", {{"hidden_act", "gelu"},
                               {"sliding_window_size", 16},
                               {"cache_implementation", "hybrid"}}),
            a);
}

TEST(Gemma, Third) {
  const Architecture a = architecture_of("gemma3");
  EXPECT_EQ(a.model_type, "gemma3_text");
  EXPECT_EQ(attention_of(a).q_norm, (HeadNorm{gemma_norm("self_attn.q_norm", 32)}));
  EXPECT_EQ(attention_of(a).k_norm, (HeadNorm{gemma_norm("self_attn.k_norm", 32)}));
  EXPECT_EQ(windows_of(a), (Windows{16, 0, 16}));
  EXPECT_EQ(second_frequency(a, 0), 1.0f / std::pow(1e4f, 2.0f / 32.0f));
  EXPECT_EQ(second_frequency(a, 1), 1.0f / std::pow(1e6f, 2.0f / 32.0f));
  EXPECT_EQ(attention_of(a).soft_cap, 0.0f);
  EXPECT_EQ(a.head.soft_cap, 0.0f);
  EXPECT_TRUE(a.head.tied);
}

TEST(Gemma, ThirdInsideAVisionLanguageModel) {
  const Architecture older = architecture_of("gemma3-mm");
  EXPECT_EQ(older, architecture_of("gemma3-mm-v5"));
  EXPECT_EQ(windows_of(older), (Windows{16, 0, 16}));
  // The linear factor is for full layers alone.
  EXPECT_EQ(attention_of(older, 0).rope.inverse_frequencies[0], 1.0f);
  EXPECT_EQ(attention_of(older, 1).rope.inverse_frequencies[0], 0.125f);

  // google/gemma-3-4b-it leaves out what its configuration class assumes.
  const Json sparse = {{"model_type", "gemma3"},
                       {"image_token_index", 262144},
                       {"text_config",
                        {{"hidden_size", 2560},
                         {"intermediate_size", 10240},
                         {"model_type", "gemma3_text"},
                         {"num_hidden_layers", 34},
                         {"rope_scaling", {{"factor", 8.0}, {"rope_type", "linear"}}},
                         {"sliding_window", 1024}}}};
  const Architecture a = read(sparse);
  EXPECT_EQ(a.vocab, 262208);
  EXPECT_EQ(a.max_positions, 131072);
  EXPECT_EQ(attention_of(a).heads, side_by_side(8, 4, 256));
  EXPECT_EQ(attention_of(a).scale, 0.0625f);
  for (std::int64_t l = 0; l < 34; ++l)
    EXPECT_EQ(attention_of(a, l).window, (l + 1) % 6 == 0 ? 0 : 1024) << l;
  EXPECT_EQ(attention_of(a, 5).rope.inverse_frequencies[0], 0.125f);
  EXPECT_EQ(second_frequency(a, 0), 1.0f / std::pow(1e4f, 2.0f / 256.0f));
  EXPECT_TRUE(a.head.tied);
  EXPECT_EQ(a.kinds.size(), 2u);
}

TEST(Gemma, Fourth) {
  const Architecture a = architecture_of("gemma4-text");
  EXPECT_EQ(a.embedding.multiplier, 8.0f);
  EXPECT_EQ(a.head.soft_cap, 30.0f);
  EXPECT_EQ(a.carried, 0);
  EXPECT_EQ(layer_of(a).mixer_norm, rms("input_layernorm"));  // w, not 1 + w
  EXPECT_EQ(layer_of(a).scalar, "layer_scalar");
  EXPECT_EQ(windows_of(a), (Windows{16, 16, 0}));

  const Attention& sliding = attention_of(a, 0);
  EXPECT_EQ(sliding.scale, 1.0f);
  EXPECT_EQ(sliding.heads, side_by_side(4, 2, 16));
  EXPECT_EQ(sliding.qkv.size(), 3u);
  EXPECT_EQ(sliding.rope.inverse_frequencies.size(), 8u);
  ASSERT_TRUE(sliding.v_norm);
  EXPECT_FALSE(sliding.v_norm->norm.weight);
  EXPECT_EQ(sliding.q_norm, (HeadNorm{rms("self_attn.q_norm", 16)}));

  const Attention& full = attention_of(a, 2);
  EXPECT_TRUE(full.values_are_keys);
  EXPECT_EQ(full.heads, side_by_side(4, 1, 32));
  ASSERT_EQ(full.qkv.size(), 2u);
  EXPECT_EQ(full.qkv[1], (LinearSpec{"self_attn.k_proj", 32, 64}));
  EXPECT_EQ(full.out, (LinearSpec{"self_attn.o_proj", 64, 128}));
  // A quarter of 16 pairs is turned, at the pace of a whole head.
  ASSERT_EQ(full.rope.inverse_frequencies.size(), 16u);
  EXPECT_EQ(full.rope.inverse_frequencies[3], 1.0f / std::pow(1e6f, 6.0f / 32.0f));
  EXPECT_EQ(full.rope.inverse_frequencies[4], 0.0f);

  // The last layer is full whatever layer_types says.
  EXPECT_EQ(
      changed("gemma4-text",
              {{"layer_types", {"sliding_attention", "sliding_attention", "sliding_attention"}}}),
      a);
  EXPECT_EQ(changed("gemma4-text", {{"use_bidirectional_attention", "vision"}}), a);
  EXPECT_EQ(read(without(config_of("gemma4-text"), {"rope_parameters", "final_logit_softcapping"}))
                .layer(2),
            a.layer(2));
}

TEST(Gemma, FourthWithEmbeddingsOfEachLayerAndSharedKeys) {
  const Architecture a = architecture_of("gemma4-small");
  ASSERT_TRUE(a.per_layer);
  EXPECT_EQ(a.per_layer->projection, (LinearSpec{"model.per_layer_model_projection", 64, 64}));
  EXPECT_EQ(a.per_layer->tokens, "model.embed_tokens_per_layer.weight");
  EXPECT_EQ(a.per_layer->norm, rms("model.per_layer_projection_norm", 16));
  for (std::int64_t l = 0; l < 4; ++l) {
    ASSERT_TRUE(layer_of(a, l).per_layer);
    EXPECT_EQ(layer_of(a, l).per_layer->carried, 16 * l);
    EXPECT_EQ(layer_of(a, l).per_layer->gate, (LinearSpec{"per_layer_input_gate", 16, 64}));
  }
  // Layer 2 takes what layer 0 keeps, layer 3 what layer 1 keeps.
  EXPECT_EQ(attention_of(a, 0).keeps_kv, 64);
  EXPECT_EQ(attention_of(a, 1).keeps_kv, 64 + 2 * 16);
  EXPECT_EQ(attention_of(a, 2).takes_kv, 64);
  EXPECT_EQ(attention_of(a, 3).takes_kv, 64 + 2 * 16);
  EXPECT_EQ(a.carried, 64 + 2 * 16 + 2 * 32);
  EXPECT_EQ(attention_of(a, 2).qkv.size(), 1u);
  EXPECT_FALSE(attention_of(a, 2).k_norm);
  EXPECT_FALSE(attention_of(a, 2).v_norm);
  EXPECT_EQ(mlp_of(a, 1).width(), 64);
  EXPECT_EQ(mlp_of(a, 2).width(), 128);
  const Json text = config_of("gemma4-small").at("text_config");
  EXPECT_EQ(mlp_of(read(with(text, {{"use_double_wide_mlp", false}})), 2).width(), 64);
  expect_fault(with(text, {{"num_kv_shared_layers", 3}}), {"num_kv_shared_layers", "each type"});
  expect_fault(with(text, {{"vocab_size_per_layer_input", 400}}), {"vocab_size_per_layer_input"});
}

TEST(Gemma, Refused) {
  for (const char* model : {"gemma", "gemma2", "gemma3", "gemma4-text"})
    expect_fault(with(config_of(model), {{"use_bidirectional_attention", "all"}}),
                 {"use_bidirectional_attention = \"all\""});
  expect_fault(with(config_of("gemma3"), {{"use_bidirectional_attention", true}}),
               {"use_bidirectional_attention = true"});
  expect_fault(with(config_of("gemma2"), {{"sliding_window", nullptr}}), {"sliding_window = null"});
  expect_fault(with(config_of("gemma3"), {{"hidden_activation", "mish"}}),
               {"hidden_activation = \"mish\""});
}

TEST(Phi3, LongRope) {
  const Architecture a = architecture_of("phi3-longrope");
  const Attention& attention = attention_of(a);
  ASSERT_EQ(attention.qkv.size(), 1u);
  EXPECT_EQ(attention.qkv[0], (LinearSpec{"self_attn.qkv_proj", 128, 64}));
  EXPECT_EQ(mlp_of(a).in.size(), 1u);
  EXPECT_EQ(mlp_of(a).in[0], (LinearSpec{"mlp.gate_up_proj", 192, 64}));
  EXPECT_EQ(attention.rope.inverse_frequencies.size(), 6u);  // 0.75 of 8 pairs
  EXPECT_EQ(attention.rope.longer_frequencies.size(), 6u);
  EXPECT_EQ(attention.rope.longest, 32);
  EXPECT_FLOAT_EQ(attention.rope.amplitude,
                  static_cast<float>(std::sqrt(1.0 + std::log(4.0) / std::log(32.0))));
  EXPECT_NO_THROW(check_sequence_length(a, 128));
  EXPECT_TRUE(a.head.tied);

  const Architecture plain = architecture_of("phi3");
  EXPECT_EQ(attention_of(plain).rope.longest, 0);
  EXPECT_EQ(layer_of(plain).mixer_norm, rms("input_layernorm", 64, 1e-5f));
  EXPECT_EQ(windows_of(changed("phi3", {{"sliding_window", 2047}})), (Windows{2047, 2047, 2047}));
  // As microsoft/Phi-4-mini-instruct has them.
  EXPECT_EQ(changed("phi3", {{"full_attn_mod", 1},
                             {"interpolate_factor", 1},
                             {"lm_head_bias", false},
                             {"attention_bias", false},
                             {"mlp_bias", false}}),
            plain);
  expect_fault(with(config_of("phi3"), {{"full_attn_mod", 2}}), {"full_attn_mod = 2"});
  expect_fault(with(config_of("phi3"), {{"lm_head_bias", true}}), {"lm_head_bias = true"});
}

TEST(Granite, Factors) {
  const Architecture a = architecture_of("granite");
  EXPECT_EQ(a.embedding.multiplier, 6.0f);
  EXPECT_EQ(a.head.multiplier, 0.25f);
  EXPECT_EQ(layer_of(a).residual_multiplier, 0.5f);
  EXPECT_EQ(attention_of(a).scale, 0.1f);
  EXPECT_FALSE(a.head.tied);
  EXPECT_EQ(attention_of(read(sizes("granite"))).scale, 1.0f);

  const Architecture hyper =
      read(with(sizes("hyperclovax"), {{"logits_scaling", 0.125}, {"embedding_multiplier", 10}}));
  EXPECT_EQ(hyper.head.multiplier, 0.125f);
  EXPECT_EQ(attention_of(hyper).scale, 1.0f / std::sqrt(32.0f));
  EXPECT_EQ(norms_of(layer_of(hyper)),
            (NormNames{"input_layernorm", "post_norm1", "post_attention_layernorm", "post_norm2"}));
  EXPECT_FALSE(layer_of(read(with(sizes("hyperclovax"), {{"use_post_norm", false}}))).after_mixer);
}

TEST(Granite, HybridOfAttentionAlone) {
  const Architecture a = architecture_of("granitemoehybrid-dense");
  EXPECT_EQ(mlp_of(a).in[0], (LinearSpec{"shared_mlp.input_linear", 256, 64}));
  EXPECT_EQ(mlp_of(a).out, (LinearSpec{"shared_mlp.output_linear", 64, 128}));
  EXPECT_TRUE(attention_of(a).rope.enabled);
  EXPECT_FALSE(
      attention_of(changed("granitemoehybrid-dense", {{"position_embedding_type", "nope"}}))
          .rope.enabled);
  expect_fault(with(config_of("granitemoehybrid-dense"), {{"normalization_function", "layernorm"}}),
               {"normalization_function"});
}

TEST(Olmo, NormsWithoutWeightsAndClipping) {
  const Architecture a = architecture_of("olmo");
  EXPECT_EQ(attention_of(a).clip_qkv, 1.0f);
  EXPECT_EQ(layer_of(a).mixer_norm,
            (NormSpec{"input_layernorm", 64, NormKind::layer, 1e-5f, 0.0f, false, false}));
  EXPECT_FALSE(a.head.norm->weight);
  EXPECT_EQ(attention_of(changed("olmo", {{"clip_qkv", nullptr}})).clip_qkv, 0.0f);
}

TEST(Olmo, NormsBehindTheBlocks) {
  const Architecture a = architecture_of("olmo2");
  EXPECT_EQ(norms_of(layer_of(a)),
            (NormNames{"", "post_attention_layernorm", "", "post_feedforward_layernorm"}));
  EXPECT_EQ(attention_of(a).q_norm,
            (HeadNorm{rms("self_attn.q_norm", 64, 1e-5f), HeadNorm::Weight::whole}));
  EXPECT_EQ(attention_of(a).k_norm,
            (HeadNorm{rms("self_attn.k_norm", 32, 1e-5f), HeadNorm::Weight::whole}));
  EXPECT_EQ(windows_of(a), (Windows{0, 0, 0}));

  const Architecture third = architecture_of("olmo3");
  EXPECT_EQ(windows_of(third), (Windows{16, 16, 0}));
  EXPECT_EQ(attention_of(third, 0).rope.amplitude, 1.0f);  // YaRN on full layers alone
  EXPECT_EQ(attention_of(third, 2).rope.amplitude, 1.2f);
  EXPECT_EQ(second_frequency(third, 0), 1.0f / std::pow(5e5f, 2.0f / 16.0f));
  EXPECT_EQ(windows_of(read(sizes("olmo3"))), (Windows{4096, 4096, 4096, 0, 4096, 4096, 4096, 0}));
}

TEST(Exaone4, PositionsOnLayersWithWindows) {
  const Architecture a = architecture_of("exaone4");
  EXPECT_EQ(norms_of(layer_of(a)),
            (NormNames{"", "post_attention_layernorm", "", "post_feedforward_layernorm"}));
  EXPECT_EQ(attention_of(a).q_norm, (HeadNorm{rms("self_attn.q_norm", 32, 1e-5f)}));
  EXPECT_EQ(windows_of(a), (Windows{16, 16, 0}));
  EXPECT_EQ(ropes_of(a), (std::vector<bool>{true, true, false}));
  const Json bare = without(config_of("exaone4"), {"layer_types"});
  EXPECT_EQ(read(bare), a);
  EXPECT_EQ(read(with(bare, {{"sliding_window_pattern", "LLG"}})), a);
  EXPECT_EQ(windows_of(read(with(bare, {{"sliding_window_pattern", "LLLL"}}))),
            (Windows{16, 16, 0}));  // the last one is full
  expect_fault(with(bare, {{"sliding_window_pattern", "LXG"}}), {"sliding_window_pattern"});
  // EXAONE-4.0-1.2B has neither windows nor layers without positions.
  const Architecture small =
      read(with(bare, {{"sliding_window", nullptr}, {"sliding_window_pattern", nullptr}}));
  EXPECT_EQ(windows_of(small), (Windows{0, 0, 0}));
  EXPECT_EQ(ropes_of(small), (std::vector<bool>{true, true, true}));
}

TEST(Smollm3, LayersWithoutPositions) {
  const Architecture a = architecture_of("smollm3");
  EXPECT_EQ(ropes_of(a), (std::vector<bool>{true, true, false}));
  EXPECT_EQ(read(without(config_of("smollm3"), {"no_rope_layers"})), a);
  EXPECT_TRUE(a.head.tied);
  const Architecture bare = read(sizes("smollm3"));
  EXPECT_EQ(ropes_of(bare), (std::vector<bool>{true, true, true, false, true, true, true, false}));
  EXPECT_TRUE(bare.head.tied);
  EXPECT_EQ(attention_of(bare).heads.kv_heads, 4);
  EXPECT_EQ(second_frequency(bare), 1.0f / std::pow(2e6f, 2.0f / 32.0f));
  const Json windowed = with(without(config_of("smollm3"), {"layer_types"}),
                             {{"use_sliding_window", true}, {"sliding_window", 16}});
  EXPECT_EQ(windows_of(read(windowed)), (Windows{0, 0, 16}));
  expect_fault(with(config_of("smollm3"), {{"no_rope_layers", {1, 2, 0}}}), {"no_rope_layers"});
  expect_fault(with(config_of("smollm3"), {{"no_rope_layers", {1, 0}}}), {"no_rope_layers"});
}

TEST(LlamaRelatives, PlainMlps) {
  const Architecture arcee = architecture_of("arcee");
  EXPECT_FALSE(mlp_of(arcee).gated);
  EXPECT_EQ(mlp_of(arcee).activation, Activation::relu2);
  EXPECT_EQ(mlp_of(arcee).in[0], (LinearSpec{"mlp.up_proj", 96, 64}));
  EXPECT_EQ(attention_of(arcee).rope.amplitude, static_cast<float>(0.1 * std::log(4.0) + 1.0));

  const Architecture apertus = architecture_of("apertus");
  EXPECT_EQ(norms_of(layer_of(apertus)),
            (NormNames{"attention_layernorm", "", "feedforward_layernorm", ""}));
  ASSERT_TRUE(mlp_of(apertus).xielu);
  EXPECT_EQ(*mlp_of(apertus).xielu, (Xielu{"mlp.act_fn.alpha_p", "mlp.act_fn.alpha_n"}));
  EXPECT_EQ(attention_of(apertus).q_norm, (HeadNorm{rms("self_attn.q_norm", 16, 1e-5f)}));
  EXPECT_EQ(changed("apertus", {{"qk_norm", true}, {"post_norm", false}, {"mlp_bias", false}}),
            apertus);
  expect_fault(with(config_of("apertus"), {{"qk_norm", false}}), {"qk_norm = false"});

  const Architecture jais = read(sizes("jais2"));
  EXPECT_EQ(layer_of(jais).mixer_norm->kind, NormKind::layer);
  EXPECT_TRUE(layer_of(jais).mixer_norm->bias);
  EXPECT_EQ(mlp_of(jais).activation, Activation::relu2);
  EXPECT_TRUE(mlp_of(jais).out.bias && attention_of(jais).qkv[0].bias);
}

TEST(LlamaRelatives, Biases) {
  const Attention seed = attention_of(architecture_of("seed-oss"));
  EXPECT_TRUE(seed.qkv[0].bias && seed.qkv[1].bias && seed.qkv[2].bias);
  EXPECT_FALSE(seed.out.bias);
  EXPECT_EQ(attention_of(read(sizes("seed_oss"))).heads, side_by_side(8, 8, 128));
  const Architecture intern = read(with(sizes("internlm3"), {{"qkv_bias", true}, {"bias", false}}));
  EXPECT_TRUE(attention_of(intern).qkv[0].bias);
  EXPECT_FALSE(attention_of(intern).out.bias);
  EXPECT_EQ(attention_of(intern).heads, side_by_side(8, 2, 128));
}

TEST(LlamaRelatives, WindowsAndRope) {
  const Architecture cwm = read(sizes("cwm"));
  EXPECT_EQ(windows_of(cwm), (Windows{0, 8192, 8192, 8192, 0, 8192, 8192, 8192}));
  // Llama 3's rope where nothing is said: the slowest pair is divided by 16.
  EXPECT_FLOAT_EQ(attention_of(cwm).rope.inverse_frequencies.back(),
                  1.0f / std::pow(1e6f, 126.0f / 128.0f) / 16.0f);
  const Architecture ministral = read(sizes("ministral"));
  EXPECT_EQ(windows_of(ministral), Windows(8, 4096));
  EXPECT_EQ(windows_of(read(with(sizes("ministral"), {{"sliding_window", nullptr}}))),
            Windows(8, 0));
  const Json helium = with(sizes("helium"), {{"num_key_value_heads", 8}});
  EXPECT_TRUE(attention_of(read(helium)).rope.interleaved);
  EXPECT_EQ(second_frequency(read(helium)), 1.0f / std::pow(1e5f, 2.0f / 128.0f));
}

TEST(Mistral3, TextModels) {
  const Architecture a = architecture_of("mistral3");
  EXPECT_EQ(a.model_type, "mistral");
  EXPECT_EQ(second_frequency(a), 1.0f / std::pow(1e9f, 2.0f / 32.0f));
  EXPECT_EQ(windows_of(a), (Windows{0, 0, 0}));

  const Architecture third = architecture_of("mistral3-ministral3");
  EXPECT_EQ(attention_of(third).query_scale.beta, 0.1f);
  EXPECT_EQ(attention_of(third).query_scale.positions, 16);
  EXPECT_EQ(attention_of(third).rope.amplitude, 1.0f);  // mscale = mscale_all_dim
  EXPECT_TRUE(third.head.tied);
  const Architecture bare = read(sizes("ministral3"));
  EXPECT_EQ(attention_of(bare).query_scale.positions, 16384);
  EXPECT_EQ(attention_of(bare).heads, side_by_side(8, 8, 128));
}

TEST(Hunyuan, NormsBehindRope) {
  const Architecture a = architecture_of("hunyuan-dense");
  EXPECT_TRUE(attention_of(a).norms_after_rope);
  EXPECT_EQ(attention_of(a).q_norm, (HeadNorm{rms("self_attn.query_layernorm", 32, 1e-5f)}));
  EXPECT_EQ(attention_of(a).rope.longest, 0);
  EXPECT_FLOAT_EQ(second_frequency(a),
                  static_cast<float>(std::pow(1e4 * std::pow(1e3, 32.0 / 30.0), -2.0 / 32.0)));
  // As tencent/Hunyuan-7B-Instruct has them.
  EXPECT_EQ(changed("hunyuan-dense", {{"use_qk_norm", true},
                                      {"use_cla", false},
                                      {"cla_share_factor", 2},
                                      {"attention_head_dim", 32},
                                      {"norm_type", "rms"},
                                      {"use_rotary_pos_emb", true},
                                      {"dense_list", {64, 0}},
                                      {"pool_type", "last"},
                                      {"im_start_id", 5},
                                      {"mask_init_id", 12},
                                      {"org_vocab_size", 320}}),
            a);
  expect_fault(with(config_of("hunyuan-dense"), {{"use_cla", true}}), {"use_cla = true"});
  expect_fault(with(config_of("hunyuan-dense"), {{"use_qk_norm", false}}), {"use_qk_norm = false"});
}

TEST(QwenVl, PlainRopeOnText) {
  const Architecture a = architecture_of("qwen2_5-vl");
  EXPECT_TRUE(attention_of(a).qkv[0].bias);
  EXPECT_FALSE(attention_of(a).out.bias);
  EXPECT_EQ(second_frequency(a), 1.0f / std::pow(1e6f, 2.0f / 16.0f));
  EXPECT_EQ(windows_of(a), (Windows{0, 0, 0}));
  // The same inside of text_config, as transformers 5 saves it.
  Json text = config_of("qwen2_5-vl");
  text.erase("vision_config");
  text["model_type"] = "qwen2_5_vl_text";
  EXPECT_EQ(read({{"model_type", "qwen2_5_vl"}, {"text_config", text}}), a);
  Architecture second = changed("qwen2_5-vl", {{"model_type", "qwen2_vl"}});
  EXPECT_EQ(second.model_type, "qwen2_vl");
  second.model_type = a.model_type;
  EXPECT_EQ(second, a);

  const Architecture third = architecture_of("qwen3-vl");
  EXPECT_EQ(attention_of(third).q_norm, (HeadNorm{rms("self_attn.q_norm", 32)}));
  EXPECT_EQ(second_frequency(third), 1.0f / std::pow(5e6f, 2.0f / 32.0f));
  EXPECT_TRUE(third.head.tied);
}

TEST(Cohere, ParallelWithOneNorm) {
  const Architecture a = architecture_of("cohere");
  EXPECT_TRUE(layer_of(a).shares_norm());
  EXPECT_EQ(layer_of(a).mixer_norm,
            (NormSpec{"input_layernorm", 64, NormKind::layer, 1e-5f, 0.0f, true, false}));
  EXPECT_TRUE(attention_of(a).rope.interleaved);
  EXPECT_EQ(a.head.multiplier, 0.0625f);
  EXPECT_TRUE(a.head.tied);
  EXPECT_FALSE(attention_of(a).q_norm);
  const Json bare = without(config_of("cohere"), {"rope_parameters", "logit_scale",
                                                  "tie_word_embeddings", "layer_norm_eps"});
  EXPECT_EQ(read(bare), a);  // θ 500000

  const Attention normed = attention_of(architecture_of("cohere-qk-norm"));
  ASSERT_TRUE(normed.q_norm);
  EXPECT_EQ(normed.q_norm->layout, HeadNorm::Weight::per_head);
  EXPECT_EQ(normed.q_norm->norm,
            (NormSpec{"self_attn.q_norm", 16, NormKind::layer, 1e-5f, 0.0f, true, false}));
}

TEST(Cohere, PositionsOnLayersWithWindows) {
  const Architecture a = architecture_of("cohere2");
  EXPECT_EQ(windows_of(a), (Windows{16, 16, 0}));
  EXPECT_EQ(ropes_of(a), (std::vector<bool>{true, true, false}));
  EXPECT_EQ(a.head.multiplier, 0.25f);
  const Json types = {"sliding_attention", "sliding_attention", "full_attention"};
  EXPECT_EQ(read(with(without(config_of("cohere2"), {"sliding_window_pattern"}),
                      {{"layer_types", types}})),
            a);
  // As CohereLabs/c4ai-command-a-03-2025 has them.
  const Json published = {{"cache_implementation", "hybrid"},
                          {"layer_switch", 4},
                          {"order_of_interleaved_layers", "local_attn_first"},
                          {"position_embedding_type", "rope_gptj"},
                          {"rotary_pct", 1.0},
                          {"use_embedding_sharing", true},
                          {"use_gated_activation", true},
                          {"use_parallel_block", true},
                          {"use_parallel_embedding", true},
                          {"use_qk_norm", false}};
  EXPECT_EQ(changed("cohere2", published), a);
  expect_fault(with(config_of("cohere2"), {{"use_qk_norm", true}}), {"use_qk_norm = true"});
  expect_fault(with(config_of("cohere2"), {{"rotary_pct", 0.5}}), {"rotary_pct = 0.5"});
}

// Keys that training and generation leave in config.json, in every family.
TEST(NewerFamilies, TakeHarmlessKeys) {
  const Json keys = {{"unsloth_fixed", true},
                     {"unsloth_version", "2025.9"},
                     {"_attn_implementation", "eager"},
                     {"cache_implementation", "hybrid"},
                     {"neftune_noise_alpha", 5},
                     {"do_sample", true},
                     {"temperature", 0.6},
                     {"top_p", 0.9},
                     {"max_new_tokens", 256},
                     {"output_hidden_states", true},
                     {"eoi_token_index", 7}};
  for (const char* model :
       {"gemma", "gemma2", "gemma3", "gemma4-text", "phi3", "granite", "granitemoehybrid-dense",
        "olmo", "olmo2", "olmo3", "exaone4", "smollm3", "arcee", "apertus", "seed-oss",
        "hunyuan-dense", "qwen2_5-vl", "cohere", "cohere2"}) {
    EXPECT_EQ(changed(model, keys), architecture_of(model)) << model;
    expect_fault(with(config_of(model), {{"some_new_mathematics", 2}}),
                 {"some_new_mathematics = 2", "does not know"});
  }
}

}  // namespace
}  // namespace qpipe
