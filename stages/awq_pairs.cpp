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

std::optional<ScalingPair> from_up(const LayerSpec& spec, std::size_t first_linear) {
  const auto* m = std::get_if<Mlp>(&spec.mlp);
  if (m == nullptr || m->xielu || !(m->gated || m->activation == Activation::relu))
    return std::nullopt;
  ScalingPair pair;
  pair.source_linear = first_linear + m->in.size() - 1;
  pair.source_first_row = m->in.back().out_features - m->width();
  return pair;
}

}  // namespace

std::vector<ScalingPair> scaling_pairs(const LayerSpec& spec) {
  std::vector<ScalingPair> pairs;
  const std::vector<Step> steps = layer_steps(spec);
  for (std::size_t i = 0; i < steps.size(); ++i) {
    const Step& step = steps[i];
    if (step.groups.empty()) continue;
    std::optional<ScalingPair> pair;
    if (step.number == 0) pair = from_norm(spec, step.part);
    if (step.number == 1 && step.part == Part::mixer) pair = from_values(spec);
    if (step.number == 1 && step.part == Part::mlp) pair = from_up(spec, steps[i - 1].runs.front());
    if (!pair) continue;
    pair->step = i;
    pair->linears = step.groups.front().linears;
    pairs.push_back(*pair);
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
