// Three decoders under one name: Falcon-7B (one k and v head, attention and MLP side by side on one
// norm), Falcon-40B and -11B (grouped heads, two norms or one), Falcon-RW (sequential, ALiBi,
// biases).
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

namespace {

struct Form {
  bool grouped = false;      // new_decoder_architecture
  bool multi_query = false;  // where it is not grouped
  bool parallel = false;
  bool two_norms = false;
};

[[noreturn]] void contradict(const ConfigJson& config, const std::string& keys,
                             const std::string& why) {
  throw UserError(ExitCode::data, config.where + ": " + keys + " contradict each other: " + why);
}

Form read_form(const ConfigJson& config, bool grouped_when_absent) {
  Form form;
  form.grouped =
      read_one_of(config, "new_decoder_architecture", {grouped_when_absent, !grouped_when_absent});
  form.multi_query = read_one_of(config, "multi_query", {true, false});
  form.parallel = read_one_of(config, "parallel_attn", {true, false});
  const nlohmann::json norms = read_one_of(config, "num_ln_in_parallel_attn", {nullptr, 1, 2});
  read_one_of(config, "apply_residual_connection_post_layernorm", {false});
  form.two_norms = form.grouped && norms != 1;
  if (form.grouped && !form.parallel)
    contradict(config, "new_decoder_architecture = true, parallel_attn = false",
               "the new decoder architecture is always parallel");
  if (!form.grouped && form.parallel && norms == 2)
    contradict(config,
               "new_decoder_architecture = false, parallel_attn = true, "
               "num_ln_in_parallel_attn = 2",
               "two norms need the new decoder architecture");
  return form;
}

Sizes falcon_sizes(const ConfigJson& config, const Form& form) {
  SizeKeys keys;
  keys.hidden = {"n_embed", "hidden_size"};
  keys.layers = {"num_hidden_layers", "n_layer"};
  keys.heads = {"num_attention_heads", "n_head"};
  keys.kv_heads = {"num_kv_heads", "n_head_kv"};
  keys.head_dim = {};
  keys.ffn = {"ffn_hidden_size"};
  keys.ffn_is_four_hidden = true;
  Sizes s = read_sizes(config, keys);
  if (!form.grouped && form.multi_query) s.kv_heads = 1;
  return s;
}

Architecture falcon(const ConfigJson& config, const Form& form) {
  const Sizes s = falcon_sizes(config, form);
  const bool bias = read_flag(config, "bias", false);
  const auto norm = [&](const std::string& name) {
    return layer_norm_of(config, name, s.hidden, "layer_norm_epsilon");
  };
  Architecture a =
      decoder(config, s, "falcon", true, {"transformer.", "word_embeddings", "h", "lm_head"});
  a.head.norm = norm("transformer.ln_f");

  const bool side = !form.grouped && form.multi_query;
  Attention attention =
      fused_gqa(s, (side ? side_by_side : by_group)(s.heads, s.kv_heads, s.head_dim), bias, bias,
                "self_attention.query_key_value", "self_attention.dense");
  if (read_flag(config, "alibi", false)) {
    attention.alibi = {alibi_slopes(s.heads), attention.scale, true};
    skip_keys(config, {"rope_theta", "rope_scaling", "rope_parameters"});
  } else {
    attention.rope = read_rope(config, {s.head_dim, s.max_positions});
  }

  LayerSpec layer;
  layer.mixer = attention;
  layer.mlp = plain_mlp(s, read_activation(config, "activation", "gelu"), bias, "mlp.dense_h_to_4h",
                        "mlp.dense_4h_to_h");
  layer.mixer_norm = norm(form.two_norms ? "ln_attn" : "input_layernorm");
  if (form.two_norms) layer.mlp_norm = norm("ln_mlp");
  if (!form.parallel) layer.mlp_norm = norm("post_attention_layernorm");
  layer.residual = form.parallel ? Residual::parallel : Residual::sequential;
  windows_of_all(config, s.layers, 0);
  set_layers(a, [&](std::int64_t) { return layer; });
  return a;
}

}  // namespace

Architecture read_falcon(const ConfigJson& config) {
  return falcon(config, read_form(config, false));
}

// The names that Falcon's models had before transformers took them in. The first configuration
// classes disagree on defaults of multi_query and parallel_attn, so those must be stated.
Architecture read_refined_web(const ConfigJson& config) {
  return falcon(config, read_form(config, true));
}

Architecture read_refined_web_model(const ConfigJson& config) {
  for (const char* key : {"multi_query", "parallel_attn"})
    if (!has_key(config, key) && !is_null(config, key))
      refuse(config, key, "must be one of true, false");
  return falcon(config, read_form(config, false));
}

}  // namespace qpipe
