#include "pipeline/model/model.h"

#include <algorithm>
#include <cmath>

#include "pipeline/files/suggest.h"
#include "pipeline/model/config_json.h"
#include "pipeline/model/families.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

namespace {

using Json = nlohmann::json;

constexpr std::int64_t largest_width =
    std::int64_t{1} << 24;  // far above any model, and products of two stay exact
constexpr std::int64_t most_layers = 10000;
constexpr std::int64_t most_positions = std::int64_t{1} << 40;

Family find_family(const ConfigJson& config) {
  const std::vector<std::string> known = supported_families();
  if (find_value(config, "model_type") == nullptr)
    refuse(config, "model_type", "must name a family; supported: " + joined(known));
  const std::string name = read_text(config, "model_type");
  for (const Family& family : families())
    if (family.model_type == name) return family;
  const std::string near = nearest_name(name, known);
  throw UserError(ExitCode::unavailable,
                  config.where + ": model_type '" + name + "' is not supported" +
                      (near.empty() ? "." : "; did you mean '" + near + "'?") +
                      " Supported: " + joined(known));
}

Json option_value(const ConfigJson& config, const Option& option) {
  const bool absent = !config.object.contains(option.name);
  if (absent && option.assumed) return option.values.front();
  Json value = absent ? Json() : config.object.at(option.name);
  if (value.is_null() && option.values.front().is_boolean()) value = false;
  if (absent ||
      std::find(option.values.begin(), option.values.end(), value) == option.values.end()) {
    std::vector<std::string> values;
    for (const Json& one : option.values) values.push_back(one.dump());
    refuse(config, option.name,
           "must be " + (values.size() > 1 ? "one of " + joined(values)
                                           : values.front() + " for this family here"),
           values.size() > 1 ? ExitCode::data : ExitCode::unavailable);
  }
  return value;
}

void choose_form(const ConfigJson& config, Family& family) {
  Json chosen = Json::object();
  for (const Option& option : family.options) chosen[option.name] = option_value(config, option);
  const std::vector<Variant> variants = family.variants;
  for (const Variant& variant : variants) {
    const bool applies = std::all_of(
        variant.when.begin(), variant.when.end(),
        [&](const auto& condition) { return chosen.at(condition.first) == condition.second; });
    if (!applies) continue;
    if (!variant.refusal.empty()) {
      std::string keys;
      for (const auto& [key, value] : variant.when)
        keys += (keys.empty() ? "" : ", ") + key + " = " + value.dump();
      throw UserError(ExitCode::data,
                      config.where + ": " + keys + " contradict each other: " + variant.refusal);
    }
    variant.apply(family);
  }
}

struct Widths {
  std::int64_t hidden = 0;
  std::int64_t heads = 0;
};

std::int64_t read_size(const ConfigJson& config, const SizeKey& key, std::int64_t highest,
                       const Widths& known = {}) {
  std::string null_key;
  for (const std::string& name : key.names) {
    if (find_value(config, name) != nullptr) return read_integer(config, name, 1, highest);
    if (null_key.empty() && is_null(config, name)) null_key = name;
  }
  switch (null_key.empty() ? key.absent : key.null) {
    case Otherwise::fault: break;
    case Otherwise::value: return key.value;
    case Otherwise::heads: return known.heads;
    case Otherwise::four_hidden: return 4 * known.hidden;
    case Otherwise::hidden_over_heads:
      if (known.hidden % known.heads != 0)
        throw UserError(
            ExitCode::data,
            config.where + ": hidden_size = " + std::to_string(known.hidden) +
                " is not a multiple of num_attention_heads = " + std::to_string(known.heads) +
                (key.names.empty() ? "" : ", and " + key.names.front() + " is not given"));
      return known.hidden / known.heads;
  }
  return read_integer(config, null_key.empty() ? key.names.back() : null_key, 1,
                      highest);  // throws
}

bool read_flag(const ConfigJson& config, const FlagKey& key) {
  return key.name.empty() ? key.otherwise : read_flag(config, key.name, key.otherwise);
}

Activation read_activation(const ConfigJson& config, const TextKey& key) {
  const std::string name = read_text(config, key.name, key.otherwise);
  if (name == "silu" || name == "swish") return Activation::silu;
  if (name == "gelu" || name == "gelu_python") return Activation::gelu;
  if (name == "gelu_new" || name == "gelu_fast" || name == "gelu_pytorch_tanh" ||
      name == "gelu_python_tanh")
    return Activation::gelu_tanh;
  if (name == "relu") return Activation::relu;
  refuse(config, key.name, "must be one of silu, gelu, gelu_new, gelu_pytorch_tanh, relu",
         ExitCode::unavailable);
}

HeadLayout head_layout(QkvLayout layout, std::int64_t heads, std::int64_t kv_heads,
                       std::int64_t head_dim) {
  HeadLayout h{heads, kv_heads, head_dim};
  const std::int64_t group_width = h.group() * head_dim;
  switch (layout) {
    case QkvLayout::side_by_side:
      h.q_group_stride = group_width;
      h.kv_stride = head_dim;
      h.k_begin = heads * head_dim;
      h.v_begin = h.k_begin + kv_heads * head_dim;
      break;
    case QkvLayout::by_group:
      h.q_group_stride = h.kv_stride = group_width + 2 * head_dim;
      h.k_begin = group_width;
      h.v_begin = group_width + head_dim;
      break;
  }
  return h;
}

// With p the largest power of two up to n, slopes b, b², … of b = 2^(−8/p) for the first p heads;
// for the others every second power of 2^(−4/p). In float32, as the reference.
std::vector<float> alibi_slopes(std::int64_t heads) {
  std::int64_t p = 1;
  while (2 * p <= heads) p *= 2;
  const auto base = [](std::int64_t n) {
    return static_cast<float>(std::exp2(-8.0 / static_cast<double>(n)));
  };
  std::vector<float> slopes;
  for (std::int64_t i = 1; i <= p; ++i) slopes.push_back(std::pow(base(p), static_cast<float>(i)));
  for (std::int64_t i = 1; static_cast<std::int64_t>(slopes.size()) < heads; i += 2)
    slopes.push_back(std::pow(base(2 * p), static_cast<float>(i)));
  return slopes;
}

// Per layer, whether layer_types says sliding; empty when config.json has no layer_types.
std::vector<bool> read_layer_types(const ConfigJson& config, std::int64_t layers) {
  const std::string key = "layer_types";
  const Json* types = find_value(config, key);
  if (types == nullptr) return {};
  if (!types->is_array() || static_cast<std::int64_t>(types->size()) != layers)
    refuse(config, key,
           "must be an array of one name for each of the " + std::to_string(layers) + " layers");
  std::vector<bool> sliding;
  for (const Json& type : *types) {
    const bool known =
        type == "sliding_attention" || type == "full_attention" || type == "attention";
    if (!known)
      refuse(config, key, "must hold only full_attention and sliding_attention",
             ExitCode::unavailable);
    sliding.push_back(type == "sliding_attention");
  }
  return sliding;
}

std::vector<std::int64_t> read_windows(const ConfigJson& config, Windows windows,
                                       std::int64_t layers) {
  const std::string key = "sliding_window";
  const auto window = [&]() -> std::int64_t {
    if (is_null(config, key)) return 0;
    return config.object.contains(key) ? read_integer(config, key, 1, most_positions) : 4096;
  };
  const std::vector<bool> sliding = read_layer_types(config, layers);
  std::vector<std::int64_t> result(static_cast<std::size_t>(layers), 0);
  switch (windows) {
    case Windows::none: break;
    case Windows::every_layer: result.assign(result.size(), window()); break;
    case Windows::by_layer_type: {
      const std::int64_t width = read_flag(config, "use_sliding_window", false) ? window() : 0;
      const std::int64_t first =
          sliding.empty() && width > 0 && config.object.contains("max_window_layers")
              ? read_integer(config, "max_window_layers", 0, most_positions)
              : 28;
      for (std::size_t l = 0; l < result.size(); ++l)
        if (sliding.empty() ? static_cast<std::int64_t>(l) >= first : static_cast<bool>(sliding[l]))
          result[l] = width;
      break;
    }
  }
  for (std::size_t l = 0; l < sliding.size(); ++l)
    if (sliding[l] != (result[l] > 0))
      throw UserError(ExitCode::data,
                      config.where + ": layer_types calls layer " + std::to_string(l) +
                          (sliding[l] ? " sliding, but the other keys give it no window"
                                      : " full, but sliding_window gives it a window"));
  return result;
}

}  // namespace

std::vector<std::string> supported_families() {
  std::vector<std::string> names;
  for (const Family& family : families()) names.push_back(family.model_type);
  std::sort(names.begin(), names.end());
  return names;
}

Architecture read_architecture(const Json& json, const std::string& where) {
  if (!json.is_object()) throw UserError(ExitCode::data, where + ": must be a JSON object");
  const ConfigJson config{json, where};
  Family family = find_family(config);
  choose_form(config, family);

  Architecture a;
  a.model_type = family.reads_as;
  a.layers = read_size(config, family.layers, most_layers);
  a.hidden = read_size(config, family.hidden, largest_width);
  a.vocab = read_size(config, family.vocab, largest_width);
  a.max_positions = read_size(config, family.max_positions, most_positions);
  const Widths widths{a.hidden, read_size(config, family.heads, largest_width)};
  const std::int64_t head_dim = read_size(config, family.head_dim, largest_width, widths);
  const std::int64_t kv_heads = read_size(config, family.kv_heads, largest_width, widths);
  a.ffn = read_size(config, family.ffn, largest_width, widths);
  if (widths.heads % kv_heads != 0)
    throw UserError(ExitCode::data,
                    where + ": num_attention_heads = " + std::to_string(widths.heads) +
                        " is not a multiple of the number of key and value heads = " +
                        std::to_string(kv_heads));
  if (widths.heads * head_dim > largest_width)
    throw UserError(ExitCode::data, where +
                                        ": num_attention_heads = " + std::to_string(widths.heads) +
                                        " heads of head_dim = " + std::to_string(head_dim) +
                                        " are wider than " + std::to_string(largest_width));

  a.norm = family.norm;
  a.norm_bias = family.norm == NormKind::layer;
  a.norm_eps =
      static_cast<float>(read_positive(config, family.norm_eps.name, family.norm_eps.otherwise));
  a.norm_offset = family.norm_offset;
  a.residual = family.residual;
  a.shared_norm = family.shared_norm;

  a.heads = head_layout(family.qkv_layout, widths.heads, kv_heads, head_dim);
  a.attention_scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  if (read_flag(config, family.alibi)) {
    a.key_bias_slopes = alibi_slopes(widths.heads);
    a.key_bias_in_bf16 = family.alibi_in_bf16;
  } else if (family.rope) {
    a.rope = read_rope(config,
                       {head_dim, a.max_positions, family.rope_interleaved, family.partial_rope});
  }
  a.window = read_windows(config, family.windows, a.layers);
  a.gated_mlp = family.gated_mlp;
  a.activation = read_activation(config, family.activation);
  a.tied_embeddings = read_flag(config, family.tied_embeddings);

  const bool qkv_bias = read_flag(config, family.qkv_bias);
  if (family.qkv.size() == 1) {
    a.qkv = {{family.qkv[0], a.heads.width(), a.hidden, qkv_bias}};
  } else {
    a.qkv = {{family.qkv.at(0), widths.heads * head_dim, a.hidden, qkv_bias},
             {family.qkv.at(1), kv_heads * head_dim, a.hidden, qkv_bias},
             {family.qkv.at(2), kv_heads * head_dim, a.hidden, qkv_bias}};
  }
  a.attention_out = {family.attention_out, a.hidden, widths.heads * head_dim,
                     read_flag(config, family.attention_out_bias)};
  const bool mlp_bias = read_flag(config, family.mlp_bias);
  const std::int64_t mlp_width = family.gated_mlp ? 2 * a.ffn : a.ffn;
  for (const std::string& name : family.mlp_in)
    a.mlp_in.push_back(
        {name, mlp_width / static_cast<std::int64_t>(family.mlp_in.size()), a.hidden, mlp_bias});
  a.mlp_out = {family.mlp_out, a.hidden, a.ffn, mlp_bias};

  a.names = family.names;
  a.layer_prefix = family.layer_prefix;
  a.embedding = family.embedding;
  a.final_norm = family.final_norm;
  a.lm_head = family.lm_head;
  return a;
}

void check_sequence_length(const Architecture& a, std::int64_t seqlen) {
  if (a.rope.longest > 0 && seqlen > a.rope.longest)
    throw UserError(ExitCode::unavailable,
                    "sequences of " + std::to_string(seqlen) +
                        " tokens: this model's dynamic rotary positions are fixed up to " +
                        std::to_string(a.rope.longest) +
                        " tokens only; use shorter sequences (seqlen)");
}

}  // namespace qpipe
