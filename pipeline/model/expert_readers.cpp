#include "pipeline/model/expert_readers.h"

#include <fmt/format.h>

#include <optional>

namespace qpipe {

namespace {

constexpr std::int64_t most_experts = 1024;  // of kernels/route.h on CUDA

Mlp plain_gated(std::int64_t hidden, std::int64_t ffn, Activation activation,
                const MlpNames& names) {
  Sizes sizes;
  sizes.hidden = hidden;
  sizes.ffn = ffn;
  return gated_mlp(sizes, activation, false, names);
}

MlpNames inside(const std::string& module, const MlpNames& names) {
  return {module + "." + names.gate, module + "." + names.up, module + "." + names.down};
}

// What the keys that are there say.
std::int64_t read_same(const ConfigJson& config, const std::vector<std::string>& keys,
                       std::int64_t lowest, std::int64_t highest, std::int64_t absent) {
  std::optional<std::int64_t> said;
  std::string by;
  for (const std::string& key : keys) {
    if (!has_key(config, key)) continue;
    const std::int64_t value = read_integer(config, key, lowest, highest);
    if (said && *said != value)
      refuse(config, key, fmt::format("must be what {} says: {}", by, *said));
    said = value;
    by = key;
  }
  if (!said && absent < lowest) read_integer(config, keys.front(), lowest, highest);  // throws
  return said.value_or(absent);
}

}  // namespace

ExpertSizes read_expert_sizes(const ConfigJson& config, const Sizes& s, const ExpertKeys& keys) {
  ExpertSizes sizes;
  sizes.hidden = s.hidden;
  sizes.experts = read_same(config, keys.experts, 1, most_experts, keys.absent_experts);
  sizes.ffn = read_same(config, keys.ffn, 1, largest_width, keys.absent_ffn);
  const std::int64_t shared =
      keys.shared.empty()
          ? 0
          : read_same(config, keys.shared, 0, largest_width / sizes.ffn, keys.absent_shared);
  sizes.shared_ffn = shared * sizes.ffn;
  const double columns = static_cast<double>(sizes.experts * sizes.ffn + sizes.shared_ffn);
  if (static_cast<double>(s.layers) * static_cast<double>(3 * s.hidden) * columns > most_parameters)
    throw UserError(ExitCode::data, config.where +
                                        ": its experts make more than 10^15 parameters: no model "
                                        "has so many; check their number and sizes");
  return sizes;
}

Experts gated_experts(const ExpertSizes& s, Activation activation, const ExpertNames& names) {
  Experts result;
  result.router.linear = {names.router, s.experts, s.hidden};
  result.router.linear.kept = true;
  for (std::int64_t e = 0; e < s.experts; ++e)
    result.experts.push_back(plain_gated(
        s.hidden, s.ffn, activation, inside(fmt::format("{}.{}", names.experts, e), names.each)));
  if (s.shared_ffn > 0)
    result.shared = plain_gated(s.hidden, s.shared_ffn, activation,
                                inside(names.shared, {"gate_proj", "up_proj", "down_proj"}));
  return result;
}

std::int64_t read_top_k(const ConfigJson& config, std::int64_t experts, const std::string& key,
                        std::int64_t absent) {
  if (absent > 0) return read_integer_or(config, key, absent, 1, experts);
  return read_integer(config, key, 1, experts);
}

void set_softmax_router(std::int64_t top_k, bool normalized, Experts& experts) {
  experts.router.options.top_k = top_k;
  experts.router.options.normalize = normalized;
}

void read_expert_groups(const ConfigJson& config, std::int64_t experts, std::int64_t absent_groups,
                        std::int64_t absent_top_groups, RouteOptions& o,
                        const std::string& groups_key) {
  o.groups = read_integer_or(config, groups_key, absent_groups, 1, experts);
  o.top_groups = read_integer_or(config, "topk_group", absent_top_groups, 1, o.groups);
  if (experts % o.groups != 0)
    refuse(config, groups_key, fmt::format("must divide the {} experts", experts));
  const std::int64_t in_group = experts / o.groups;
  if (o.groups > 1 && o.top_groups * in_group < o.top_k)
    refuse(config, "topk_group",
           fmt::format("must choose groups with at least {} experts", o.top_k));
  if (o.groups > 1 && o.group_score == GroupScore::two_best && in_group < 2)
    refuse(config, groups_key, "must leave at least two experts a group");
}

void set_sigmoid_router(const ConfigJson& config, std::int64_t top_k, const SigmoidRouter& form,
                        Experts& experts) {
  const auto count = static_cast<std::int64_t>(experts.experts.size());
  read_one_of(config, "scoring_func", {"sigmoid"});
  read_one_of(config, "topk_method", {"noaux_tc"});
  RouteOptions& o = experts.router.options;
  o.top_k = top_k;
  o.scoring = Scoring::sigmoid;
  o.normalize = read_flag(config, form.normalize, form.normalized_when_absent);
  o.scaling = static_cast<float>(read_positive(config, form.scaling, form.absent_scaling));
  o.group_score = GroupScore::two_best;
  read_expert_groups(config, count, form.absent_groups, form.absent_top_groups, o, form.groups);
  experts.router.correction = form.correction;
}

Experts sigmoid_experts(const ConfigJson& config, const ExpertSizes& sizes,
                        std::int64_t absent_top_k, const SigmoidRouter& form,
                        const ExpertNames& names) {
  Experts experts = gated_experts(sizes, read_activation(config, "hidden_act", "silu"), names);
  const std::int64_t top_k = read_top_k(config, sizes.experts, "num_experts_per_tok", absent_top_k);
  set_sigmoid_router(config, top_k, form, experts);
  return experts;
}

void set_experts(Architecture& a, const Experts& experts,
                 const std::function<bool(std::int64_t)>& routes) {
  const Architecture dense = a;
  set_layers(a, [&](std::int64_t l) {
    LayerSpec layer = dense.layer(l);
    if (routes(l)) layer.mlp = experts;
    return layer;
  });
}

void set_experts(Architecture& a, const Experts& experts, const std::vector<bool>& routes) {
  set_experts(a, experts, [&](std::int64_t l) { return routes.at(static_cast<std::size_t>(l)); });
}

void set_experts(Architecture& a, const std::function<Experts(std::int64_t)>& experts) {
  const Architecture dense = a;
  set_layers(a, [&](std::int64_t l) {
    LayerSpec layer = dense.layer(l);
    layer.mlp = experts(l);
    return layer;
  });
}

void set_experts(Architecture& a, const Experts& experts) {
  set_experts(a, experts, [](std::int64_t) { return true; });
}

void set_experts_behind_dense(const ConfigJson& config, const Experts& experts,
                              std::int64_t absent_dense, Architecture& a) {
  set_experts(a, experts, layers_behind_dense(config, a.layers, absent_dense));
  a.kinds_by = "mlp_layer_types or first_k_dense_replace";
}

std::vector<std::int64_t> read_layer_numbers(const ConfigJson& config, const std::string& key,
                                             std::int64_t layers) {
  std::vector<std::int64_t> numbers;
  const nlohmann::json* list = find_value(config, key);
  if (list == nullptr) return numbers;
  for (const nlohmann::json& number : list->is_array() ? *list : nlohmann::json::array({*list})) {
    if (!number.is_number_integer() || number < 0 || number >= layers)
      refuse(config, key, fmt::format("must be an array of layers from 0 to {}", layers - 1));
    numbers.push_back(number.get<std::int64_t>());
  }
  return numbers;
}

std::vector<bool> sparse_layers(const ConfigJson& config, std::int64_t layers) {
  const std::int64_t step = read_integer_or(config, "decoder_sparse_step", 1, 1, most_layers);
  std::vector<bool> routes;
  for (std::int64_t l = 0; l < layers; ++l) routes.push_back((l + 1) % step == 0);
  for (const std::int64_t l : read_layer_numbers(config, "mlp_only_layers", layers))
    routes[static_cast<std::size_t>(l)] = false;
  return routes;
}

std::vector<bool> layers_behind_dense(const ConfigJson& config, std::int64_t layers,
                                      std::int64_t absent_dense, const std::string& key) {
  const std::vector<std::string> types =
      read_layer_types(config, layers, {"dense", "sparse"}, "mlp_layer_types");
  const std::int64_t dense = read_integer_or(config, key, absent_dense, 0, most_layers);
  std::vector<bool> routes;
  for (std::int64_t l = 0; l < layers; ++l)
    routes.push_back(types.empty() ? l >= dense : types[static_cast<std::size_t>(l)] == "sparse");
  return routes;
}

}  // namespace qpipe
