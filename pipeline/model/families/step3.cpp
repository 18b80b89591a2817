// Step 3.5: heads behind a gate for each, another number of them on layers with windows, rope by
// layer, norms stored as w − 1, and limits of gate and up behind the activation in some layers.
#include <algorithm>
#include <cmath>

#include "pipeline/model/expert_readers.h"
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

namespace {

using Json = nlohmann::json;

// Lists by layer go on with the layers of multi-token prediction, which no decoder runs.
Json without_prediction(const ConfigJson& config) {
  Json object = config.object;
  const std::int64_t layers = read_integer(config, "num_hidden_layers", 1, most_layers);
  const std::int64_t more = read_integer_or(config, "num_nextn_predict_layers", 0, 0, most_layers);
  for (const char* key : {"layer_types", "mlp_layer_types", "swiglu_limits", "swiglu_limits_shared",
                          "rope_theta", "partial_rotary_factors"})
    if (const auto list = object.find(key);
        list != object.end() && list->is_array() && std::ssize(*list) == layers + more)
      list->erase(list->begin() + layers, list->end());
  return object;
}

// Of each layer, 0 for null and where there is no list.
std::vector<float> read_limits(const ConfigJson& config, const std::string& key,
                               std::int64_t layers) {
  const Json* list = find_value(config, key);
  std::vector<float> limits(static_cast<std::size_t>(layers), 0.0f);
  if (list == nullptr) return limits;
  const auto fits = [](const Json& v) { return v.is_null() || (v.is_number() && v >= 0.0); };
  if (!list->is_array() || std::ssize(*list) != layers ||
      !std::all_of(list->begin(), list->end(), fits))
    refuse(config, key,
           "must be an array of a number from 0 or null for each of the " + std::to_string(layers) +
               " layers");
  for (std::size_t l = 0; l < limits.size(); ++l)
    if (!(*list)[l].is_null()) limits[l] = (*list)[l].get<float>();
  return limits;
}

// Base and share of the head from lists by layer, or one for all; scaled on full layers.
Rope rope_of_layer(const ConfigJson& config, const Sizes& s, std::int64_t l, bool sliding) {
  Json object = config.object;
  const auto pick = [&](const char* list, const char* one) {
    const Json* values = find_value(config, list);
    if (values == nullptr || !values->is_array()) return;
    if (std::ssize(*values) != s.layers)
      refuse(
          config, list,
          "must be an array of a number for each of the " + std::to_string(s.layers) + " layers");
    object[one] = (*values)[static_cast<std::size_t>(l)];
  };
  pick("rope_theta", "rope_theta");
  pick("partial_rotary_factors", "partial_rotary_factor");
  RopeRule rule{.head_dim = s.head_dim, .max_positions = s.max_positions, .partial = true};
  rule.layer_type = sliding ? "sliding_attention" : "full_attention";
  rule.scaled = !sliding;
  return read_rope({object, config.where, config.asked}, rule);
}

NormSpec step3_norm(const ConfigJson& config, const std::string& name, std::int64_t width) {
  NormSpec norm = rms_norm_of(config, name, width, "rms_norm_eps", 1e-5);
  norm.offset = 1.0f;
  return norm;
}

Attention step3_attention(const ConfigJson& config, const Sizes& s) {
  Attention attention = gqa(s, false, false);
  attention.q_norm = {step3_norm(config, "self_attn.q_norm", s.head_dim)};
  attention.k_norm = {step3_norm(config, "self_attn.k_norm", s.head_dim)};
  attention.gate = LinearSpec{"self_attn.g_proj", s.heads, s.hidden};
  attention.gate->kept = true;
  const auto scalar = static_cast<double>(s.head_dim);
  attention.scale =
      static_cast<float>(1.0 / std::sqrt(read_positive(config, "query_pre_attn_scalar", scalar)));
  return attention;
}

// num_sliding_attention_heads, or attention_other_setting with heads, their groups and width.
Sizes step3_sizes_with_windows(const ConfigJson& config, const Sizes& full) {
  Sizes s = full;
  s.heads = read_integer_or(config, "num_sliding_attention_heads", s.heads, 1, largest_width);
  if (const Json* other = find_value(config, "attention_other_setting")) {
    if (!other->is_object()) refuse(config, "attention_other_setting", "must be an object");
    const ConfigJson inner{*other, config.where + ": attention_other_setting"};
    s.heads = read_integer_or(inner, "num_attention_heads", s.heads, 1, largest_width);
    s.kv_heads = read_integer_or(inner, "num_attention_groups", s.kv_heads, 1, largest_width);
    s.head_dim = read_integer_or(inner, "head_dim", s.head_dim, 1, largest_width);
  }
  check_heads(config, s, "attention_other_setting: num_attention_heads");
  return s;
}

// moe_layers_enum "3,4,5" or [3, 4, 5], mlp_layer_types, or all from the fourth layer on.
std::vector<bool> step3_routes(const ConfigJson& config, std::int64_t layers) {
  const std::string key = "moe_layers_enum";
  const Json* list = find_value(config, key);
  if (list == nullptr || has_key(config, "mlp_layer_types"))
    return layers_behind_dense(config, layers, 3);
  Json numbers = *list;
  if (list->is_string()) {
    numbers = Json::parse("[" + list->get<std::string>() + "]", nullptr, false);
    if (numbers.is_discarded()) refuse(config, key, "must be numbers of layers");
  }
  std::vector<bool> routes(static_cast<std::size_t>(layers), false);
  const Json object = {{key, numbers}};
  for (const std::int64_t l : read_layer_numbers({object, config.where}, key, layers))
    routes[static_cast<std::size_t>(l)] = true;
  return routes;
}

void refuse_other_step3_forms(const ConfigJson& config) {
  for (const char* key : {"use_head_wise_attn_gate", "use_qk_norm", "use_moe_router_bias",
                          "zero_centered", "use_moe"})
    read_one_of(config, key, {true});
  for (const char* key : {"attention_bias", "mlp_bias", "sink", "use_mfa"})
    read_one_of(config, key, {false});
  read_one_of(config, "moe_router_activation", {"sigmoid"});
  read_one_of(config, "att_impl_type", {"GQA"});
  read_one_of(config, "yarn_only_types", {Json::array({"full_attention"}), Json::array()});
  skip_keys(config, {"need_fp32_gate", "moe_every_n_layer", "moe_layer_offset", "max_seq_len",
                     "mtp_layer_types", "mtp_mlp_layer_types", "mtp_base_layer_idx"});
}

Experts step3_experts(const ConfigJson& config, const Sizes& s) {
  ExpertSizes sizes =
      read_expert_sizes(config, s,
                        {.experts = {"moe_num_experts", "n_routed_experts", "num_local_experts"},
                         .shared = {},
                         .absent_experts = 288,
                         .absent_ffn = 1280});
  const char* width =
      has_key(config, "share_expert_dims") ? "share_expert_dims" : "share_expert_dim";
  sizes.shared_ffn = read_integer_or(config, width, 1280, 1, largest_width);
  ExpertNames names;
  names.router = "moe.gate";
  names.experts = "moe.experts";
  names.shared = "share_expert";
  SigmoidRouter router;
  router.correction = "moe.router_bias";
  router.normalize = "norm_expert_weight";
  router.scaling = "moe_router_scaling_factor";
  Experts experts = gated_experts(sizes, Activation::silu, names);
  const char* top_k = has_key(config, "moe_top_k") ? "moe_top_k" : "num_experts_per_tok";
  set_sigmoid_router(config, read_top_k(config, sizes.experts, top_k, 8), router, experts);
  return experts;
}

}  // namespace

Architecture read_step3p5(const ConfigJson& with_prediction) {
  const Json object = without_prediction(with_prediction);
  const ConfigJson config{object, with_prediction.where, with_prediction.asked};
  SizeKeys keys;
  keys.kv_heads = {"num_attention_groups", "num_key_value_heads"};
  keys.absent_kv_heads = 8;
  keys.absent_head_dim = 128;
  keys.absent_max_positions = 128000;
  const Sizes s = read_sizes(config, keys);
  const Sizes with_windows = step3_sizes_with_windows(config, s);
  refuse_other_step3_forms(config);
  read_one_of(config, "hidden_act", {"silu"});
  const std::vector<std::int64_t> windows =
      windows_between(config, s.layers, 0, [](std::int64_t) { return true; });
  const std::vector<float> limits = read_limits(config, "swiglu_limits", s.layers);
  const std::vector<float> limits_shared = read_limits(config, "swiglu_limits_shared", s.layers);
  const auto limited = [](Mlp mlp, float limit) {
    if (limit > 0.0f) mlp.limits = {.limit = limit, .after = true};
    return mlp;
  };

  Architecture a = decoder(config, s, "step3p5");
  a.head.norm = step3_norm(config, "model.norm", s.hidden);
  const std::vector<bool> routes = step3_routes(config, s.layers);
  const Experts all = step3_experts(config, s);
  set_layers(a, [&](std::int64_t l) {
    const auto at = static_cast<std::size_t>(l);
    const bool sliding = windows[at] > 0;
    const Sizes& sizes = sliding ? with_windows : s;
    Attention attention = step3_attention(config, sizes);
    attention.window = windows[at];
    attention.rope = rope_of_layer(config, sizes, l, sliding);
    LayerSpec layer = sequential_layer(
        attention, limited(gated_mlp(s, Activation::silu, false), limits_shared[at]),
        step3_norm(config, "input_layernorm", s.hidden),
        step3_norm(config, "post_attention_layernorm", s.hidden));
    if (!routes[at]) return layer;
    Experts experts = all;
    for (Mlp& expert : experts.experts) expert = limited(expert, limits[at]);
    experts.shared = limited(*experts.shared, limits_shared[at]);
    layer.mlp = experts;
    return layer;
  });
  return a;
}

}  // namespace qpipe
