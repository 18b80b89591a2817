// Gemma 4: as Gemma 3 with norms that multiply with w, softmax scale 1, wider heads on full layers,
// where values may be the keys, and a factor for each layer. The small ones add embeddings for each
// layer, and last layers that read the keys and values of earlier ones. One has experts beside the
// MLP, with norms of their own before and behind them.
#include <algorithm>
#include <cmath>

#include "pipeline/model/expert_readers.h"
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

namespace {

using Windows = std::vector<std::int64_t>;

struct Gemma4Form {
  Sizes sliding;
  Sizes full;
  Windows windows;
  std::int64_t first_shared = 0;  // layers from here on take the keys and values of earlier ones
  bool values_are_keys = false;   // of full layers
  bool wide_mlp = false;          // of layers that take them
  std::int64_t per_layer = 0;     // width of the embeddings for each layer; 0: none
};

Gemma4Form read_gemma4_form(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_heads = 8;
  keys.absent_kv_heads = 4;
  keys.absent_head_dim = 256;
  keys.absent_vocab = 262144;
  keys.absent_max_positions = 131072;
  Gemma4Form form;
  form.sliding = read_sizes(config, keys);
  form.values_are_keys = read_flag(config, "attention_k_eq_v", false);
  keys.head_dim = {"global_head_dim"};
  keys.absent_head_dim = 512;
  const auto global_heads = find_size(config, {"num_global_key_value_heads"});
  if (form.values_are_keys && global_heads) keys.kv_heads = {"num_global_key_value_heads"};
  form.full = read_sizes(config, keys);

  const std::int64_t layers = form.sliding.layers;
  form.windows = windows_between(config, layers, 512, 6);
  form.windows.back() = 0;  // the last layer is full whatever layer_types says
  form.first_shared = layers - read_integer_or(config, "num_kv_shared_layers", 0, 0, layers - 1);
  form.wide_mlp = read_flag(config, "use_double_wide_mlp", false);
  form.per_layer = read_integer_or(config, "hidden_size_per_layer_input", 256, 0, largest_width);
  return form;
}

// The layer whose keys and values layer l takes: the last one of its type that has its own.
std::int64_t source_of(const ConfigJson& config, const Gemma4Form& form, std::int64_t l) {
  const auto type = [&](std::int64_t layer) {
    return form.windows.at(static_cast<std::size_t>(layer)) > 0;
  };
  for (std::int64_t source = form.first_shared - 1; source >= 0; --source)
    if (type(source) == type(l)) return source;
  refuse(config, "num_kv_shared_layers",
         "must leave a layer of each type that has keys and values of its own");
}

Rope read_gemma4_rope(const ConfigJson& config, const Sizes& s, bool full) {
  RopeRule rule{.head_dim = s.head_dim, .max_positions = s.max_positions};
  rule.layer_type = full ? "full_attention" : "sliding_attention";
  rule.theta = full ? 1e6 : 1e4;
  if (full) rule.absent = {{"rope_type", "proportional"}, {"partial_rotary_factor", 0.25}};
  return read_rope(config, rule);
}

Attention gemma4_attention(const ConfigJson& config, const Sizes& s, bool values_are_keys) {
  const bool bias = read_flag(config, "attention_bias", false);
  Attention attention = gqa(s, bias, bias);
  attention.scale = 1.0f;
  attention.q_norm = {rms_norm_of(config, "self_attn.q_norm", s.head_dim)};
  attention.k_norm = {rms_norm_of(config, "self_attn.k_norm", s.head_dim)};
  attention.v_norm = {rms_norm_of(config, "self_attn.v_norm", s.head_dim)};
  attention.v_norm->norm.weight = false;
  attention.values_are_keys = values_are_keys;
  if (values_are_keys) attention.qkv.pop_back();
  return attention;
}

void take_keys(Attention& attention) {
  attention.qkv.resize(1);
  attention.k_norm.reset();
  attention.v_norm.reset();
  attention.values_are_keys = false;
}

void add_per_layer(const ConfigJson& config, const Gemma4Form& form, Activation activation,
                   Architecture& a, LayerSpec& layer) {
  const std::int64_t hidden = form.sliding.hidden;
  const std::int64_t width = form.per_layer;
  const std::int64_t all = a.layers * width;
  PerLayerEmbedding embedding;
  embedding.tokens = "model.embed_tokens_per_layer.weight";
  embedding.projection = {"model.per_layer_model_projection", all, hidden};
  embedding.norm = rms_norm_of(config, "model.per_layer_projection_norm", width);
  a.per_layer = embedding;
  a.carried = all;
  const std::int64_t vocab =
      read_integer_or(config, "vocab_size_per_layer_input", 262144, 1, largest_width);
  if (vocab != a.vocab)
    refuse(config, "vocab_size_per_layer_input", "must be vocab_size = " + std::to_string(a.vocab),
           ExitCode::unavailable);

  PerLayerInput input;
  input.gate = {"per_layer_input_gate", width, hidden};
  input.out = {"per_layer_projection", hidden, width};
  input.norm = rms_norm_of(config, "post_per_layer_input_norm", hidden);
  input.activation = activation;
  layer.per_layer = input;
}

// The MLP is the shared expert.
Experts gemma4_experts(const ConfigJson& config, const Sizes& s, Activation activation,
                       const Mlp& mlp) {
  ExpertNames names;
  names.router = "router.proj";
  names.experts = "experts";
  const ExpertSizes sizes = read_expert_sizes(config, s, {.shared = {}});
  Experts experts = gated_experts(sizes, activation, names);
  set_softmax_router(read_top_k(config, sizes.experts, "top_k_experts"), true, experts);
  experts.router.norm = rms_norm_of(config, "router.scale", s.hidden);
  experts.router.multiplier = 1.0f / std::sqrt(static_cast<float>(s.hidden));
  experts.router.expert_scale = "router.per_expert_scale";
  experts.shared = mlp;
  experts.norm = rms_norm_of(config, "pre_feedforward_layernorm_2", s.hidden);
  experts.after = rms_norm_of(config, "post_feedforward_layernorm_2", s.hidden);
  experts.after_shared = rms_norm_of(config, "post_feedforward_layernorm_1", s.hidden);
  return experts;
}

}  // namespace

Architecture read_gemma4(const ConfigJson& config) {
  const Gemma4Form form = read_gemma4_form(config);
  const Sizes& s = form.sliding;
  const bool has_experts = read_flag(config, "enable_moe_block", false);
  skip_keys(config, {"num_experts", "top_k_experts", "moe_intermediate_size", "hidden_act",
                     "vocab_size_per_layer_input"});
  // "vision" is between the tokens of one image.
  read_one_of(config, "use_bidirectional_attention", {nullptr, false, "vision"});
  const Activation activation = read_activation(config, "hidden_activation", "gelu_pytorch_tanh");

  Architecture a = decoder(config, s, "gemma4_text", true);
  a.embedding.multiplier = std::sqrt(static_cast<float>(s.hidden));
  a.head.norm = rms_norm_of(config, "model.norm", s.hidden);
  if (find_value(config, "final_logit_softcapping") != nullptr)
    a.head.soft_cap = static_cast<float>(read_positive(config, "final_logit_softcapping"));

  LayerSpec layer;
  layer.mixer_norm = rms_norm_of(config, "input_layernorm", s.hidden);
  layer.after_mixer = rms_norm_of(config, "post_attention_layernorm", s.hidden);
  layer.mlp_norm = rms_norm_of(config, "pre_feedforward_layernorm", s.hidden);
  layer.after_mlp = rms_norm_of(config, "post_feedforward_layernorm", s.hidden);
  layer.scalar = "layer_scalar";
  if (form.per_layer > 0) add_per_layer(config, form, activation, a, layer);

  Attention sliding = gemma4_attention(config, form.sliding, false);
  sliding.rope = read_gemma4_rope(config, form.sliding, false);
  Attention full = gemma4_attention(config, form.full, form.values_are_keys);
  full.rope = read_gemma4_rope(config, form.full, true);

  // Where the keys and values of a layer lie in the carried part.
  std::vector<std::int64_t> kept(static_cast<std::size_t>(s.layers), -1);
  for (std::int64_t l = form.first_shared; l < s.layers; ++l) {
    const std::int64_t source = source_of(config, form, l);
    std::int64_t& column = kept.at(static_cast<std::size_t>(source));
    if (column < 0) {
      column = a.carried;
      const bool is_full = form.windows.at(static_cast<std::size_t>(source)) == 0;
      a.carried += (is_full ? full : sliding).kv_width();
    }
  }

  set_layers(a, [&](std::int64_t l) {
    const std::int64_t window = form.windows.at(static_cast<std::size_t>(l));
    const bool takes = l >= form.first_shared;
    Attention attention = window > 0 ? sliding : full;
    attention.window = window;
    if (takes) {
      take_keys(attention);
      attention.takes_kv = kept.at(static_cast<std::size_t>(source_of(config, form, l)));
    } else {
      attention.keeps_kv = kept.at(static_cast<std::size_t>(l));
    }
    layer.mixer = attention;
    Sizes of_mlp = s;
    if (takes && form.wide_mlp) of_mlp.ffn *= 2;
    const Mlp mlp = gated_mlp(of_mlp, activation, false);
    layer.mlp = mlp;
    if (has_experts) layer.mlp = gemma4_experts(config, s, activation, mlp);
    if (layer.per_layer) layer.per_layer->carried = l * form.per_layer;
    return layer;
  });
  return a;
}

}  // namespace qpipe
