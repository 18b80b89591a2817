// Parts of config.json that many families have in common: sizes, norms, attention, MLP, windows.
// Each family's function (pipeline/model/families) is a page that puts them together.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "pipeline/model/config_json.h"
#include "stages/architecture.h"

namespace qpipe {

inline constexpr std::int64_t largest_width = std::int64_t{1} << 24;  // products of two stay exact
inline constexpr double most_parameters = 1e15;                       // no model has so many
inline constexpr std::int64_t most_layers = 10000;
inline constexpr std::int64_t most_positions = std::int64_t{1} << 40;

struct Sizes {
  std::int64_t layers = 0;
  std::int64_t hidden = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t v_dim = 0;  // of heads of values; 0: head_dim
  std::int64_t ffn = 0;
  std::int64_t vocab = 0;
  std::int64_t max_positions = 0;
};

// Names of the sizes, of which the first that is there and not null counts, and what transformers
// assumes without them. A size whose value without key is not given must be there.
struct SizeKeys {
  std::vector<std::string> layers{"num_hidden_layers"};
  std::vector<std::string> hidden{"hidden_size"};
  std::vector<std::string> heads{"num_attention_heads"};
  std::vector<std::string> kv_heads{"num_key_value_heads"};  // null, or no names: as many as heads
  std::vector<std::string> head_dim{"head_dim"};             // null, or no names: hidden / heads
  std::vector<std::string> ffn{"intermediate_size"};
  std::vector<std::string> vocab{"vocab_size"};
  std::vector<std::string> max_positions{"max_position_embeddings"};
  std::int64_t absent_heads = 0;     // 0: must be there
  std::int64_t absent_vocab = 0;     // 0: must be there
  std::int64_t absent_kv_heads = 0;  // 0: as many as heads
  std::int64_t absent_head_dim = 0;  // 0: hidden / heads
  bool ffn_is_four_hidden = false;   // without the key
  std::int64_t absent_max_positions = 2048;
};

Sizes read_sizes(const ConfigJson& config, const SizeKeys& keys = {});
// Throws UserError where heads cannot share those of keys and values, or are too wide in all. For
// sizes of some layers only; `key` is where the number of heads is from.
void check_heads(const ConfigJson& config, const Sizes& sizes,
                 const std::string& key = "num_attention_heads");
// n_layer, n_embd, n_head, n_inner, n_positions: GPT-2 and its relatives.
Sizes read_gpt_sizes(const ConfigJson& config, std::int64_t absent_max_positions);

// The first of `names` that is there and not null, from 1 on.
std::optional<std::int64_t> find_size(const ConfigJson& config,
                                      const std::vector<std::string>& names,
                                      std::int64_t highest = largest_width);

// Throws UserError unless the key is absent or has one of the values, of which the first is what
// absence means. Returns the value. For forms of a family, and for those that are not computed.
nlohmann::json read_one_of(const ConfigJson& config, const std::string& key,
                           const std::vector<nlohmann::json>& values);

// A bound or a factor that null, or no key, leaves out: 0.
float read_positive_or_zero(const ConfigJson& config, const std::string& key);

// The layer's norms: ε from `key`.
NormSpec rms_norm_of(const ConfigJson& config, const std::string& name, std::int64_t width,
                     const std::string& key = "rms_norm_eps", double absent = 1e-6);
NormSpec layer_norm_of(const ConfigJson& config, const std::string& name, std::int64_t width,
                       const std::string& key = "layer_norm_eps", double absent = 1e-5,
                       bool bias = true);

// q|k|v side by side; or for each kv head its q heads, k, v (with G = 1: q, k, v of each head).
HeadLayout side_by_side(std::int64_t heads, std::int64_t kv_heads, std::int64_t head_dim);
HeadLayout by_group(std::int64_t heads, std::int64_t kv_heads, std::int64_t head_dim);

// Separate projections NAME.q_proj, k_proj, v_proj, heads of values v_dim wide; scale 1/√head_dim.
struct QkvNames {
  std::string q = "self_attn.q_proj";
  std::string k = "self_attn.k_proj";
  std::string v = "self_attn.v_proj";
  std::string out = "self_attn.o_proj";
};
Attention gqa(const Sizes& sizes, bool qkv_bias, bool out_bias, const QkvNames& names = {});
// RMS norms of q and k: of each head, or (`whole`) of all heads together.
struct QkNormNames {
  std::string q = "self_attn.q_norm";
  std::string k = "self_attn.k_norm";
};
void add_qk_norms(const ConfigJson& config, double absent_eps, Attention& attention,
                  HeadNorm::Weight layout = HeadNorm::Weight::shared,
                  const QkNormNames& names = {});
// One projection with the heads laid out so.
Attention fused_gqa(const Sizes& sizes, const HeadLayout& heads, bool qkv_bias, bool out_bias,
                    const std::string& qkv, const std::string& out);

struct MlpNames {
  std::string gate = "mlp.gate_proj";
  std::string up = "mlp.up_proj";
  std::string down = "mlp.down_proj";
};
Mlp gated_mlp(const Sizes& sizes, Activation activation, bool bias, const MlpNames& names = {});
// One projection, gate's rows above up's.
Mlp fused_gated_mlp(const Sizes& sizes, Activation activation, bool bias,
                    const std::string& gate_up, const std::string& down);
Mlp plain_mlp(const Sizes& sizes, Activation activation, bool bias, const std::string& in,
              const std::string& out);

Activation read_activation(const ConfigJson& config, const std::string& key,
                           const std::string& absent);

// layer_types, or another key; empty when config.json has none. Throws UserError for a type that is
// none of `known` and for another number than `layers`.
std::vector<std::string> read_layer_types(
    const ConfigJson& config, std::int64_t layers,
    const std::vector<std::string>& known = {"full_attention", "sliding_attention", "attention"},
    const std::string& key = "layer_types");

// An integer for all layers, or an array of one for each.
std::vector<std::int64_t> read_for_layers(const ConfigJson& config, const std::string& key,
                                          std::int64_t layers, std::int64_t absent,
                                          std::int64_t lowest, std::int64_t highest);

// no_rope_layers: 1 for a layer with positions; without it all but each
// no_rope_layer_interval-th.
std::vector<bool> read_rope_layers(const ConfigJson& config, std::int64_t layers);

// sliding_window, null for 0.
std::int64_t read_window(const ConfigJson& config, std::int64_t absent);
// A window for every layer; layer_types, if it is there, must say the same.
std::vector<std::int64_t> windows_of_all(const ConfigJson& config, std::int64_t layers,
                                         std::int64_t window);
// use_sliding_window, sliding_window, and layer_types or max_window_layers (Qwen).
std::vector<std::int64_t> windows_by_layer(const ConfigJson& config, std::int64_t layers,
                                           std::int64_t absent_max_window_layers = 28);

// A window for the layers that layer_types calls sliding, or without layer_types for those that are
// not `full`; 0 for the others. sliding_window must then be a number.
std::vector<std::int64_t> windows_between(const ConfigJson& config, std::int64_t layers,
                                          std::int64_t absent_window,
                                          const std::function<bool(std::int64_t layer)>& full);
// Full attention on every `pattern`th layer.
std::vector<std::int64_t> windows_between(const ConfigJson& config, std::int64_t layers,
                                          std::int64_t absent_window, std::int64_t pattern);

// ALiBi. With p the largest power of two up to n, slopes b, b², … of b = 2^(−m/p), m = 8, for the
// first p heads; for the others every second power of 2^(−m/2p). In float32, as the reference.
std::vector<float> alibi_slopes(std::int64_t heads, double bias_max = 8.0);

// What most decoders are outside of their layers: ROOTembed_tokens.weight, ROOTlayers.N,
// ROOTnorm (to be set by the family), lm_head, tied by tie_word_embeddings.
Architecture decoder(const ConfigJson& config, const Sizes& sizes, const std::string& model_type,
                     bool tied_when_absent = false);
// The same with other names, relative to the root.
struct OuterNames {
  std::string root = "model.";
  std::string embedding = "embed_tokens";
  std::string layers = "layers";
  std::string head = "lm_head";
};
Architecture decoder(const ConfigJson& config, const Sizes& sizes, const std::string& model_type,
                     bool tied_when_absent, const OuterNames& names);

// Llama: RMS norms input_layernorm and post_attention_layernorm before attention and MLP, norm at
// the end.
struct LlamaForm {
  double absent_eps = 1e-6;
  bool tied_when_absent = false;
};
Architecture llama_like(const ConfigJson& config, const Sizes& sizes, const std::string& model_type,
                        const Mlp& mlp, const std::function<Mixer(std::int64_t layer)>& mixer,
                        const LlamaForm& form = {});

// Llama with RMS norms of what the blocks give, post_attention_layernorm and
// post_feedforward_layernorm, instead of what they read (OLMo 2, EXAONE 4).
Architecture norms_behind(const ConfigJson& config, const Sizes& sizes,
                          const std::string& model_type, const Mlp& mlp,
                          const std::function<Mixer(std::int64_t layer)>& mixer,
                          const LlamaForm& form = {});

// h += attention(norm(h)); h += mlp(norm(h)).
LayerSpec sequential_layer(const Mixer& mixer, const Mlp& mlp, const NormSpec& mixer_norm,
                           const NormSpec& mlp_norm);
// h += attention(norm(h)) + mlp(norm(h)), with one norm for both.
LayerSpec parallel_layer(const Attention& attention, const Mlp& mlp, const NormSpec& norm);

// Fills kinds and kind_of_layer.
void set_layers(Architecture& architecture,
                const std::function<LayerSpec(std::int64_t layer)>& layer);
void set_layers(Architecture& architecture, const LayerSpec& layer);  // all alike

}  // namespace qpipe
