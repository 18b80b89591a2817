#include "stages/awq_pairs.h"

namespace qpipe {

namespace {

ScalingPair from_norm(const Step& step, ScaleSource source, Inspected inspected) {
  return {step.kind, source, 0, 0, step.linears, inspected};
}

ScalingPair from_linear(const Step& step, std::size_t source, std::int64_t first_row) {
  return {step.kind, ScaleSource::linear, source, first_row, step.linears, Inspected::linears};
}

}  // namespace

std::vector<ScalingPair> scaling_pairs(const Architecture& a) {
  std::vector<ScalingPair> pairs;
  for (const Step& step : layer_steps(a)) switch (step.kind) {
      case StepKind::attention_in:
        pairs.push_back(
            from_norm(step, ScaleSource::attention_norm,
                      a.shared_norm ? Inspected::attention_and_mlp : Inspected::attention));
        break;
      case StepKind::attention_out: {
        const LinearSpec& v = a.qkv.back();
        if (a.qkv.size() == 3 && v.out_features == a.attention_out.in_features &&
            v.in_features == a.attention_out.out_features)
          pairs.push_back(from_linear(step, 2, 0));
        break;
      }
      case StepKind::mlp_in:
        if (!step.linears.empty())
          pairs.push_back(from_norm(step, ScaleSource::mlp_norm, Inspected::mlp));
        break;
      case StepKind::mlp_out:
        if (a.gated_mlp || a.activation == Activation::relu)
          pairs.push_back(
              from_linear(step, step.linears.front() - 1, a.mlp_in.back().out_features - a.ffn));
        break;
    }
  return pairs;
}

std::vector<std::size_t> inspected_linears(const Architecture& a, const ScalingPair& pair) {
  if (pair.inspected == Inspected::linears) return pair.linears;
  std::vector<std::size_t> linears;
  const auto add = [&](StepKind kind) {
    for (const std::size_t i : run_linears(a, kind)) linears.push_back(i);
  };
  if (pair.inspected != Inspected::mlp) {
    add(StepKind::attention_in);
    add(StepKind::attention_out);
  }
  if (pair.inspected != Inspected::attention) {
    add(StepKind::mlp_in);
    add(StepKind::mlp_out);
  }
  return linears;
}

std::string source_name(const Architecture& a, const ScalingPair& pair) {
  switch (pair.source) {
    case ScaleSource::attention_norm: return a.names.attention_norm;
    case ScaleSource::mlp_norm: return a.names.mlp_norm;
    case ScaleSource::linear: return all_linears(a)[pair.source_linear].name;
  }
  return {};
}

}  // namespace qpipe
