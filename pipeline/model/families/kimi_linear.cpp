// Kimi-Linear: Kimi delta attention, whose state decays by channel, and every few layers latent
// attention without positions; behind some dense layers experts behind DeepSeek-V3's router.
#include <fmt/format.h>

#include <cmath>

#include "pipeline/model/expert_readers.h"
#include "pipeline/model/families/families.h"
#include "pipeline/model/latent_readers.h"

namespace qpipe {

namespace {

constexpr const char* linear_key = "linear_attn_config";

// What config.json has inside of linear_attn_config, or outside under another name.
std::int64_t read_linear_size(const ConfigJson& config, const char* inner, const char* outer,
                              std::int64_t absent, std::int64_t largest) {
  const nlohmann::json* object = find_value(config, linear_key);
  const std::int64_t outside = read_integer_or(config, outer, absent, 1, largest);
  if (object == nullptr) return outside;
  if (!object->is_object()) refuse(config, linear_key, "must be an object");
  const ConfigJson inside{*object, config.where + ": " + linear_key};
  return read_integer_or(inside, inner, outside, 1, largest);
}

// layer_types, or the numbers of both kinds' layers, from 1 on, or attention in layers 4, 8, ….
std::vector<bool> attention_layers(const ConfigJson& config, std::int64_t layers) {
  const std::vector<std::string> types =
      read_layer_types(config, layers, {"linear_attention", "full_attention"});
  std::vector<bool> attends;
  for (std::int64_t l = 0; l < layers; ++l)
    attends.push_back(types.empty() ? l > 0 && l % 4 == 0
                                    : types[static_cast<std::size_t>(l)] == "full_attention");
  const nlohmann::json* object = find_value(config, linear_key);
  if (!types.empty() || object == nullptr || !object->contains("full_attn_layers") ||
      !object->contains("kda_layers"))
    return attends;
  const ConfigJson inside{*object, config.where + ": " + linear_key};
  std::vector<int> times(static_cast<std::size_t>(layers));
  for (const char* key : {"full_attn_layers", "kda_layers"}) {
    const nlohmann::json& numbers = object->at(key);
    if (!numbers.is_array()) refuse(inside, key, "must be an array of layers' numbers");
    for (const nlohmann::json& number : numbers) {
      if (!number.is_number_integer() || number < 1 || number > layers)
        refuse(inside, key, fmt::format("must hold numbers from 1 to {}", layers));
      const std::size_t at = number.get<std::size_t>() - 1;
      attends[at] = std::string(key) == "full_attn_layers";
      ++times[at];
    }
  }
  for (std::size_t l = 0; l < times.size(); ++l)
    if (times[l] != 1)
      refuse(inside, "kda_layers",
             fmt::format("must hold layer {}, or full_attn_layers: one of them", l + 1));
  return attends;
}

DeltaNet delta_net(const ConfigJson& config, const Sizes& s) {
  read_one_of(config, "hidden_act", {"silu"});  // the convolutions', too
  const std::int64_t heads =
      read_linear_size(config, "num_heads", "linear_num_heads", 32, largest_width);
  const std::int64_t dim =
      read_linear_size(config, "head_dim", "linear_head_dim", 128, largest_width / heads);
  const std::int64_t width = heads * dim;
  const std::int64_t kernel =
      read_linear_size(config, "short_conv_kernel_size", "linear_conv_kernel_dim", 4, 64);
  DeltaNet n;
  n.heads = {heads, heads, dim, dim, true};
  std::int64_t column = 0;
  const auto projection = [&](const char* name, std::int64_t outputs, bool kept) {
    LinearSpec& linear = n.in.emplace_back(LinearSpec{name, outputs, s.hidden});
    linear.kept = kept;
    column += outputs;
    return SlicedColumns{column - outputs, {1, outputs, outputs}};
  };
  n.q = projection("self_attn.q_proj", width, false);
  n.k = projection("self_attn.k_proj", width, false);
  n.v = projection("self_attn.v_proj", width, false);
  n.decay = projection("self_attn.f_a_proj", dim, true);
  n.gate = projection("self_attn.g_a_proj", dim, true);
  n.strength = projection("self_attn.b_proj", heads, true);
  n.decay_up = LinearSpec{"self_attn.f_b_proj", width, dim};
  n.gate_up = LinearSpec{"self_attn.g_b_proj", width, dim};
  n.decay_up->kept = n.gate_up->kept = true;
  for (const char* name : {"self_attn.q_conv1d", "self_attn.k_conv1d", "self_attn.v_conv1d"})
    n.convolutions.push_back({name, width, kernel});
  n.a_log = "self_attn.A_log";
  n.a_log_is_4d = true;
  n.dt_bias = "self_attn.dt_bias";
  n.norm = "self_attn.o_norm.weight";
  n.eps = static_cast<float>(read_positive(config, "rms_norm_eps", 1e-5));
  n.norm_gate = NormGate::sigmoid;
  n.out = {"self_attn.o_proj", s.hidden, width};
  return n;
}

LatentAttention latent_attention(const ConfigJson& config, const Sizes& s) {
  read_one_of(config, "mla_use_nope", {true});
  LatentSizes absent;
  absent.q_rank = 0;
  LatentAttention a = read_latent_attention(config, s, absent, {});
  a.rope = {};
  a.scale = 1.0f / std::sqrt(static_cast<float>(a.head_dim()));
  return a;
}

Experts kimi_experts(const ConfigJson& config, const Sizes& s) {
  read_one_of(config, "moe_layer_freq", {1});
  read_one_of(config, "moe_router_activation_func", {"sigmoid"});
  skip_keys(config, {"use_grouped_topk"});
  ExpertNames names;
  names.router = "block_sparse_moe.gate";
  names.experts = "block_sparse_moe.experts";
  names.each = {"w1", "w3", "w2"};
  names.shared = "block_sparse_moe.shared_experts";
  Experts experts = gated_experts(
      read_expert_sizes(config, s, {.absent_experts = 256, .absent_ffn = 1024, .absent_shared = 1}),
      Activation::silu, names);
  const auto count = static_cast<std::int64_t>(experts.experts.size());
  SigmoidRouter router;
  router.correction = "block_sparse_moe.gate.e_score_correction_bias";
  router.normalize = has_key(config, "moe_renormalize") ? "moe_renormalize" : "norm_topk_prob";
  router.groups = has_key(config, "num_expert_group") ? "num_expert_group" : "n_group";
  router.absent_scaling = 2.446;
  const char* top_k =
      has_key(config, "num_experts_per_token") ? "num_experts_per_token" : "num_experts_per_tok";
  set_sigmoid_router(config, read_top_k(config, count, top_k, 8), router, experts);
  return experts;
}

}  // namespace

Architecture read_kimi_linear(const ConfigJson& config) {
  SizeKeys keys;
  keys.max_positions = {"model_max_length", "max_position_embeddings"};
  keys.absent_max_positions = 1048576;
  const Sizes s = read_latent_model_sizes(config, keys);
  const LatentAttention attention = latent_attention(config, s);
  const DeltaNet net = delta_net(config, s);
  const std::vector<bool> attends = attention_layers(config, s.layers);
  Architecture a = llama_like(config, s, "kimi_linear", gated_mlp(s, Activation::silu, false),
                              [&](std::int64_t l) -> Mixer {
                                if (attends[static_cast<std::size_t>(l)]) return attention;
                                return net;
                              },
                              {.absent_eps = 1e-5});
  a.kinds_by = linear_key;
  set_experts(a, kimi_experts(config, s), layers_behind_dense(config, s.layers, 1));
  return a;
}

}  // namespace qpipe
