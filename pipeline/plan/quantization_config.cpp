#include "pipeline/plan/quantization_config.h"

#include <algorithm>
#include <map>
#include <set>
#include <string_view>
#include <tuple>
#include <utility>

#include "pipeline/files/pattern.h"
#include "pipeline/plan/format_choice.h"
#include "pipeline/plan/module_names.h"
#include "stages/formats/awq_format.h"
#include "stages/formats/compressed_tensors_format.h"
#include "stages/formats/fp8_format.h"

namespace qpipe {

namespace {

using Json = nlohmann::json;

std::vector<std::string> quantizable(const QuantizePlan& plan) {
  const std::set<std::string> others(plan.unquantized.begin(), plan.unquantized.end());
  std::vector<std::string> names;
  for (const auto& [module, settings] : plan.modules)
    if (!others.contains(module)) names.push_back(module);
  return names;
}

std::vector<std::string> joined(std::vector<std::string> names,
                                const std::vector<std::string>& more) {
  names.insert(names.end(), more.begin(), more.end());
  return names;
}

// What lies beside the layers, under the names that loaders may have for it.
std::vector<std::string> roots_of(const QuantizePlan& plan) {
  return roots_beside(plan.unquantized, plan.layer_prefix, quantizable(plan));
}

// --- GPTQModel's `dynamic`

// What an override says, as the value of a "+:" rule.
Json rule_of(const ModuleOverride& o) {
  Json rule = Json::object();
  if (o.bits != 0) rule["bits"] = o.bits;
  if (o.group_size != 0) rule["group_size"] = o.group_size;
  if (!o.symmetric.empty()) rule["sym"] = o.symmetric == "true";
  return rule;
}

// The difference to the defaults, as the value of a "+:" rule.
Json rule_of(const LinearSettings& s, const LinearSettings& defaults) {
  Json rule = Json::object();
  if (s.bits != defaults.bits) rule["bits"] = s.bits;
  if (s.group_size != defaults.group_size) rule["group_size"] = s.group_size;
  if (s.symmetric != defaults.symmetric) rule["sym"] = s.symmetric;
  return rule;
}

using Rules = std::vector<std::pair<std::string, Pattern>>;  // by key

Rules rules_of(const Json& dynamic) {
  Rules rules;
  for (const auto& [key, value] : dynamic.items())
    rules.emplace_back(key, Pattern(key.substr(2), Anchor::begin));
  return rules;
}

// The key of the first rule that matches, as loaders go through them; "" without one.
std::string rule_for(const Rules& rules, const std::string& module) {
  for (const auto& [key, pattern] : rules)
    if (pattern.matches(module)) return key;
  return {};
}

auto settings_key(const LinearSettings& s) {
  return std::tuple(s.skip, s.bits, s.group_size, s.symmetric);
}

// Modules, and servers' names for several, that the override's pattern matches and whose settings
// are others: kept linears, and those of an earlier override.
std::vector<std::string> not_of(const ModuleOverride& o, const QuantizePlan& plan) {
  LinearSettings settings = plan.defaults;
  apply_override(o, settings);
  const auto is_other = [&](const std::string& module) {
    return settings_key(plan.modules.at(module)) != settings_key(settings);
  };
  std::vector<std::string> names;
  for (const auto& [module, its] : plan.modules)
    if (is_other(module)) names.push_back(module);
  for (const FusedModule& fused : fused_modules(quantizable(plan)))
    if (std::all_of(fused.members.begin(), fused.members.end(), is_other))
      names.push_back(fused.name);
  const Pattern pattern(o.match, Anchor::anywhere);
  std::erase_if(names, [&](const std::string& name) { return !pattern.matches(name); });
  return names;
}

// Rules for the names under which servers run several linears as one, where the rules of single
// linears do not match them.
Json rules_of_fused_modules(const QuantizePlan& plan, const Json& dynamic) {
  const Rules rules = rules_of(dynamic);
  std::map<std::string, std::vector<std::string>> modules;  // sign and value → names
  for (const FusedModule& fused : fused_modules(quantizable(plan))) {
    const LinearSettings& first = plan.modules.at(fused.members.front());
    const bool agree =
        std::all_of(fused.members.begin(), fused.members.end(), [&](const std::string& member) {
          return settings_key(plan.modules.at(member)) == settings_key(first);
        });
    if (!agree) continue;  // no name that the servers would look for can say so
    const std::string rule = rule_for(rules, fused.name);
    if (rule == rule_for(rules, fused.members.front())) continue;
    if (first.skip)
      modules["-:"].push_back(fused.name);
    else
      modules["+:" + rule_of(first, plan.defaults).dump()].push_back(fused.name);
  }
  Json result = Json::object();
  for (const auto& [rule, names] : modules)
    for (const std::string& pattern : patterns_of(names, plan.layer_prefix, {}))
      result[rule.substr(0, 2) + pattern] =
          rule.size() == 2 ? Json::object() : Json::parse(rule.substr(2));
  return result;
}

// "-:" rules for the modules that are no linears of the decoder.
Json rules_of_unquantized(const QuantizePlan& plan) {
  std::vector<std::string> names = plan.unquantized;
  for (const FusedModule& fused : fused_modules(plan.unquantized)) names.push_back(fused.name);
  Json rules = Json::object();
  for (const std::string& pattern : patterns_of(names, plan.layer_prefix, quantizable(plan)))
    rules["-:" + pattern] = Json::object();
  const std::vector<std::string> roots = roots_of(plan);
  if (!roots.empty()) rules["-:" + has_root(roots)] = Json::object();
  return rules;
}

// Modules with settings of their own; null without any.
Json dynamic_json(const std::vector<ModuleOverride>& overrides, const QuantizePlan& plan) {
  if (overrides.empty() && plan.unquantized.empty()) return nullptr;
  const std::vector<std::string> roots = roots_of(plan);
  const std::string decoder_only = roots.empty() ? "" : "(?!" + has_root(roots) + ")";
  Json dynamic = Json::object();
  for (const ModuleOverride& o : overrides) {
    // GPTQModel anchors its patterns at the start of the name.
    const std::string pattern = ".*(?:" + o.match + ")";
    if (o.skip) {
      dynamic["-:" + pattern] = Json::object();
      continue;
    }
    // The keys are sorted, so a rule must not count on those before it.
    std::string others;
    for (const std::string& other : patterns_of(not_of(o, plan), plan.layer_prefix, {}))
      others += "(?!" + other + ")";
    dynamic["+:" + decoder_only + others + pattern] = rule_of(o);
  }
  if (!dynamic.empty()) dynamic.update(rules_of_fused_modules(plan, dynamic));
  dynamic.update(rules_of_unquantized(plan));
  return dynamic;
}

// --- lists of names

// transformers calls Nemotron-H's `backbone` `model`: names that it looks for stand in both forms.
std::vector<std::string> with_both_roots(std::vector<std::string> names) {
  constexpr std::string_view root = "backbone.";
  for (std::size_t i = 0, count = names.size(); i < count; ++i)
    if (names[i].starts_with(root)) names.push_back("model." + names[i].substr(root.size()));
  return names;
}

// Lists that loaders search for beginnings or parts of their own names. transformers has another
// name than the checkpoint for many a tower's inside, and "model." before it: the tower's own name
// in both forms says it all. None that is a part of a decoder linear's name.
std::vector<std::string> with_towers(const QuantizePlan& plan, std::vector<std::string> names) {
  for (const std::string& root : roots_of(plan)) {
    const bool of_a_layer = root.find('.') != std::string::npos;
    const bool in_decoder = std::any_of(
        plan.modules.begin(), plan.modules.end(),
        [&](const auto& module) { return module.first.find(root) != std::string::npos; });
    if (of_a_layer || in_decoder) continue;
    names.push_back(root);
    names.push_back("model." + root);
  }
  return names;
}

// The head is not quantized, stored or tied; transformers calls it lm_head wherever it stands.
std::vector<std::string> with_head(const QuantizePlan& plan, std::vector<std::string> names) {
  names.emplace_back("lm_head");
  if (plan.lm_head != names.back()) names.push_back(plan.lm_head);
  return names;
}

// compressed-tensors matches whole names, and transformers has others for the towers than the
// checkpoint: an expression for what lies beside the layers stands after the names.
std::vector<std::string> ignore_list(const QuantizePlan& plan) {
  std::vector<std::string> names = with_both_roots(joined(plan.skipped(), plan.unquantized));
  const std::vector<std::string> roots = roots_of(plan);
  if (!roots.empty()) names.push_back("re:" + has_root(roots));
  return names;
}

// bitsandbytes' loaders look for the fused names alone.
std::vector<std::string> skip_list(const QuantizePlan& plan) {
  const std::vector<std::string> skipped = joined(plan.skipped(), plan.unquantized);
  const std::set<std::string> stay(skipped.begin(), skipped.end());
  std::vector<std::string> names = skipped;
  for (const FusedModule& fused : fused_modules(joined(quantizable(plan), plan.unquantized)))
    if (std::all_of(fused.members.begin(), fused.members.end(),
                    [&](const std::string& member) { return stay.contains(member); }))
      names.push_back(fused.name);
  return with_towers(plan, with_both_roots(std::move(names)));
}

Json awq_json(const QuantizePlan& plan) {
  Json json = awq_config_json(plan.defaults.group_size, with_both_roots(plan.skipped()));
  if (plan.unquantized.empty()) return json;
  json["modules_to_not_convert"] =
      with_head(plan, with_towers(plan, with_both_roots(joined(plan.skipped(), plan.unquantized))));
  if (!json.contains("dynamic")) json["dynamic"] = Json::object();
  json["dynamic"].update(rules_of_unquantized(plan));
  return json;
}

// compressed-tensors: a group of its own for every override; names are preferred to the class
// "Linear".
std::vector<CtGroup> ct_groups(const std::vector<ModuleOverride>& overrides,
                               const LinearSettings& settings) {
  std::vector<CtGroup> groups{{{"Linear"}, settings}};
  for (const ModuleOverride& o : overrides) {
    if (o.skip) continue;
    CtGroup group{{"re:.*(?:" + o.match + ")"}, settings};
    apply_override(o, group.settings);
    groups.push_back(group);
  }
  return groups;
}

CtFormat ct_format(Codec codec) {
  switch (codec) {
    case Codec::float8_rows: return CtFormat::float_quantized;
    case Codec::nvfp4: return CtFormat::nvfp4_pack_quantized;
    case Codec::mxfp4: return CtFormat::mxfp4_pack_quantized;
    default: return CtFormat::pack_quantized;
  }
}

}  // namespace

Json quantization_config(const Options& options, const QuantizePlan& plan) {
  const StorageSettings& storage = plan.storage;
  const std::vector<ModuleOverride>& overrides = options.quantize.overrides;
  switch (storage.format) {
    case Format::gptq:
    case Format::gptq_v2:
      return gptq_config_json(
          {plan.defaults, storage.format == Format::gptq ? GptqFormat::v1 : GptqFormat::v2,
           options.quantize.true_sequential, dynamic_json(overrides, plan), QPIPE_VERSION});
    case Format::awq: return awq_json(plan);
    case Format::compressed_tensors: {
      CtConfig config;
      config.format = ct_format(storage.codec);
      config.groups = storage.codec == Codec::integer
                          ? ct_groups(overrides, plan.defaults)
                          : std::vector<CtGroup>{{{"Linear"}, plan.defaults}};
      config.ignore = with_head(plan, ignore_list(plan));
      return ct_config_json(config);
    }
    case Format::bitsandbytes: {
      BnbConfig config;
      if (storage.codec != Codec::int8_rows) config.four_bit = storage.four_bit;
      config.compute_dtype = options.bnb.compute_dtype == "auto"
                                 ? storage.dtype
                                 : dtype_named(options.bnb.compute_dtype);
      const std::vector<std::string> names = skip_list(plan);
      if (!names.empty()) config.skip_modules = with_head(plan, names);
      return bnb_config_json(config);
    }
    case Format::fp8:
      return fp8_config_json(
          with_head(plan, with_towers(plan, joined(plan.skipped(), plan.unquantized))));
  }
  return nullptr;
}

}  // namespace qpipe
