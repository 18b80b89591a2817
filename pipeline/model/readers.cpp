#include "pipeline/model/readers.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace qpipe {

namespace {

using Json = nlohmann::json;

std::int64_t needed_size(const ConfigJson& config, const std::vector<std::string>& names,
                         std::int64_t highest) {
  if (const auto size = find_size(config, names, highest)) return *size;
  const auto null = std::find_if(names.begin(), names.end(),
                                 [&](const std::string& name) { return is_null(config, name); });
  return read_integer(config, null == names.end() ? names.back() : *null, 1, highest);  // throws
}

bool is_absent(const ConfigJson& config, const std::vector<std::string>& names) {
  return !names.empty() && std::none_of(names.begin(), names.end(), [&](const std::string& name) {
    return has_key(config, name);
  });
}

bool any_is_null(const ConfigJson& config, const std::vector<std::string>& names) {
  return std::any_of(names.begin(), names.end(),
                     [&](const std::string& name) { return is_null(config, name); });
}

// `absent` without the key, unless it is 0.
std::int64_t size_or(const ConfigJson& config, const std::vector<std::string>& names,
                     std::int64_t absent) {
  return absent > 0 && is_absent(config, names) ? absent
                                                : needed_size(config, names, largest_width);
}

std::int64_t hidden_over_heads(const ConfigJson& config, const Sizes& s, const SizeKeys& keys) {
  if (s.hidden % s.heads != 0)
    throw UserError(
        ExitCode::data,
        config.where + ": hidden_size = " + std::to_string(s.hidden) +
            " is not a multiple of num_attention_heads = " + std::to_string(s.heads) +
            (keys.head_dim.empty() ? "" : ", and " + keys.head_dim.front() + " is not given"));
  return s.hidden / s.heads;
}

NormSpec norm_of(const ConfigJson& config, NormKind kind, const std::string& name,
                 std::int64_t width, const std::string& key, double absent) {
  NormSpec norm{name, width, kind};
  norm.eps = static_cast<float>(read_positive(config, key, absent));
  return norm;
}

}  // namespace

std::optional<std::int64_t> find_size(const ConfigJson& config,
                                      const std::vector<std::string>& names, std::int64_t highest) {
  for (const std::string& name : names)
    if (find_value(config, name) != nullptr) return read_integer(config, name, 1, highest);
  return std::nullopt;
}

void check_heads(const ConfigJson& config, const Sizes& s, const std::string& key) {
  if (s.heads % s.kv_heads != 0)
    throw UserError(ExitCode::data,
                    config.where + ": " + key + " = " + std::to_string(s.heads) +
                        " is not a multiple of the number of key and value heads = " +
                        std::to_string(s.kv_heads));
  const std::int64_t width = std::max(s.head_dim, s.v_dim);
  if (s.heads * width > largest_width)
    throw UserError(ExitCode::data, config.where + ": " + key + " = " + std::to_string(s.heads) +
                                        " heads of head_dim = " + std::to_string(width) +
                                        " are wider than " + std::to_string(largest_width));
}

Sizes read_sizes(const ConfigJson& config, const SizeKeys& keys) {
  Sizes s;
  s.layers = needed_size(config, keys.layers, most_layers);
  s.hidden = needed_size(config, keys.hidden, largest_width);
  s.vocab = size_or(config, keys.vocab, keys.absent_vocab);
  s.max_positions = is_absent(config, keys.max_positions)
                        ? keys.absent_max_positions
                        : needed_size(config, keys.max_positions, most_positions);
  s.heads = size_or(config, keys.heads, keys.absent_heads);
  if (const auto head_dim = find_size(config, keys.head_dim))
    s.head_dim = *head_dim;
  else if (keys.absent_head_dim > 0)
    s.head_dim = size_or(config, keys.head_dim, keys.absent_head_dim);
  else
    s.head_dim = hidden_over_heads(config, s, keys);
  if (const auto kv_heads = find_size(config, keys.kv_heads))
    s.kv_heads = *kv_heads;
  else
    s.kv_heads = keys.absent_kv_heads > 0 && !any_is_null(config, keys.kv_heads)
                     ? keys.absent_kv_heads
                     : s.heads;
  const auto ffn = find_size(config, keys.ffn);
  s.ffn = ffn                       ? *ffn
          : keys.ffn_is_four_hidden ? 4 * s.hidden
                                    : needed_size(config, keys.ffn, largest_width);
  check_heads(config, s);
  // Sums of bytes stay far from 2^63.
  const double parameters =
      static_cast<double>(s.hidden) *
      (2.0 * static_cast<double>(s.vocab) +
       static_cast<double>(s.layers) *
           static_cast<double>(3 * s.ffn + 2 * (s.heads + s.kv_heads) * s.head_dim));
  if (parameters > most_parameters)
    throw UserError(ExitCode::data, config.where +
                                        ": its sizes make more than 10^15 parameters: "
                                        "no model has so many; check them");
  return s;
}

Json read_one_of(const ConfigJson& config, const std::string& key,
                 const std::vector<Json>& values) {
  const Json* given = find_value(config, key);
  if (given == nullptr && !(values.front().is_boolean() && is_null(config, key)))
    return values.front();
  const Json value = given == nullptr ? Json(false) : *given;  // null reads as false, as in Python
  if (std::find(values.begin(), values.end(), value) != values.end()) return value;
  std::vector<std::string> texts;
  for (const Json& one : values) texts.push_back(one.dump());
  refuse(config, key,
         "must be " + (values.size() > 1 ? "one of " + joined(texts)
                                         : texts.front() + " for this family here"),
         values.size() > 1 ? ExitCode::data : ExitCode::unavailable);
}

float read_positive_or_zero(const ConfigJson& config, const std::string& key) {
  return find_value(config, key) == nullptr ? 0.0f : static_cast<float>(read_positive(config, key));
}

Sizes read_gpt_sizes(const ConfigJson& config, std::int64_t absent_max_positions) {
  SizeKeys keys;
  keys.layers = {"n_layer", "num_hidden_layers"};
  keys.hidden = {"n_embd", "hidden_size"};
  keys.heads = {"n_head", "num_attention_heads"};
  keys.kv_heads = keys.head_dim = {};
  keys.ffn = {"n_inner"};
  keys.ffn_is_four_hidden = true;
  keys.max_positions = {"n_positions", "max_position_embeddings"};
  keys.absent_max_positions = absent_max_positions;
  skip_keys(config, {"n_ctx"});
  return read_sizes(config, keys);
}

NormSpec rms_norm_of(const ConfigJson& config, const std::string& name, std::int64_t width,
                     const std::string& key, double absent) {
  return norm_of(config, NormKind::rms, name, width, key, absent);
}

NormSpec layer_norm_of(const ConfigJson& config, const std::string& name, std::int64_t width,
                       const std::string& key, double absent, bool bias) {
  NormSpec norm = norm_of(config, NormKind::layer, name, width, key, absent);
  norm.bias = bias;
  return norm;
}

HeadLayout side_by_side(std::int64_t heads, std::int64_t kv_heads, std::int64_t head_dim) {
  HeadLayout h{heads, kv_heads, head_dim};
  h.q_group_stride = h.group() * head_dim;
  h.kv_stride = head_dim;
  h.k_begin = heads * head_dim;
  h.v_begin = h.k_begin + kv_heads * head_dim;
  return h;
}

HeadLayout by_group(std::int64_t heads, std::int64_t kv_heads, std::int64_t head_dim) {
  HeadLayout h{heads, kv_heads, head_dim};
  h.k_begin = h.group() * head_dim;
  h.v_begin = h.k_begin + head_dim;
  h.q_group_stride = h.kv_stride = h.v_begin + head_dim;
  return h;
}

Attention gqa(const Sizes& s, bool qkv_bias, bool out_bias, const QkvNames& names) {
  HeadLayout heads = side_by_side(s.heads, s.kv_heads, s.head_dim);
  if (s.v_dim > 0 && s.v_dim != s.head_dim) {
    heads.kv_block = s.kv_heads;
    heads.v_dim = s.v_dim;
  }
  Attention attention;
  attention.heads = heads;
  attention.qkv = {{names.q, s.heads * s.head_dim, s.hidden, qkv_bias},
                   {names.k, s.kv_heads * s.head_dim, s.hidden, qkv_bias},
                   {names.v, s.kv_heads * heads.value_dim(), s.hidden, qkv_bias}};
  attention.out = {names.out, s.hidden, s.heads * heads.value_dim(), out_bias};
  attention.scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim));
  return attention;
}

void add_qk_norms(const ConfigJson& config, double absent_eps, Attention& attention,
                  HeadNorm::Weight layout, const QkNormNames& names) {
  const HeadLayout& h = attention.heads;
  const bool whole = layout == HeadNorm::Weight::whole;
  const auto norm = [&](const std::string& name, std::int64_t heads) {
    return HeadNorm{rms_norm_of(config, name, whole ? heads * h.head_dim : h.head_dim,
                                "rms_norm_eps", absent_eps),
                    layout};
  };
  attention.q_norm = norm(names.q, h.heads);
  attention.k_norm = norm(names.k, h.kv_heads);
}

Attention fused_gqa(const Sizes& s, const HeadLayout& heads, bool qkv_bias, bool out_bias,
                    const std::string& qkv, const std::string& out) {
  Attention attention;
  attention.heads = heads;
  attention.qkv = {{qkv, heads.width(), s.hidden, qkv_bias}};
  attention.out = {out, s.hidden, heads.heads * heads.value_dim(), out_bias};
  attention.scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim));
  return attention;
}

Mlp gated_mlp(const Sizes& s, Activation activation, bool bias, const MlpNames& names) {
  return {{{names.gate, s.ffn, s.hidden, bias}, {names.up, s.ffn, s.hidden, bias}},
          {names.down, s.hidden, s.ffn, bias},
          activation,
          true,
          {}};
}

Mlp fused_gated_mlp(const Sizes& s, Activation activation, bool bias, const std::string& gate_up,
                    const std::string& down) {
  return {
      {{gate_up, 2 * s.ffn, s.hidden, bias}}, {down, s.hidden, s.ffn, bias}, activation, true, {}};
}

Mlp plain_mlp(const Sizes& s, Activation activation, bool bias, const std::string& in,
              const std::string& out) {
  return {{{in, s.ffn, s.hidden, bias}}, {out, s.hidden, s.ffn, bias}, activation, false, {}};
}

Activation read_activation(const ConfigJson& config, const std::string& key,
                           const std::string& absent) {
  const std::string name = read_text(config, key, absent);
  if (name == "silu" || name == "swish") return Activation::silu;
  if (name == "gelu" || name == "gelu_python") return Activation::gelu;
  if (name == "gelu_new" || name == "gelu_fast" || name == "gelu_pytorch_tanh" ||
      name == "gelu_python_tanh")
    return Activation::gelu_tanh;
  if (name == "relu") return Activation::relu;
  if (name == "relu2") return Activation::relu2;
  if (name == "quick_gelu") return Activation::quick_gelu;
  refuse(config, key,
         "must be one of silu, gelu, gelu_new, gelu_pytorch_tanh, quick_gelu, relu, relu2",
         ExitCode::unavailable);
}

std::vector<std::string> read_layer_types(const ConfigJson& config, std::int64_t layers,
                                          const std::vector<std::string>& known,
                                          const std::string& key) {
  const Json* types = find_value(config, key);
  if (types == nullptr) return {};
  if (!types->is_array() || static_cast<std::int64_t>(types->size()) != layers)
    refuse(config, key,
           "must be an array of one name for each of the " + std::to_string(layers) + " layers");
  std::vector<std::string> names;
  for (const Json& type : *types) {
    names.push_back(type.is_string() ? type.get<std::string>() : "");
    if (std::find(known.begin(), known.end(), names.back()) == known.end())
      refuse(config, key, "must hold only " + joined(known), ExitCode::unavailable);
  }
  return names;
}

std::vector<std::int64_t> read_for_layers(const ConfigJson& config, const std::string& key,
                                          std::int64_t layers, std::int64_t absent,
                                          std::int64_t lowest, std::int64_t highest) {
  const Json* given = find_value(config, key);
  if (given == nullptr || !given->is_array())
    return std::vector(static_cast<std::size_t>(layers),
                       read_integer_or(config, key, absent, lowest, highest));
  const auto fits = [&](const Json& v) {
    return v.is_number_integer() && v >= lowest && v <= highest;
  };
  if (static_cast<std::int64_t>(given->size()) != layers ||
      !std::all_of(given->begin(), given->end(), fits))
    refuse(config, key,
           "must be an integer from " + std::to_string(lowest) + " to " + std::to_string(highest) +
               ", or an array of one for each of the " + std::to_string(layers) + " layers");
  return given->get<std::vector<std::int64_t>>();
}

std::vector<bool> read_rope_layers(const ConfigJson& config, std::int64_t layers) {
  const std::string key = "no_rope_layers";
  const auto interval = read_integer_or(config, "no_rope_layer_interval", 4, 1, most_layers);
  const Json* listed = find_value(config, key);
  std::vector<bool> ropes;
  if (listed == nullptr || (listed->is_array() && listed->empty())) {
    for (std::int64_t l = 0; l < layers; ++l) ropes.push_back((l + 1) % interval != 0);
    return ropes;
  }
  for (const std::int64_t flag : read_for_layers(config, key, layers, 1, 0, 1))
    ropes.push_back(flag == 1);
  return ropes;
}

std::int64_t read_window(const ConfigJson& config, std::int64_t absent) {
  const std::string key = "sliding_window";
  if (is_null(config, key)) return 0;
  return has_key(config, key) ? read_integer(config, key, 1, most_positions) : absent;
}

namespace {

void check_windows(const ConfigJson& config, const std::vector<std::int64_t>& windows) {
  const std::vector<std::string> types =
      read_layer_types(config, static_cast<std::int64_t>(windows.size()));
  for (std::size_t l = 0; l < types.size(); ++l) {
    const bool sliding = types[l] == "sliding_attention";
    if (sliding != (windows[l] > 0))
      throw UserError(ExitCode::data,
                      config.where + ": layer_types calls layer " + std::to_string(l) +
                          (sliding ? " sliding, but the other keys give it no window"
                                   : " full, but sliding_window gives it a window"));
  }
}

}  // namespace

std::vector<std::int64_t> windows_of_all(const ConfigJson& config, std::int64_t layers,
                                         std::int64_t window) {
  std::vector<std::int64_t> windows(static_cast<std::size_t>(layers), window);
  check_windows(config, windows);
  return windows;
}

std::vector<std::int64_t> windows_by_layer(const ConfigJson& config, std::int64_t layers,
                                           std::int64_t absent_max_window_layers) {
  const std::vector<std::string> types = read_layer_types(config, layers);
  std::vector<std::int64_t> windows(static_cast<std::size_t>(layers), 0);
  skip_keys(config, {"sliding_window"});  // where it is not used
  const std::int64_t width =
      read_flag(config, "use_sliding_window", false) ? read_window(config, 4096) : 0;
  const std::int64_t first = types.empty() && width > 0 && has_key(config, "max_window_layers")
                                 ? read_integer(config, "max_window_layers", 0, most_positions)
                                 : absent_max_window_layers;
  for (std::size_t l = 0; l < windows.size(); ++l)
    if (types.empty() ? static_cast<std::int64_t>(l) >= first : types[l] == "sliding_attention")
      windows[l] = width;
  check_windows(config, windows);
  return windows;
}

std::vector<std::int64_t> windows_between(const ConfigJson& config, std::int64_t layers,
                                          std::int64_t absent_window,
                                          const std::function<bool(std::int64_t)>& full) {
  const std::vector<std::string> types = read_layer_types(config, layers);
  const std::int64_t window = read_window(config, absent_window);
  std::vector<std::int64_t> windows(static_cast<std::size_t>(layers), 0);
  for (std::size_t l = 0; l < windows.size(); ++l) {
    if (types.empty() ? full(static_cast<std::int64_t>(l)) : types[l] != "sliding_attention")
      continue;
    if (window == 0) refuse(config, "sliding_window", "must be a number: some layers have windows");
    windows[l] = window;
  }
  return windows;
}

std::vector<std::int64_t> windows_between(const ConfigJson& config, std::int64_t layers,
                                          std::int64_t absent_window, std::int64_t pattern) {
  return windows_between(config, layers, absent_window,
                         [&](std::int64_t l) { return (l + 1) % pattern == 0; });
}

std::vector<float> alibi_slopes(std::int64_t heads, double bias_max) {
  std::int64_t p = 1;
  while (2 * p <= heads) p *= 2;
  const auto base = [&](std::int64_t n) {
    return static_cast<float>(std::exp2(-bias_max / static_cast<double>(n)));
  };
  std::vector<float> slopes;
  for (std::int64_t i = 1; i <= p; ++i) slopes.push_back(std::pow(base(p), static_cast<float>(i)));
  for (std::int64_t i = 1; static_cast<std::int64_t>(slopes.size()) < heads; i += 2)
    slopes.push_back(std::pow(base(2 * p), static_cast<float>(i)));
  return slopes;
}

Architecture decoder(const ConfigJson& config, const Sizes& sizes, const std::string& model_type,
                     bool tied_when_absent) {
  return decoder(config, sizes, model_type, tied_when_absent, {});
}

Architecture decoder(const ConfigJson& config, const Sizes& s, const std::string& model_type,
                     bool tied_when_absent, const OuterNames& names) {
  Architecture a;
  a.model_type = model_type;
  a.layers = s.layers;
  a.hidden = s.hidden;
  a.vocab = s.vocab;
  a.max_positions = s.max_positions;
  a.root = names.root;
  a.layer_prefix = names.root + names.layers + ".";
  a.embedding.tokens = names.root + names.embedding + ".weight";
  a.embedding.width = s.hidden;
  a.head.name = names.head;
  a.head.tied = read_flag(config, "tie_word_embeddings", tied_when_absent);
  return a;
}

Architecture llama_like(const ConfigJson& config, const Sizes& s, const std::string& model_type,
                        const Mlp& mlp, const std::function<Mixer(std::int64_t)>& mixer,
                        const LlamaForm& form) {
  const auto norm = [&](const std::string& name) {
    return rms_norm_of(config, name, s.hidden, "rms_norm_eps", form.absent_eps);
  };
  Architecture a = decoder(config, s, model_type, form.tied_when_absent);
  a.head.norm = norm("model.norm");
  LayerSpec layer;
  layer.mixer_norm = norm("input_layernorm");
  layer.mlp_norm = norm("post_attention_layernorm");
  layer.mlp = mlp;
  set_layers(a, [&](std::int64_t l) {
    layer.mixer = mixer(l);
    return layer;
  });
  return a;
}

Architecture norms_behind(const ConfigJson& config, const Sizes& s, const std::string& model_type,
                          const Mlp& mlp, const std::function<Mixer(std::int64_t)>& mixer,
                          const LlamaForm& form) {
  Architecture a = llama_like(config, s, model_type, mlp, mixer, form);
  set_layers(a, [like = a](std::int64_t l) {
    LayerSpec layer = like.layer(l);
    layer.after_mixer = std::exchange(layer.mlp_norm, {});
    layer.after_mlp = std::exchange(layer.mixer_norm, {});
    layer.after_mlp->name = "post_feedforward_layernorm";
    return layer;
  });
  return a;
}

LayerSpec sequential_layer(const Mixer& mixer, const Mlp& mlp, const NormSpec& mixer_norm,
                           const NormSpec& mlp_norm) {
  LayerSpec layer;
  layer.mixer = mixer;
  layer.mlp = mlp;
  layer.mixer_norm = mixer_norm;
  layer.mlp_norm = mlp_norm;
  return layer;
}

LayerSpec parallel_layer(const Attention& attention, const Mlp& mlp, const NormSpec& norm) {
  LayerSpec layer;
  layer.mixer = attention;
  layer.mlp = mlp;
  layer.mixer_norm = norm;
  layer.residual = Residual::parallel;
  return layer;
}

void set_layers(Architecture& a, const std::function<LayerSpec(std::int64_t)>& layer) {
  a.kinds.clear();
  a.kind_of_layer.clear();
  for (std::int64_t index = 0; index < a.layers; ++index) {
    LayerSpec spec = layer(index);
    spec.hidden = a.hidden;
    const auto same = std::find(a.kinds.begin(), a.kinds.end(), spec);
    a.kind_of_layer.push_back(static_cast<std::uint16_t>(same - a.kinds.begin()));
    if (same == a.kinds.end()) a.kinds.push_back(std::move(spec));
  }
}

void set_layers(Architecture& a, const LayerSpec& layer) {
  set_layers(a, [&](std::int64_t) { return layer; });
}

}  // namespace qpipe
