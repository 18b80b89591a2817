#include "pipeline/plan.h"

#include <fmt/format.h>

#include <regex>

#include "kernels/clip_search.h"
#include "pipeline/error.h"
#include "pipeline/layer_source.h"
#include "pipeline/shard_plan.h"
#include "stages/clip.h"

namespace qpipe {

namespace {

LinearSettings default_settings(const Options& options) {
  const Options::Quantize& o = options.quantize;
  const bool awq = o.method == "awq";
  LinearSettings s;
  s.method = (awq ? options.awq.rounding : o.method) == "rtn" ? Method::rtn : Method::gptq;
  s.bits = static_cast<int>(o.bits);
  s.group_size = o.group_size;
  s.symmetric = awq ? !options.awq.zero_point : o.symmetric;
  s.desc_act = s.method == Method::gptq && o.desc_act;
  s.static_groups = s.method == Method::gptq && o.static_groups;
  s.act_group_aware = s.method == Method::gptq && o.act_group_aware;
  s.mse_norm = static_cast<float>(o.mse);
  s.damp_percent = o.damp_percent;
  s.damp_increment = o.damp_auto_increment;
  return s;
}

void apply(const ModuleOverride& o, LinearSettings& s) {
  s.skip = o.skip;
  if (o.bits != 0) s.bits = static_cast<int>(o.bits);
  if (o.group_size != 0) s.group_size = o.group_size;
  if (!o.symmetric.empty()) s.symmetric = o.symmetric == "true";
}

void check_sizes(const std::string& module, const LinearSpec& linear, const LinearSettings& s) {
  const auto fault = [&](const std::string& message) {
    throw UserError(ExitCode::config, fmt::format("{} (out {}, in {}): {}", module, linear.out_features, linear.in_features, message));
  };
  if (s.group_size > 0 && linear.in_features % s.group_size != 0) {
    std::string sizes;
    for (const std::int64_t g : {32, 64, 96, 128, 192, 256, 512, 1024})
      if (linear.in_features % g == 0) sizes += fmt::format("{}, ", g);
    fault(fmt::format("quantize.group_size = {} does not divide the {} inputs; use {}or -1", s.group_size, linear.in_features, sizes));
  }
  if (linear.in_features % 32 != 0 || linear.out_features % 32 != 0)
    fault("GPTQ packs 32 values at a time, and a size is no multiple of 32; add an entry to quantize.overrides with skip = true for it");
}

void check_clip(const std::string& module, const LinearSpec& linear, const LinearSettings& s) {
  if (s.group_columns(linear.in_features) > largest_clip_group)
    throw UserError(ExitCode::config,
                    fmt::format("{}: awq.clip needs groups of at most {} inputs, and quantize.group_size = {}; choose a smaller "
                                "group or set awq.clip = false",
                                module, largest_clip_group, s.group_size));
}

TensorInfo as_info(const NamedTensor& tensor) { return {tensor.name, tensor.dtype, tensor.shape}; }

}  // namespace

QuantizePlan plan_quantization(const Options& options, const Architecture& architecture, const Checkpoint& checkpoint) {
  QuantizePlan plan;
  plan.defaults = default_settings(options);
  plan.dtype = options.output.dtype == "bfloat16" ? DType::bf16 : DType::f16;
  plan.awq = options.quantize.method == "awq";
  plan.quantized_propagation = options.quantize.propagate == "auto" ? !plan.awq : options.quantize.propagate == "quantized";
  plan.max_shard_bytes = parse_size(options.output.max_shard_size);
  plan.format =
      options.output.format == "gptq_v2" || (options.output.format == "auto" && !plan.defaults.symmetric) ? GptqFormat::v2 : GptqFormat::v1;

  std::vector<std::regex> patterns;
  for (const ModuleOverride& o : options.quantize.overrides) patterns.emplace_back(o.match);
  std::vector<bool> used(patterns.size(), false);

  const auto keep = [&](const std::string& name) {
    const TensorInfo& info = checkpoint.info(name);
    plan.tensors.push_back({name, plan.dtype, info.shape});
  };
  keep(architecture.embedding);
  double packed_bits = 0.0;
  double packed_weights = 0.0;
  for (std::int64_t layer = 0; layer < architecture.layers; ++layer) {
    const std::string prefix = layer_prefix(architecture, layer);
    for (const LinearSpec& linear : all_linears(architecture)) {
      const std::string module = prefix + linear.name;
      LinearSettings settings = plan.defaults;
      for (std::size_t i = 0; i < patterns.size(); ++i) {
        if (!std::regex_search(module, patterns[i])) continue;
        apply(options.quantize.overrides[i], settings);
        used[i] = true;
        break;
      }
      plan.modules[module] = settings;
      if (settings.skip) {
        keep(module + ".weight");
      } else {
        check_sizes(module, linear, settings);
        if (plan.awq && options.awq.clip && may_clip(module)) check_clip(module, linear, settings);
        if (!settings.symmetric && plan.format == GptqFormat::v1) plan.may_need_v2 = true;
        for (const NamedTensor& tensor :
             gptq_tensors(module, linear.out_features, linear.in_features, settings.bits, settings.group_size)) {
          plan.tensors.push_back(as_info(tensor));
          packed_bits += 8.0 * static_cast<double>(plan.tensors.back().bytes());
        }
        packed_weights += static_cast<double>(linear.out_features) * static_cast<double>(linear.in_features);
      }
      if (linear.bias) keep(module + ".bias");
    }
    const LayerNames& names = architecture.names;
    for (const std::string& norm : {names.attention_norm, names.mlp_norm, names.q_norm, names.k_norm}) {
      if (norm.empty()) continue;
      keep(prefix + norm + ".weight");
      if (checkpoint.contains(prefix + norm + ".bias")) keep(prefix + norm + ".bias");
    }
  }
  for (std::size_t i = 0; i < used.size(); ++i)
    if (!used[i])
      throw UserError(ExitCode::config, fmt::format("quantize.overrides[{}]: match = \"{}\" matches no module; modules are named like {}",
                                                    i, options.quantize.overrides[i].match, plan.modules.begin()->first));
  keep(architecture.final_norm + ".weight");
  if (checkpoint.contains(architecture.final_norm + ".bias")) keep(architecture.final_norm + ".bias");
  if (!architecture.tied_embeddings) {
    keep(architecture.lm_head + ".weight");
    if (architecture.lm_head_bias) keep(architecture.lm_head + ".bias");
  }
  plan.bits_per_weight = packed_weights > 0.0 ? packed_bits / packed_weights : 0.0;
  return plan;
}

nlohmann::json dynamic_json(const Options& options) {
  if (options.quantize.overrides.empty()) return nullptr;
  nlohmann::json dynamic = nlohmann::json::object();
  for (const ModuleOverride& o : options.quantize.overrides) {
    // GPTQModel anchors its patterns at the start of the name.
    const std::string pattern = ".*(?:" + o.match + ")";
    if (o.skip) {
      dynamic["-:" + pattern] = nlohmann::json::object();
      continue;
    }
    nlohmann::json entry = nlohmann::json::object();
    if (o.bits != 0) entry["bits"] = o.bits;
    if (o.group_size != 0) entry["group_size"] = o.group_size;
    if (!o.symmetric.empty()) entry["sym"] = o.symmetric == "true";
    dynamic["+:" + pattern] = entry;
  }
  return dynamic;
}

}  // namespace qpipe
