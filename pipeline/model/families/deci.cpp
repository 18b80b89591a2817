// DeciLM and Nemotron-NAS: Llama whose layers differ. DeciLM has another number of kv heads in
// each; Nemotron-NAS another width of the MLP as well, one linear in place of attention or MLP, or
// neither.
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

namespace {

using Json = nlohmann::json;

const Json& list_of(const ConfigJson& config, const std::string& key, std::int64_t layers) {
  const Json* list = find_value(config, key);
  if (list == nullptr || !list->is_array() || static_cast<std::int64_t>(list->size()) != layers)
    refuse(
        config, key,
        "must be an array with an element for each of the " + std::to_string(layers) + " layers");
  return *list;
}

SizeKeys deci_keys() {
  SizeKeys keys;
  keys.kv_heads = {};
  return keys;
}

Architecture deci_decoder(const ConfigJson& config, const Sizes& s, const std::string& model_type) {
  skip_keys(config, {"num_key_value_heads", "naive_attention_prefill",
                     "naive_attention_decode_batched", "naive_attention_decode_single"});
  Architecture a = decoder(config, s, model_type);
  a.head.norm = rms_norm_of(config, "model.norm", s.hidden);
  return a;
}

// An object within one of block_configs.
struct Block {
  const Json& object;
  std::string where;
  ConfigJson config() const { return {object, where}; }
};

Block part_of(const ConfigJson& config, const Json& block, std::int64_t layer, const char* part) {
  const std::string where =
      config.where + ": block_configs[" + std::to_string(layer) + "]: " + part;
  if (!block.is_object() || !block.contains(part) || !block.at(part).is_object())
    throw UserError(ExitCode::data, where + " is missing, or no object");
  return {block.at(part), where};
}

void check_attention(const ConfigJson& block) {
  for (const char* key : {"window_length", "num_sink_tokens", "sparsify"})
    read_one_of(block, key, {nullptr});
  for (const char* key : {"unshifted_sink", "use_prefill_window_in_sink_attention"})
    read_one_of(block, key, {false});
}

// DeciLM's rule: two thirds of ffn_mult · hidden, up to a multiple of 256.
std::int64_t ffn_of(const ConfigJson& block, std::int64_t hidden) {
  if (const auto stated = find_size(block, {"intermediate_size"})) return *stated;
  const double wide = 2.0 * read_positive(block, "ffn_mult") * static_cast<double>(hidden) / 3.0;
  if (wide > static_cast<double>(largest_width)) refuse(block, "ffn_mult", "is too large");
  return (static_cast<std::int64_t>(wide) + 255) / 256 * 256;
}

}  // namespace

Architecture read_deci(const ConfigJson& config) {
  Sizes s = read_sizes(config, deci_keys());
  const std::string key = "num_key_value_heads_per_layer";
  const Json& kv_heads = list_of(config, key, s.layers);
  const bool bias = read_flag(config, "attention_bias", false);
  const Rope rope = read_rope(config, {s.head_dim, s.max_positions});
  const Mlp mlp = gated_mlp(s, read_activation(config, "hidden_act", "silu"),
                            read_flag(config, "mlp_bias", false));
  Architecture a = deci_decoder(config, s, "deci");
  set_layers(a, [&](std::int64_t l) {
    const Json& count = kv_heads[static_cast<std::size_t>(l)];
    if (!count.is_number_integer() || count < 1 || count > s.heads ||
        s.heads % count.get<std::int64_t>() != 0)
      refuse(config, key, "must hold divisors of num_attention_heads");
    s.kv_heads = count.get<std::int64_t>();
    Attention attention = gqa(s, bias, bias);
    attention.rope = rope;
    return sequential_layer(attention, mlp, rms_norm_of(config, "input_layernorm", s.hidden),
                            rms_norm_of(config, "post_attention_layernorm", s.hidden));
  });
  return a;
}

Architecture read_nemotron_nas(const ConfigJson& config) {
  SizeKeys keys = deci_keys();
  keys.ffn_is_four_hidden = true;  // each block has its own
  Sizes s = read_sizes(config, keys);
  const Json blocks = list_of(config, "block_configs", s.layers);
  const bool attention_bias = read_flag(config, "attention_bias", false);
  const bool mlp_bias = read_flag(config, "mlp_bias", false);
  const Rope rope = read_rope(config, {s.head_dim, s.max_positions});
  const Activation activation = read_activation(config, "hidden_act", "silu");

  const auto read_mixer = [&](const ConfigJson& block, LayerSpec& layer) {
    check_attention(block);
    layer.mixer = Nothing{};
    if (read_flag(block, "no_op", false)) return;
    layer.mixer_norm = rms_norm_of(config, "input_layernorm", s.hidden);
    if (read_flag(block, "replace_with_linear", false)) {
      layer.mixer = SingleLinear{{"self_attn.linear_attn", s.hidden, s.hidden}};
      return;
    }
    const std::int64_t group = read_integer(block, "n_heads_in_group", 1, s.heads);
    if (s.heads % group != 0) refuse(block, "n_heads_in_group", "must divide num_attention_heads");
    s.kv_heads = s.heads / group;
    Attention attention = gqa(s, attention_bias, attention_bias);
    attention.rope = rope;
    layer.mixer = attention;
  };
  const auto read_mlp = [&](const ConfigJson& block, LayerSpec& layer) {
    read_one_of(block, "sparsify", {nullptr});
    layer.mlp = Nothing{};
    if (read_flag(block, "no_op", false)) return;
    layer.mlp_norm = rms_norm_of(config, "post_attention_layernorm", s.hidden);
    if (read_flag(block, "replace_with_linear", false)) {
      layer.mlp = SingleLinear{{"mlp.linear_mlp", s.hidden, s.hidden}};
      return;
    }
    s.ffn = ffn_of(block, s.hidden);
    layer.mlp = gated_mlp(s, activation, mlp_bias);
  };

  Architecture a = deci_decoder(config, s, "nemotron-nas");
  set_layers(a, [&](std::int64_t l) {
    const Json& block = blocks[static_cast<std::size_t>(l)];
    LayerSpec layer;
    read_mixer(part_of(config, block, l, "attention").config(), layer);
    read_mlp(part_of(config, block, l, "ffn").config(), layer);
    return layer;
  });
  return a;
}

}  // namespace qpipe
