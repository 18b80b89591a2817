#include "pipeline/options/option_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <type_traits>

#include "pipeline/options/options_visit.h"

namespace qpipe {

namespace {

std::string section_of(const std::string& key) { return key.substr(0, key.find('.')); }
std::string name_in_section(const std::string& key) { return key.substr(key.find('.') + 1); }

template <class Value, class Rule>
std::string type_name() {
  if constexpr (std::is_same_v<Value, bool> || std::is_same_v<Rule, OptionalBoolean>)
    return "boolean";
  if constexpr (std::is_same_v<Value, std::int64_t>) return "integer";
  if constexpr (std::is_same_v<Value, double>) return "number";
  if constexpr (is_tables<Value>) return "tables";
  return "string";
}

// Calls write(field, value) for what the entry sets; symmetric as a boolean.
void visit_what_is_set(const auto& entry, const auto& write) {
  visit_entry(entry, [&](const std::string& field, const auto& value, const auto& rule, const char*,
                         const char*) {
    if (value == std::remove_cvref_t<decltype(value)>{}) return;
    if constexpr (std::is_same_v<decltype(rule), const OptionalBoolean&>)
      write(field, value == "true");
    else
      write(field, value);
  });
}

std::string help_line(const std::string& name, const std::string& type, const std::string& value,
                      const std::string& unit, const std::string& allowed,
                      const std::string& help) {
  std::string line = fmt::format("  {:<19} {:<8} {:<13} {:<15} {}", name, type, value, unit, help);
  if (!allowed.empty()) line += " (" + allowed + ")";
  return line + "\n";
}

}  // namespace

std::string as_toml_value(const std::string& value) {
  // JSON's escapes are TOML's; TOML wants DEL escaped, too.
  std::string text =
      nlohmann::json(value).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  for (std::size_t at = text.find('\x7f'); at != std::string::npos; at = text.find('\x7f', at))
    text.replace(at, 1, "\\u007F");
  return text;
}

std::string as_toml_value(std::int64_t value) { return std::to_string(value); }

std::string as_toml_value(double value) {
  const std::string text = fmt::format("{}", value);
  return text.find_first_of(".en") == std::string::npos ? text + ".0" : text;
}

std::string as_toml_value(bool value) { return value ? "true" : "false"; }

namespace {

std::string as_toml(const Options& options, const std::function<bool(const std::string&)>& shown) {
  std::string text;
  std::string section;
  visit_options(options,
                [&](const std::string& key, const auto& value, auto&&, const char*, const char*) {
                  if (!shown(key)) return;
                  if (section_of(key) != section) {
                    section = section_of(key);
                    text += (text.empty() ? "[" : "\n[") + section + "]\n";
                  }
                  if constexpr (is_tables<std::remove_cvref_t<decltype(value)>>) {
                    for (const auto& entry : value) {
                      text += "\n[[" + key + "]]\n";
                      visit_what_is_set(entry, [&](const std::string& field, const auto& set) {
                        text += field + " = " + as_toml_value(set) + "\n";
                      });
                    }
                  } else {
                    text += name_in_section(key) + " = " + as_toml_value(value) + "\n";
                  }
                });
  return text;
}

}  // namespace

std::string options_as_toml(const Options& options) {
  return as_toml(options, [](const std::string&) { return true; });
}

std::string changed_options_as_toml(const Options& options,
                                    const std::function<bool(const std::string&)>& shown) {
  const nlohmann::json values = options_as_json(options);
  const nlohmann::json defaults = options_as_json(Options{});
  const auto value = [](const nlohmann::json& all, const std::string& key) {
    return all.at(section_of(key)).at(name_in_section(key));
  };
  return as_toml(options, [&](const std::string& key) {
    return shown(key) && value(values, key) != value(defaults, key);
  });
}

nlohmann::json options_as_json(const Options& options) {
  nlohmann::json json = nlohmann::json::object();
  visit_options(
      options, [&](const std::string& key, const auto& value, auto&&, const char*, const char*) {
        nlohmann::json& at = json[section_of(key)][name_in_section(key)];
        if constexpr (is_tables<std::remove_cvref_t<decltype(value)>>) {
          at = nlohmann::json::array();
          for (const auto& entry : value) {
            nlohmann::json& element = at.emplace_back(nlohmann::json::object());
            visit_what_is_set(
                entry, [&](const std::string& field, const auto& set) { element[field] = set; });
          }
        } else {
          at = value;
        }
      });
  return json;
}

std::string options_help() {
  const Options defaults;
  std::string text = help_line("option", "type", "default", "unit", "", "meaning (values allowed)");
  std::string section;
  visit_options(defaults, [&](const std::string& key, const auto& value, const auto& rule,
                              const char* unit, const char* help) {
    using Value = std::remove_cvref_t<decltype(value)>;
    using Rule = std::remove_cvref_t<decltype(rule)>;
    if (section_of(key) != section) {
      section = section_of(key);
      text += "\n[" + section + "]\n";
    }
    if constexpr (is_tables<Value>) {
      text += help_line(name_in_section(key), "tables", "none", unit, "",
                        std::string(help) + "; each [[" + key + "]] has the keys:");
      const typename Value::value_type entry;
      visit_entry(entry, [&](const std::string& field, const auto& unset, const auto& entry_rule,
                             const char* entry_unit, const char* entry_help) {
        using EntryType = std::remove_cvref_t<decltype(unset)>;
        text += help_line(
            "  " + field, type_name<EntryType, std::remove_cvref_t<decltype(entry_rule)>>(),
            field == "skip" ? "false" : "unset", entry_unit, entry_rule.text(), entry_help);
      });
    } else {
      text += help_line(name_in_section(key), type_name<Value, Rule>(),
                        std::is_same_v<Rule, Required> && as_toml_value(value) == "\"\""
                            ? "none"
                            : as_toml_value(value),
                        unit, rule.text(), help);
    }
  });
  return text;
}

}  // namespace qpipe
