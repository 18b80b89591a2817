#include "stages/awq_pairs.h"

namespace qpipe {

namespace {

// Layers that share keys and values cannot run on the inputs of one of their steps alone.
bool runs_alone(const LayerSpec& spec) {
  const auto* attention = std::get_if<Attention>(&spec.mixer);
  return attention == nullptr || !attention->shares_kv();
}

std::optional<ScalingPair> from_norm(const LayerSpec& spec, Part part) {
  const std::optional<NormSpec>& norm = part == Part::mixer ? spec.mixer_norm : spec.mlp_norm;
  if (part == Part::per_layer || !norm || !norm->weight) return std::nullopt;
  ScalingPair pair;
  pair.norm = norm;
  if (part == Part::mlp)
    pair.inspected = Inspected::mlp;
  else if (runs_alone(spec))
    pair.inspected = spec.shares_norm() ? Inspected::mixer_and_mlp : Inspected::mixer;
  return pair;
}

// The heads' outputs are sums of rows of v. Gates and scales multiply each column by itself.
std::optional<ScalingPair> from_values(const LayerSpec& spec) {
  const auto* a = std::get_if<Attention>(&spec.mixer);
  if (a == nullptr || a->shares_kv() || a->values_are_keys || a->v_norm || a->clip_qkv > 0.0f)
    return std::nullopt;
  const HeadLayout& h = a->heads;
  const bool own_module = a->qkv.size() == 3;
  if (h.heads != h.kv_heads || !h.values_side_by_side() || (!own_module && a->qkv.size() != 1))
    return std::nullopt;
  ScalingPair pair;
  pair.source_linear = own_module ? 2 : 0;
  pair.source_first_row = own_module ? 0 : h.v_begin;
  return pair;
}

// first_linear: of the MLP, as an index into Layer::linears.
std::optional<ScalingPair> from_up(const Mlp& m, std::size_t first_linear) {
  const bool linear_in_up = m.gated && m.limits == GatedLimits{};
  const bool homogeneous = !m.gated && m.activation == Activation::relu;
  if (m.xielu || !(linear_in_up || homogeneous)) return std::nullopt;
  ScalingPair pair;
  pair.source_linear = first_linear + m.in.size() - 1;
  pair.source_first_row = m.in.back().out_features - m.width();
  return pair;
}

// The pairs of the MLP's, or of each expert's, last linear. before: the step of the first ones.
std::vector<ScalingPair> from_ups(const LayerSpec& spec, const Step& before, const Step& step) {
  std::vector<ScalingPair> pairs;
  const auto add = [&](const Mlp& mlp, std::size_t first_linear, std::size_t group) {
    std::optional<ScalingPair> pair = from_up(mlp, first_linear);
    if (!pair) return;
    pair->groups = {group};
    pairs.push_back(*pair);
  };
  if (const auto* m = std::get_if<Mlp>(&spec.mlp)) add(*m, before.runs.front(), 0);
  if (const auto* e = std::get_if<Experts>(&spec.mlp))
    for (std::size_t g = 0; g < step.groups.size(); ++g) {
      const Mlp& mlp = step.groups[g].expert < 0
                           ? *e->shared
                           : e->experts[static_cast<std::size_t>(step.groups[g].expert)];
      add(mlp, step.groups[g].linears.front() - mlp.in.size(), g);
    }
  return pairs;
}

std::vector<std::size_t> groups_of(const Step& step, std::size_t panel) {
  std::vector<std::size_t> groups;
  for (std::size_t g = 0; g < step.groups.size(); ++g)
    if (step.groups[g].panel == panel) groups.push_back(g);
  return groups;
}

// Of each panel of the first step's input, the norm that makes it. Where there are two, they are
// judged by their linears: what the half gives depends on both.
std::vector<ScalingPair> from_norms(const LayerSpec& spec, const Step& step) {
  std::vector<ScalingPair> pairs;
  std::optional<ScalingPair> pair = from_norm(spec, step.part);
  const auto* e = std::get_if<Experts>(&spec.mlp);
  const bool apart = step.part == Part::mlp && e != nullptr && e->norm;
  if (apart) {
    ScalingPair of_experts;
    of_experts.norm = e->norm;
    of_experts.groups = groups_of(step, 0);
    if (e->norm->weight) pairs.push_back(of_experts);
    if (pair) pair->inspected = Inspected::linears;
  }
  if (pair) {
    pair->groups = groups_of(step, apart ? 1 : 0);
    if (!pair->groups.empty()) pairs.push_back(*pair);
  }
  return pairs;
}

// The norms of latents, each of which one linear reads.
std::vector<ScalingPair> from_latents(const LatentAttention& a, const Step& step) {
  std::vector<ScalingPair> pairs;
  for (std::size_t g = 0; g < step.groups.size(); ++g) {
    ScalingPair pair;
    pair.norm = step.groups[g].panel == 0 ? a.q_norm : a.kv_norm;
    pair.groups = {g};
    pairs.push_back(pair);
  }
  return pairs;
}

}  // namespace

std::vector<ScalingPair> scaling_pairs(const LayerSpec& spec) {
  std::vector<ScalingPair> pairs;
  const std::vector<Step> steps = layer_steps(spec);
  for (std::size_t i = 0; i < steps.size(); ++i) {
    const Step& step = steps[i];
    if (step.groups.empty()) continue;
    std::vector<ScalingPair> of_step;
    if (step.number == 0) of_step = from_norms(spec, step);
    if (step.number == 1 && step.part == Part::mixer)
      if (const std::optional<ScalingPair> pair = from_values(spec)) of_step.push_back(*pair);
    if (const auto* a = std::get_if<LatentAttention>(&spec.mixer);
        a != nullptr && step.number == 1 && step.part == Part::mixer)
      of_step = from_latents(*a, step);
    if (step.number == 1 && step.part == Part::mlp) of_step = from_ups(spec, steps[i - 1], step);
    for (ScalingPair& pair : of_step) {
      pair.step = i;
      for (const std::size_t g : pair.groups)
        pair.linears.insert(pair.linears.end(), step.groups[g].linears.begin(),
                            step.groups[g].linears.end());
      pairs.push_back(std::move(pair));
    }
  }
  return pairs;
}

bool is_inspected(Inspected inspected, Part part) {
  switch (inspected) {
    case Inspected::mixer: return part == Part::mixer;
    case Inspected::mlp: return part == Part::mlp;
    case Inspected::mixer_and_mlp: return part != Part::per_layer;
    case Inspected::linears: return false;
  }
  return false;
}

std::vector<std::size_t> inspected_linears(const LayerSpec& spec, const ScalingPair& pair) {
  if (pair.inspected == Inspected::linears) return pair.linears;
  std::vector<std::size_t> linears;
  for (const Step& step : layer_steps(spec))
    if (is_inspected(pair.inspected, step.part))
      linears.insert(linears.end(), step.runs.begin(), step.runs.end());
  return linears;
}

std::string source_name(const LayerSpec& spec, const ScalingPair& pair) {
  return pair.norm ? pair.norm->name : layer_linears(spec)[pair.source_linear].name;
}

}  // namespace qpipe
