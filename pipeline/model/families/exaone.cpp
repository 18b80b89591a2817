// EXAONE 3 and 3.5: Llama under other names. EXAONE 4 norms q and k, and what the blocks give
// instead of what they read; with experts it is Llama with that attention.
#include "pipeline/model/expert_readers.h"
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

namespace {

using Windows = std::vector<std::int64_t>;

// sliding_window_pattern: full attention on every n-th layer, or letters, L for a window, that are
// repeated; the last layer is then full.
Windows exaone4_windows(const ConfigJson& config, std::int64_t layers) {
  const std::string key = "sliding_window_pattern";
  const auto* letters = find_value(config, key);
  if (is_null(config, "sliding_window"))
    return windows_between(config, layers, 0, [](std::int64_t) { return true; });
  if (letters == nullptr || !letters->is_string())
    return windows_between(config, layers, 4096, read_integer_or(config, key, 4, 1, most_layers));
  const auto pattern = letters->get<std::string>();
  if (pattern.empty() || pattern.find_first_not_of("LG") != std::string::npos)
    refuse(config, key, "must be a number, or letters L and G");
  return windows_between(config, layers, 4096, [&](std::int64_t l) {
    return l == layers - 1 || pattern[static_cast<std::size_t>(l) % pattern.size()] == 'G';
  });
}

using AttentionOfLayer = std::function<Attention(std::int64_t layer)>;

// With windows, the layers without one have no positions.
AttentionOfLayer exaone4_attention(const ConfigJson& config, const Sizes& s) {
  Attention attention = gqa(s, false, false);
  add_qk_norms(config, 1e-5, attention);
  const Rope rope = read_rope(config, {.head_dim = s.head_dim, .max_positions = s.max_positions});
  return [=, windows = exaone4_windows(config, s.layers),
          everywhere = is_null(config, "sliding_window")](std::int64_t l) {
    Attention of_layer = attention;
    of_layer.window = windows[static_cast<std::size_t>(l)];
    if (everywhere || of_layer.window > 0) of_layer.rope = rope;
    return of_layer;
  };
}

Sizes exaone4_sizes(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_kv_heads = 32;
  return read_sizes(config, keys);
}

// mlp_layer_types, is_moe_layer (older), or first_k_dense_replace.
std::vector<bool> exaone_moe_routes(const ConfigJson& config, std::int64_t layers) {
  const std::string key = "is_moe_layer";
  const auto* flags = find_value(config, key);
  if (flags == nullptr || has_key(config, "mlp_layer_types"))
    return layers_behind_dense(config, layers, 1);
  const auto is_flag = [](const auto& flag) { return flag.is_boolean(); };
  if (!flags->is_array() || std::ssize(*flags) != layers ||
      !std::all_of(flags->begin(), flags->end(), is_flag))
    refuse(
        config, key,
        "must be an array of true or false for each of the " + std::to_string(layers) + " layers");
  skip_keys(config, {"first_k_dense_replace"});
  return flags->get<std::vector<bool>>();
}

}  // namespace

Architecture read_exaone(const ConfigJson& config) {
  SizeKeys keys;
  keys.layers = {"num_layers", "num_hidden_layers"};
  keys.absent_kv_heads = 8;
  keys.absent_max_positions = 4096;
  const Sizes s = read_sizes(config, keys);
  const bool bias = read_flag(config, "attention_bias", false);
  Attention attention = gqa(s, bias, bias,
                            {"attn.attention.q_proj", "attn.attention.k_proj",
                             "attn.attention.v_proj", "attn.attention.out_proj"});
  attention.rope = read_rope(
      config, {.head_dim = s.head_dim, .max_positions = s.max_positions, .theta = 500000.0});
  const std::string eps =
      has_key(config, "layer_norm_epsilon") ? "layer_norm_epsilon" : "rms_norm_eps";
  const std::string activation =
      has_key(config, "activation_function") ? "activation_function" : "hidden_act";
  const auto norm = [&](const std::string& name) {
    return rms_norm_of(config, name, s.hidden, eps, 1e-5);
  };

  Architecture a = decoder(config, s, "exaone", false, {"transformer.", "wte", "h", "lm_head"});
  a.head.norm = norm("transformer.ln_f");
  set_layers(a, sequential_layer(attention,
                                 gated_mlp(s, read_activation(config, activation, "silu"),
                                           read_flag(config, "mlp_bias", false),
                                           {"mlp.c_fc_0", "mlp.c_fc_1", "mlp.c_proj"}),
                                 norm("ln_1"), norm("ln_2")));
  return a;
}

Architecture read_exaone4(const ConfigJson& config) {
  const Sizes s = exaone4_sizes(config);
  return norms_behind(config, s, "exaone4",
                      gated_mlp(s, read_activation(config, "hidden_act", "silu"), false),
                      exaone4_attention(config, s), {.absent_eps = 1e-5});
}

Architecture read_exaone_moe(const ConfigJson& config) {
  const Sizes s = exaone4_sizes(config);
  Architecture a = llama_like(config, s, "exaone_moe",
                              gated_mlp(s, read_activation(config, "hidden_act", "silu"), false),
                              exaone4_attention(config, s), {.absent_eps = 1e-5});
  const ExpertSizes sizes =
      read_expert_sizes(config, s, {.absent_experts = 64, .absent_ffn = 1024, .absent_shared = 1});
  SigmoidRouter router;
  router.correction = "mlp.e_score_correction_bias";
  router.absent_scaling = 2.5;
  skip_keys(config, {"first_last_k_dense_replace"});
  set_experts(a, sigmoid_experts(config, sizes, 8, router), exaone_moe_routes(config, s.layers));
  return a;
}

}  // namespace qpipe
