// BLOOM and MPT: ALiBi in place of positions, layer norms, a plain MLP of four times the width.
// BLOOM has biases, a norm of the embeddings, and q, k and v of each head together; MPT has no
// biases.
#include <cmath>

#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"

namespace qpipe {

namespace {

const nlohmann::json& object_of(const ConfigJson& config, const std::string& key) {
  static const nlohmann::json none = nlohmann::json::object();
  const nlohmann::json* value = find_value(config, key);
  if (value == nullptr) return none;
  if (!value->is_object()) refuse(config, key, "must be an object");
  return *value;
}

// logit_scale of MPT's own code; transformers leaves it out, and no public model has one.
float logit_scale(const ConfigJson& config, std::int64_t hidden) {
  const nlohmann::json* value = find_value(config, "logit_scale");
  if (value == nullptr) return 1.0f;
  if (*value == "inv_sqrt_d_model") return 1.0f / std::sqrt(static_cast<float>(hidden));
  return static_cast<float>(read_positive(config, "logit_scale"));
}

}  // namespace

Architecture read_bloom(const ConfigJson& config) {
  SizeKeys keys;
  keys.layers = {"n_layer", "num_hidden_layers"};
  keys.hidden = {"n_embed", "hidden_size"};
  keys.heads = {"n_head", "num_attention_heads"};
  keys.kv_heads = keys.head_dim = {};
  keys.ffn = {"n_inner"};
  keys.ffn_is_four_hidden = true;
  keys.max_positions = {"seq_length"};
  const Sizes s = read_sizes(config, keys);
  if (s.ffn != 4 * s.hidden) refuse(config, "n_inner", "must be four times the hidden size");
  read_one_of(config, "apply_residual_connection_post_layernorm", {false});
  // Of training, or about roundings only.
  skip_keys(config, {"attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion",
                     "offset_alibi", "skip_bias_add", "skip_bias_add_qkv", "slow_but_exact"});
  const auto norm = [&](const std::string& name) {
    return layer_norm_of(config, name, s.hidden, "layer_norm_epsilon");
  };
  Attention attention = fused_gqa(s, by_group(s.heads, s.heads, s.head_dim), true, true,
                                  "self_attention.query_key_value", "self_attention.dense");
  attention.alibi.slopes = alibi_slopes(s.heads);

  Architecture a =
      decoder(config, s, "bloom", true, {"transformer.", "word_embeddings", "h", "lm_head"});
  a.embedding.norm = norm("transformer.word_embeddings_layernorm");
  a.head.norm = norm("transformer.ln_f");
  set_layers(a, sequential_layer(attention,
                                 plain_mlp(s, Activation::gelu_tanh, true, "mlp.dense_h_to_4h",
                                           "mlp.dense_4h_to_h"),
                                 norm("input_layernorm"), norm("post_attention_layernorm")));
  return a;
}

Architecture read_mpt(const ConfigJson& config) {
  SizeKeys keys;
  keys.layers = {"n_layers", "num_hidden_layers"};
  keys.hidden = {"d_model", "hidden_size"};
  keys.heads = {"n_heads", "num_attention_heads"};
  keys.kv_heads = keys.head_dim = keys.ffn = {};
  keys.ffn_is_four_hidden = true;
  keys.max_positions = {"max_seq_len"};
  Sizes s = read_sizes(config, keys);
  if (has_key(config, "expansion_ratio"))
    s.ffn = s.hidden * read_integer(config, "expansion_ratio", 1, 64);
  read_one_of(config, "no_bias", {true});
  read_one_of(config, "norm_type", {"low_precision_layernorm", "layernorm"});
  read_one_of(config, "embedding_fraction", {1.0});
  skip_keys(config, {"learned_pos_emb", "init_config", "verbose", "tokenizer_name"});

  const ConfigJson of_attention{object_of(config, "attn_config"), config.where + ": attn_config"};
  read_one_of(of_attention, "attn_type", {"multihead_attention"});
  read_one_of(of_attention, "alibi", {true});
  read_one_of(of_attention, "qk_ln", {false});
  read_one_of(of_attention, "prefix_lm", {false});
  read_one_of(of_attention, "rope", {false});
  read_one_of(of_attention, "sliding_window_size", {-1});
  Attention attention = fused_gqa(s, side_by_side(s.heads, s.heads, s.head_dim), false, false,
                                  "attn.Wqkv", "attn.out_proj");
  attention.alibi.slopes =
      alibi_slopes(s.heads, read_positive(of_attention, "alibi_bias_max", 8.0));
  attention.clip_qkv = read_positive_or_zero(of_attention, "clip_qkv");
  if (const float scale = read_positive_or_zero(of_attention, "softmax_scale"); scale > 0.0f)
    attention.scale = scale;

  const auto norm = [&](const std::string& name) {
    return layer_norm_of(config, name, s.hidden, "layer_norm_epsilon", 1e-5, false);
  };
  Architecture a = decoder(config, s, "mpt", true, {"transformer.", "wte", "blocks", "lm_head"});
  a.head.norm = norm("transformer.norm_f");
  a.head.multiplier = logit_scale(config, s.hidden);
  set_layers(a,
             sequential_layer(attention,
                              plain_mlp(s, Activation::gelu, false, "ffn.up_proj", "ffn.down_proj"),
                              norm("norm_1"), norm("norm_2")));
  return a;
}

}  // namespace qpipe
