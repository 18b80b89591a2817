// GPT-2, GPT-BigCode (StarCoder) and GPT-Neo: learned positions, layer norms, a plain MLP, a tied
// head. GPT-2's weights are stored [in, out]; BigCode has one k and v head, or q, k and v of each
// head together; GPT-Neo's layers have a window or none, and unscaled scores.
#include <cmath>

#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"

namespace qpipe {

namespace {

using Json = nlohmann::json;

Architecture gpt(const ConfigJson& config, const Sizes& s, const std::string& model_type) {
  Architecture a = decoder(config, s, model_type, true, {"transformer.", "wte", "h", "lm_head"});
  a.embedding.positions = "transformer.wpe.weight";
  a.head.norm = layer_norm_of(config, "transformer.ln_f", s.hidden, "layer_norm_epsilon");
  read_one_of(config, "add_cross_attention", {false});
  return a;
}

LayerSpec gpt_layer(const ConfigJson& config, const Sizes& s, const Attention& attention,
                    const std::string& activation) {
  return sequential_layer(attention,
                          plain_mlp(s, read_activation(config, "activation_function", activation),
                                    true, "mlp.c_fc", "mlp.c_proj"),
                          layer_norm_of(config, "ln_1", s.hidden, "layer_norm_epsilon"),
                          layer_norm_of(config, "ln_2", s.hidden, "layer_norm_epsilon"));
}

// c_attn and c_proj with the heads laid out so.
Attention gpt_attention(const ConfigJson& config, const Sizes& s, const HeadLayout& heads) {
  Attention attention = fused_gqa(s, heads, true, true, "attn.c_attn", "attn.c_proj");
  if (!read_flag(config, "scale_attn_weights", true)) attention.scale = 1.0f;
  return attention;
}

// attention_types: [[["global", "local"], 12]] for 24 layers that alternate.
std::vector<bool> local_layers(const ConfigJson& config, std::int64_t layers) {
  const std::string key = "attention_types";
  const std::string must =
      "must be pairs of names (\"global\" or \"local\") and how often they "
      "follow, together " +
      std::to_string(layers);
  Json types = Json::array({Json::array({Json::array({"global", "local"}), 12})});
  if (has_key(config, key)) types = config.object.at(key);
  Json names = Json::array();
  if (!types.is_array()) refuse(config, key, must);
  for (const Json& pair : types) {
    if (!pair.is_array() || pair.size() != 2 || !pair[0].is_array() ||
        !pair[1].is_number_integer() || pair[1] < 0 || pair[1] > layers)
      refuse(config, key, must);
    for (std::int64_t i = 0; i < pair[1].get<std::int64_t>(); ++i)
      names.insert(names.end(), pair[0].begin(), pair[0].end());
  }
  std::vector<bool> local;
  for (const Json& name : names) {
    if (name != "global" && name != "local") refuse(config, key, must);
    local.push_back(name == "local");
  }
  if (static_cast<std::int64_t>(local.size()) != layers) refuse(config, key, must);
  if (const Json* stated = find_value(config, "attention_layers");
      stated != nullptr && *stated != names)
    refuse(config, "attention_layers", "must be the names of attention_types");
  return local;
}

}  // namespace

Architecture read_gpt2(const ConfigJson& config) {
  const Sizes s = read_gpt_sizes(config, 1024);
  Architecture a = gpt(config, s, "gpt2");
  skip_keys(config, {"reorder_and_upcast_attn"});  // decides on roundings
  Attention attention = gpt_attention(config, s, side_by_side(s.heads, s.heads, s.head_dim));
  attention.qkv.front().transposed = attention.out.transposed = true;
  LayerSpec layer = gpt_layer(config, s, attention, "gelu_new");
  Mlp& mlp = std::get<Mlp>(layer.mlp);
  mlp.in.front().transposed = mlp.out.transposed = true;
  const bool by_layer = read_flag(config, "scale_attn_by_inverse_layer_idx", false);
  set_layers(a, [&](std::int64_t l) {
    LayerSpec of_layer = layer;
    if (by_layer) std::get<Attention>(of_layer.mixer).scale /= static_cast<float>(l + 1);
    return of_layer;
  });
  return a;
}

Architecture read_gpt_bigcode(const ConfigJson& config) {
  Sizes s = read_gpt_sizes(config, 1024);
  const bool one_kv_head = read_flag(config, "multi_query", true);
  if (one_kv_head) s.kv_heads = 1;
  read_one_of(config, "num_key_value_heads", {s.kv_heads});
  skip_keys(config, {"attention_softmax_in_fp32", "scale_attention_softmax_in_fp32",
                     "inference_runner", "validate_runner_input", "pre_allocate_kv_cache",
                     "max_sequence_length", "max_batch_size", "pad_key_length"});
  Architecture a = gpt(config, s, "gpt_bigcode");
  set_layers(a, gpt_layer(config, s,
                          gpt_attention(config, s,
                                        (one_kv_head ? side_by_side : by_group)(s.heads, s.kv_heads,
                                                                                s.head_dim)),
                          "gelu_pytorch_tanh"));
  return a;
}

Architecture read_gpt_neo(const ConfigJson& config) {
  SizeKeys keys;
  keys.layers = {"num_layers", "num_hidden_layers"};
  keys.heads = {"num_heads", "num_attention_heads"};
  keys.kv_heads = keys.head_dim = {};
  keys.ffn_is_four_hidden = true;
  const Sizes s = read_sizes(config, keys);
  Attention attention = gqa(s, false, true,
                            {"attn.attention.q_proj", "attn.attention.k_proj",
                             "attn.attention.v_proj", "attn.attention.out_proj"});
  attention.scale = 1.0f;
  const std::int64_t window =
      has_key(config, "window_size") ? read_integer(config, "window_size", 1, most_positions) : 256;
  const std::vector<bool> local = local_layers(config, s.layers);
  Architecture a = gpt(config, s, "gpt_neo");
  set_layers(a, [&](std::int64_t l) {
    attention.window = local[static_cast<std::size_t>(l)] ? window : 0;
    return gpt_layer(config, s, attention, "gelu_new");
  });
  return a;
}

}  // namespace qpipe
