#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <functional>
#include <map>
#include <sstream>
#include <type_traits>

#include "pipeline/files/error.h"
#include "pipeline/files/input_file.h"
#include "pipeline/files/suggest.h"
#include "pipeline/files/user_path.h"
#include "pipeline/options/hub_names.h"
#include "pipeline/options/option_text.h"
#include "pipeline/options/options_visit.h"
#include "pipeline/options/toml.h"

namespace qpipe {

namespace {

namespace fs = std::filesystem;

[[noreturn]] void config_fault(const std::string& message) {
  throw UserError(ExitCode::config, message);
}

// Where values came from, as the start of a message: "run.toml:12: " or "--set ".
struct Origins {
  std::string document;  // "run.toml: ", for what is missing in it
  std::map<std::string, std::string> of_key;

  std::string at(const std::string& key) const {
    const auto found = of_key.find(key);
    return found != of_key.end() ? found->second : document;
  }
  void forget_below(const std::string& prefix) {
    std::erase_if(of_key, [&](const auto& entry) { return entry.first.starts_with(prefix); });
  }
};

// Gives the origin of a node: its line in the file, or the --set that holds it.
using Locate = std::function<std::string(const toml::source_region&)>;

struct Entry {
  std::string key;
  const toml::node* node;
  toml::source_region source;  // of the key
};

// In the order of the file, so that the first fault reported is the first to meet there.
std::vector<Entry> entries_in_order(const toml::table& table) {
  std::vector<Entry> entries;
  for (const auto& [key, node] : table)
    entries.push_back({std::string(key.str()), &node, key.source()});
  std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return a.source.begin.line < b.source.begin.line;
  });
  return entries;
}

std::string found_type(const toml::node& node) {
  switch (node.type()) {
    case toml::node_type::string: return "a string";
    case toml::node_type::integer: return "an integer";
    case toml::node_type::floating_point: return "a number with a fraction";
    case toml::node_type::boolean: return "a boolean";
    case toml::node_type::array: return "an array";
    case toml::node_type::table: return "a table";
    default: return "a date or time";
  }
}

// Arrays and tables as JSON: the library's TOML of them counts columns by the logarithms of their
// numbers, which need not fit an integer.
std::string as_written(const toml::node& node) {
  if (const auto string = node.value<std::string>()) return as_toml_value(*string);
  std::ostringstream text;
  node.visit([&](const auto& value) {
    if constexpr (toml::is_container<decltype(value)>)
      text << toml::json_formatter(value);
    else
      text << value;
  });
  std::string result;
  for (const char c : text.str())
    if (const bool space = c == '\n' || c == ' '; !space || !result.ends_with(' '))
      result += space ? ' ' : c;
  constexpr std::size_t longest = 60;
  if (result.size() > longest) result = result.substr(0, longest) + "...";
  return result;
}

// A string that holds a value of the expected type: most likely the quotes are too much.
std::string quotes_hint(const toml::node& node, const std::string& key, bool wants_boolean) {
  const auto text = node.value<std::string>();
  if (!text) return {};
  const bool boolean = *text == "true" || *text == "false";
  const bool number =
      !text->empty() && text->find_first_not_of("+-.0123456789eE") == std::string::npos;
  if (wants_boolean ? !boolean : !number) return {};
  // --set keeps as text what TOML does not take for a number.
  constexpr std::size_t always_fits = 18;
  if (number && text->size() > always_fits &&
      text->find_first_not_of("+-0123456789") == std::string::npos)
    return "; integers have 64 bits";
  return fmt::format("; write {} = {} without quotes", key.substr(key.rfind('.') + 1), *text);
}

[[noreturn]] void wrong_type(const toml::node& node, const std::string& where,
                             const std::string& key, const std::string& expected,
                             const std::string& hint = {}) {
  config_fault(fmt::format("{}{} = {}: expected {}, found {}{}", where, key, as_written(node),
                           expected, found_type(node), hint));
}

[[noreturn]] void refused(const std::string& where, const std::string& key,
                          const std::string& value, const std::string& fault) {
  config_fault(fmt::format("{}{} = {}: {}", where, key, value, fault));
}

template <class Rule>
constexpr bool is_path = std::is_base_of_v<AnyPath, Rule> || std::is_base_of_v<RequiredPath, Rule>;

template <class Rule>
void read_value(const toml::node& node, const std::string& where, const std::string& key,
                bool& value, const Rule&) {
  if (!node.is_boolean())
    wrong_type(node, where, key, "true or false", quotes_hint(node, key, true));
  value = **node.as_boolean();
}

template <class Rule>
void read_value(const toml::node& node, const std::string& where, const std::string& key,
                std::int64_t& value, const Rule&) {
  if (!node.is_integer()) wrong_type(node, where, key, "an integer", quotes_hint(node, key, false));
  value = **node.as_integer();
}

template <class Rule>
void read_value(const toml::node& node, const std::string& where, const std::string& key,
                double& value, const Rule&) {
  if (!node.is_number()) wrong_type(node, where, key, "a number", quotes_hint(node, key, false));
  // Not node.value<double>(), which has nothing to give for integers that a double does not hold.
  value = node.is_integer() ? static_cast<double>(**node.as_integer()) : **node.as_floating_point();
}

template <class Rule>
void read_value(const toml::node& node, const std::string& where, const std::string& key,
                std::string& value, const Rule&) {
  if (!node.is_string()) wrong_type(node, where, key, "a string", "; write it in quotes");
  value = **node.as_string();
  if constexpr (is_path<Rule>) value = user_path(value, where + key);
}

void read_value(const toml::node& node, const std::string& where, const std::string& key,
                std::string& value, const OptionalBoolean& rule) {
  bool boolean = false;
  read_value<OptionalBoolean>(node, where, key, boolean, rule);
  value = boolean ? "true" : "false";
}

template <class Table>
std::vector<std::string> keys_of() {
  std::vector<std::string> keys;
  Table entry;
  visit_entry(entry, [&](const char* key, auto&, auto&&, const char*, const char*) {
    keys.emplace_back(key);
  });
  return keys;
}

template <class Table>
void read_tables(const toml::node& node, const std::string& where, const std::string& key,
                 std::vector<Table>& entries, const Locate& locate, Origins& origins) {
  const toml::array* array = node.as_array();
  const bool tables =
      array != nullptr &&
      std::all_of(array->begin(), array->end(), [](const toml::node& n) { return n.is_table(); });
  if (!tables) wrong_type(node, where, key, "tables", "; write [[" + key + "]] above each entry");
  entries.clear();
  origins.forget_below(key);
  for (const toml::node& element : *array) {
    const std::string name = fmt::format("{}[{}]", key, entries.size());
    Table& entry = entries.emplace_back();
    origins.of_key[name] = origins.of_key[name + "." + keys_of<Table>().front()] =
        locate(element.source());
    for (const Entry& e : entries_in_order(*element.as_table())) {
      const std::string at = locate(e.source);
      bool known = false;
      visit_entry(entry,
                  [&](const char* field, auto& value, const auto& rule, const char*, const char*) {
                    if (e.key != field) return;
                    known = true;
                    read_value(*e.node, at, name + "." + field, value, rule);
                    // Here rather than in validate_options, where 0 is an unset value.
                    const std::string fault = rule.fault(value);
                    if (!fault.empty())
                      refused(at, name + "." + field, as_toml_value(value), fault);
                    origins.of_key[name + "." + field] = at;
                  });
      if (known) continue;
      const std::string near = nearest_name(e.key, keys_of<Table>());
      config_fault(fmt::format("{}{}: unknown key {}; {}", at, name, e.key,
                               near.empty()
                                   ? fmt::format("known are {}", fmt::join(keys_of<Table>(), ", "))
                                   : "did you mean " + near + "?"));
    }
  }
}

std::vector<std::string> all_keys() {
  std::vector<std::string> keys;
  const Options options;
  visit_options(options, [&](const char* key, const auto&, auto&&, const char*, const char*) {
    keys.emplace_back(key);
  });
  return keys;
}

std::string section_of(const std::string& key) { return key.substr(0, key.find('.')); }
std::string name_in_section(const std::string& key) { return key.substr(key.find('.') + 1); }

std::vector<std::string> sections() {
  std::vector<std::string> result;
  for (const std::string& key : all_keys())
    if (result.empty() || result.back() != section_of(key)) result.push_back(section_of(key));
  return result;
}

std::vector<std::string> names_in(const std::string& section) {
  std::vector<std::string> names;
  for (const std::string& key : all_keys())
    if (section_of(key) == section) names.push_back(name_in_section(key));
  return names;
}

// The option called `name` in whatever section has it; "" when none does.
std::string key_elsewhere(const std::string& name) {
  for (const std::string& key : all_keys())
    if (name_in_section(key) == name) return key;
  return {};
}

[[noreturn]] void unknown_key(const std::string& where, const std::string& section,
                              const std::string& name) {
  const std::vector<std::string> names = names_in(section);
  const std::string near = nearest_name(name, names);
  const std::string elsewhere = key_elsewhere(name);
  std::string hint = fmt::format("[{}] has {}", section, fmt::join(names, ", "));
  if (!near.empty())
    hint = "did you mean " + section + "." + near + "?";
  else if (!elsewhere.empty())
    hint = "did you mean " + elsewhere + "?";
  config_fault(fmt::format("{}unknown key {}.{}; {}", where, section, name, hint));
}

[[noreturn]] void unknown_section(const std::string& where, const std::string& section) {
  const std::string near = nearest_name(section, sections());
  config_fault(fmt::format("{}unknown section [{}]; {}", where, section,
                           near.empty()
                               ? fmt::format("known are [{}]", fmt::join(sections(), "], ["))
                               : "did you mean [" + near + "]?"));
}

bool is_section(const std::string& name) {
  const std::vector<std::string> known = sections();
  return std::find(known.begin(), known.end(), name) != known.end();
}

void read_option(Options& options, const std::string& section, const std::string& name,
                 const toml::node& node, const toml::source_region& source, const Locate& locate,
                 Origins& origins) {
  const std::string where = locate(source);
  bool known = false;
  visit_options(options, [&](const std::string& key, auto& value, const auto& rule, const char*,
                             const char*) {
    if (key != section + "." + name) return;
    known = true;
    if constexpr (is_tables<std::remove_cvref_t<decltype(value)>>)
      read_tables(node, where, key, value, locate, origins);
    else
      read_value(node, where, key, value, rule);
    origins.of_key[key] = where;
  });
  if (!known) unknown_key(where, section, name);
}

void read_document(Options& options, const toml::table& document, const Locate& locate,
                   Origins& origins) {
  for (const Entry& section : entries_in_order(document)) {
    const std::string where = locate(section.source);
    if (!is_section(section.key)) {
      const std::string elsewhere = section.node->is_table() ? "" : key_elsewhere(section.key);
      if (!elsewhere.empty())
        config_fault(fmt::format("{}{} is outside of its section; put it under [{}]", where,
                                 section.key, section_of(elsewhere)));
      unknown_section(where, section.key);
    }
    const toml::table* table = section.node->as_table();
    if (table == nullptr)
      wrong_type(*section.node, where, section.key, "a section",
                 "; write [" + section.key + "] above its keys");
    for (const Entry& entry : entries_in_order(*table))
      read_option(options, section.key, entry.key, *entry.node, entry.source, locate, origins);
  }
}

bool is_utf8(const std::string& text) {
  try {
    static_cast<void>(nlohmann::json(text).dump());
    return true;
  } catch (const nlohmann::json::exception&) {
    return false;
  }
}

// The value of --set: TOML where it is TOML, else the text itself. `text_wanted`: the option is a
// string, so that 123 is one, too.
toml::table parse_set_value(const std::string& text, bool text_wanted) {
  try {
    toml::table parsed = toml::parse("value = " + text);
    // One key: a line break in the text cannot bring in others.
    if (parsed.size() == 1 && parsed.contains("value") &&
        (!text_wanted || parsed["value"].is_string()))
      return parsed;
  } catch (const toml::parse_error&) {
  }
  toml::table plain;
  plain.insert("value", text);
  return plain;
}

bool is_text_option(const std::string& key) {
  bool text = false;
  const Options options;
  visit_options(options,
                [&](const char* known, const auto& value, auto&&, const char*, const char*) {
                  if constexpr (std::is_same_v<decltype(value), const std::string&>)
                    text = text || key == known;
                });
  return text;
}

void apply_set(Options& options, const std::string& set, Origins& origins) {
  const std::size_t equals = set.find('=');
  const std::size_t dot = set.find('.');
  const auto trimmed = [](std::string text) {
    text.erase(0, text.find_first_not_of(' '));
    text.erase(text.find_last_not_of(' ') + 1);
    return text;
  };
  if (!is_utf8(set)) throw UserError(ExitCode::usage, "--set: the text is not UTF-8");
  if (equals == std::string::npos)
    throw UserError(ExitCode::usage, fmt::format("--set {}: write --set section.key=value", set));
  const std::string key = trimmed(set.substr(0, equals));
  if (dot == std::string::npos || dot > equals) {
    const std::string elsewhere = key_elsewhere(key);
    config_fault(
        fmt::format("--set {}: the key needs its section: {}", set,
                    elsewhere.empty() ? "section.key=value" : elsewhere + set.substr(equals)));
  }
  if (!is_section(section_of(key))) unknown_section("--set " + key + ": ", section_of(key));
  const toml::table parsed = parse_set_value(set.substr(equals + 1), is_text_option(key));
  const Locate locate = [](const toml::source_region&) { return std::string("--set "); };
  read_option(options, section_of(key), name_in_section(key), *parsed.get("value"),
              parsed.get("value")->source(), locate, origins);
}

std::string read_file(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) {
    std::vector<std::string> beside;
    for (fs::directory_iterator
             it(path.has_parent_path() ? path.parent_path() : fs::path("."), error),
         end;
         !error && it != end; it.increment(error))
      beside.push_back(it->path().filename().string());
    const std::string near = nearest_name(path.filename().string(), beside);
    throw UserError(
        ExitCode::no_input,
        fmt::format(
            "{}: no such file{}", path.string(),
            near.empty() ? "" : "; did you mean " + (path.parent_path() / near).string() + "?"));
  }
  if (fs::is_directory(status))
    throw UserError(ExitCode::no_input, path.string() + ": is a folder; give a TOML file");
  const InputFile file(path);
  constexpr std::int64_t most_bytes = 16 << 20;
  if (file.bytes() > most_bytes)
    config_fault(
        fmt::format("{}: has {} bytes, which no configuration needs (limit {}); give a "
                    "TOML file",
                    path.string(), file.bytes(), most_bytes));
  std::string text(static_cast<std::size_t>(file.bytes()), '\0');
  file.read(text.data(), file.bytes(), 0, "text");
  return text;
}

void require(bool holds, const Origins& origins, const std::string& key, const std::string& value,
             const std::string& fault) {
  if (!holds) refused(origins.at(key), key, value, fault);
}

void check_value(const Origins& origins, const std::string& key, const auto& value,
                 const auto& rule) {
  const std::string fault = rule.fault(value);
  if (fault.empty()) return;
  if constexpr (std::is_base_of_v<Required, std::remove_cvref_t<decltype(rule)>>)
    if (!origins.of_key.contains(key))
      config_fault(fmt::format("{}{} is not set; add {} = \"...\" under [{}]", origins.at(key), key,
                               name_in_section(key), section_of(key)));
  refused(origins.at(key), key, as_toml_value(value), fault);
}

bool needs_calibration(const std::string& method) { return method == "gptq" || method == "awq"; }

void validate(const Options& options, const Origins& origins) {
  visit_options(options, [&](const std::string& key, const auto& value, const auto& rule,
                             const char*, const char*) {
    using Value = std::remove_cvref_t<decltype(value)>;
    if constexpr (is_tables<Value>) {
      const std::string required = keys_of<typename Value::value_type>().front();
      for (std::size_t i = 0; i < value.size(); ++i)
        visit_entry(value[i], [&](const std::string& field, const auto& entry,
                                  const auto& entry_rule, const char*, const char*) {
          const bool is_unset =
              field != required && entry == std::remove_cvref_t<decltype(entry)>{};
          if (!is_unset)
            check_value(origins, fmt::format("{}[{}].{}", key, i, field), entry, entry_rule);
        });
    } else {
      check_value(origins, key, value, rule);
    }
  });

  const auto check_tokens = [&](const std::string& section, std::int64_t samples,
                                std::int64_t seqlen) {
    require(samples * seqlen <= most_tokens, origins, section + ".samples", as_toml_value(samples),
            fmt::format("with {}.seqlen = {} that is more than {} tokens; lower one of them",
                        section, seqlen, most_tokens));
  };
  check_tokens("calibration", options.calibration.samples, options.calibration.seqlen);
  check_tokens("evaluate", options.evaluate.samples, options.evaluate.seqlen);

  const Options::Quantize& quantize = options.quantize;
  for (std::size_t i = 0; i < quantize.overrides.size(); ++i) {
    const ModuleOverride& entry = quantize.overrides[i];
    const bool sets_something =
        entry.bits != 0 || entry.group_size != 0 || !entry.symmetric.empty();
    require(!entry.skip || !sets_something, origins, fmt::format("quantize.overrides[{}].skip", i),
            "true",
            "the module stays unquantized, so that its bits, group_size and symmetric have no "
            "use; remove them");
  }
  require(!quantize.desc_act || !quantize.act_group_aware, origins, "quantize.act_group_aware",
          "true",
          "cannot be combined with quantize.desc_act = true; choose one order of the columns");
  const auto aims_at_original = [&](bool possible, const std::string& why) {
    require(quantize.target != "original" || possible, origins, "quantize.target", "\"original\"",
            why);
  };
  aims_at_original(quantize.method == "gptq",
                   "is gptq's; remove it, or set quantize.method = \"gptq\"");
  aims_at_original(quantize.propagate != "original",
                   "has no use with quantize.propagate = \"original\", where every layer has the "
                   "original model's input; remove one of them");
  aims_at_original(quantize.true_sequential,
                   "needs quantize.true_sequential = true; remove one of them");
  const bool awq = quantize.method == "awq";
  require(!awq || !quantize.desc_act, origins, "quantize.desc_act", "true",
          "is gptq's; awq keeps the columns in place, so remove it");
  require(!awq || quantize.mse <= 0.0, origins, "quantize.mse", as_toml_value(quantize.mse),
          "is gptq's and rtn's; awq has awq.clip in its place, so remove it");
  require(options.calibration.mix.empty() || options.calibration.data.empty(), origins,
          "calibration.data", as_toml_value(options.calibration.data),
          "and [[calibration.mix]] are both given; make it one entry of the mix");
  std::error_code error;
  const fs::path model = fs::weakly_canonical(options.model.path, error);
  const fs::path output = fs::weakly_canonical(options.output.path, error);
  require(model / "" != output / "", origins, "output.path", as_toml_value(options.output.path),
          "is the folder of model.path; give another one, the original is not overwritten");
}

void check_input(const Origins& origins, const std::string& key, const std::string& value,
                 bool folder) {
  const fs::path path(value);
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  const auto fault = [&](const std::string& message) {
    throw UserError(ExitCode::no_input, fmt::format("{}{} = {}: {}", origins.at(key), key,
                                                    as_toml_value(value), message));
  };
  if (!folder && hub_data(value, origins.at(key) + key + " = ")) return;
  if (!fs::exists(status)) {
    if (folder && hub_model(value)) return;  // its fetcher says more
    fault(folder ? "no such folder" : "no such file");
  }
  if (folder && !fs::is_directory(status))
    fault("is a file; give the folder that holds config.json and the safetensors");
  if (!folder && fs::is_directory(status)) fault("is a folder; give a file");
}

void check_inputs(const Options& options, const Origins& origins) {
  const auto check_data = [&](const std::string& key, const std::string& value) {
    if (!value.empty()) check_input(origins, key, value, false);
  };
  check_input(origins, "model.path", options.model.path, true);
  if (needs_calibration(options.quantize.method)) {
    check_data("calibration.data", options.calibration.data);
    for (std::size_t i = 0; i < options.calibration.mix.size(); ++i)
      check_data(fmt::format("calibration.mix[{}].data", i), options.calibration.mix[i].data);
  }
  check_data("evaluate.data", options.evaluate.data);
}

}  // namespace

Options load_options(const fs::path& path, const std::vector<std::string>& sets, Inputs inputs) {
  Options options;
  Origins origins{path.empty() ? "" : path.string() + ": ", {}};
  const std::string text = path.empty() ? "" : read_file(path);
  try {
    const toml::table document = toml::parse(text, path.string());
    const Locate locate = [&](const toml::source_region& source) {
      return fmt::format("{}:{}: ", path.string(), source.begin.line);
    };
    read_document(options, document, locate, origins);
  } catch (const toml::parse_error& error) {
    config_fault(
        fmt::format("{}:{}: {}", path.string(), error.source().begin.line, error.description()));
  }
  for (const std::string& set : sets) apply_set(options, set, origins);
  validate(options, origins);
  if (inputs == Inputs::must_exist) check_inputs(options, origins);
  return options;
}

Options without_folders(Options options) {
  const auto cut = [&](auto& value, const auto& rule) {
    if constexpr (is_path<std::remove_cvref_t<decltype(rule)>>) {
      const auto name = options.fetched.find(value);
      if (name != options.fetched.end())
        value = name->second;
      else if (value.starts_with('/'))
        value = fs::path(value).filename().string();
    }
  };
  visit_options(options, [&](const char*, auto& value, const auto& rule, const char*, const char*) {
    if constexpr (is_tables<std::remove_cvref_t<decltype(value)>>)
      for (auto& entry : value)
        visit_entry(entry, [&](const char*, auto& field, const auto& field_rule, const char*,
                               const char*) { cut(field, field_rule); });
    else
      cut(value, rule);
  });
  return options;
}

void validate_options(const Options& options) { validate(options, {}); }

}  // namespace qpipe
