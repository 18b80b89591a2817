#include "pipeline/commands/verify_skipped.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "pipeline/files/error.h"

namespace qpipe {

namespace {

using Json = nlohmann::json;

Json value_of(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found == object.end() ? Json() : *found;
}

}  // namespace

bool SkipRules::Rule::matches(const std::string& module) const {
  return pattern != nullptr ? pattern->matches(module) : name == module;
}

void SkipRules::add_expression(const std::string& text, bool skips, std::vector<Rule>& rules) {
  try {
    const auto known = patterns_.find(text);
    const Pattern& pattern =
        known != patterns_.end()
            ? known->second
            : patterns_.emplace(text, Pattern(text, Anchor::begin)).first->second;
    rules.push_back({text, &pattern, skips});
  } catch (const UserError& error) {
    faults_.emplace_back(error.what());
  }
}

void SkipRules::add_list(const Json& list, bool with_expressions, std::vector<Rule>& rules) {
  if (!list.is_array()) return;
  for (const Json& entry : list) {
    if (!entry.is_string()) continue;
    const auto& name = entry.get_ref<const std::string&>();
    if (with_expressions && name.starts_with("re:"))
      add_expression(name.substr(3), true, rules);
    else
      rules.push_back({name});
  }
}

SkipRules::SkipRules(StoredFormat format, const Json& quantization) : format_(format) {
  switch (format) {
    case StoredFormat::unquantized: break;
    case StoredFormat::gptq_v1:
    case StoredFormat::gptq_v2: {
      const Json dynamic = value_of(quantization, "dynamic");
      if (dynamic.is_object())
        for (const auto& [rule, value] : dynamic.items()) {
          const bool has_sign = rule.starts_with("-:") || rule.starts_with("+:");
          add_expression(has_sign ? rule.substr(2) : rule, rule.starts_with("-:"), dynamic_);
        }
      const Json chosen = value_of(quantization, "modules_in_block_to_quantize");
      if (!chosen.is_array() || chosen.empty()) break;
      all_are_targets_ = false;
      for (const Json& group : chosen)
        add_list(group.is_array() ? group : Json::array({group}), false, targets_);
      break;
    }
    case StoredFormat::awq:
    case StoredFormat::fp8:
    case StoredFormat::mxfp4:
      add_list(value_of(quantization, "modules_to_not_convert"), false, skipped_);
      break;
    case StoredFormat::ct_integer:
    case StoredFormat::ct_float8:
    case StoredFormat::ct_nvfp4:
    case StoredFormat::ct_mxfp4: {
      add_list(value_of(quantization, "ignore"), true, skipped_);
      all_are_targets_ = false;
      const Json groups = value_of(quantization, "config_groups");
      if (!groups.is_object()) break;
      for (const Json& group : groups)
        if (group.is_object()) add_list(value_of(group, "targets"), true, targets_);
      all_are_targets_ = std::any_of(targets_.begin(), targets_.end(),
                                     [](const Rule& rule) { return rule.name == "Linear"; });
      break;
    }
    case StoredFormat::bnb_four_bit:
    case StoredFormat::bnb_int8:
      add_list(value_of(quantization, "llm_int8_skip_modules"), false, skipped_);
      break;
  }
}

bool SkipRules::skip(const std::string& module) const {
  const auto any_matches = [&](const std::vector<Rule>& rules) {
    return std::any_of(rules.begin(), rules.end(),
                       [&](const Rule& rule) { return rule.matches(module); });
  };
  const auto any_is_part = [&](const std::vector<Rule>& rules) {
    return std::any_of(rules.begin(), rules.end(), [&](const Rule& rule) {
      return module.find(rule.name) != std::string::npos;
    });
  };
  switch (format_) {
    case StoredFormat::unquantized: return true;
    case StoredFormat::gptq_v1:
    case StoredFormat::gptq_v2: {
      const auto first = std::find_if(dynamic_.begin(), dynamic_.end(),
                                      [&](const Rule& rule) { return rule.matches(module); });
      if (first != dynamic_.end()) return first->skips;
      return !all_are_targets_ && !any_is_part(targets_);
    }
    case StoredFormat::awq:
    case StoredFormat::fp8:
    case StoredFormat::mxfp4:
    case StoredFormat::bnb_four_bit:
    case StoredFormat::bnb_int8: return any_is_part(skipped_);
    case StoredFormat::ct_integer:
    case StoredFormat::ct_float8:
    case StoredFormat::ct_nvfp4:
    case StoredFormat::ct_mxfp4:
      return any_matches(skipped_) || !(all_are_targets_ || any_matches(targets_));
  }
  throw std::logic_error("SkipRules: no such format");
}

std::vector<std::string> SkipRules::faults(const std::string& where) const {
  std::vector<std::string> lines;
  lines.reserve(faults_.size());
  for (const std::string& fault : faults_)
    lines.push_back(fmt::format("{}: quantization_config: the expression {}", where, fault));
  return lines;
}

}  // namespace qpipe
