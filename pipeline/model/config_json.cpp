#include "pipeline/model/config_json.h"

#include <cmath>

namespace qpipe {

namespace {

using Json = nlohmann::json;

std::string shown(const Json& value) {
  constexpr std::size_t longest = 60;
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > longest) text = text.substr(0, longest) + "...";
  return text;
}

}  // namespace

void refuse(const ConfigJson& config, const std::string& key, const std::string& must,
            ExitCode code) {
  const auto found = config.object.find(key);
  const std::string value =
      found == config.object.end() ? " is missing: it " : " = " + shown(*found) + ": it ";
  throw UserError(code, config.where + ": " + key + value + must);
}

bool has_key(const ConfigJson& config, const std::string& key) {
  return find_value(config, key) != nullptr;
}

void skip_keys(const ConfigJson& config, const std::vector<std::string>& keys) {
  if (config.asked) config.asked->insert(keys.begin(), keys.end());
}

const Json* find_value(const ConfigJson& config, const std::string& key) {
  if (config.asked) config.asked->insert(key);
  const auto found = config.object.find(key);
  return found == config.object.end() || found->is_null() ? nullptr : &*found;
}

bool is_null(const ConfigJson& config, const std::string& key) {
  if (config.asked) config.asked->insert(key);
  const auto found = config.object.find(key);
  return found != config.object.end() && found->is_null();
}

std::int64_t read_integer(const ConfigJson& config, const std::string& key, std::int64_t lowest,
                          std::int64_t highest) {
  const Json* value = find_value(config, key);
  const bool fits = value != nullptr && value->is_number_integer() &&
                    (!value->is_number_unsigned() ||
                     value->get<std::uint64_t>() <= static_cast<std::uint64_t>(highest)) &&
                    value->get<std::int64_t>() >= lowest && value->get<std::int64_t>() <= highest;
  if (!fits)
    refuse(config, key,
           "must be an integer from " + std::to_string(lowest) + " to " + std::to_string(highest));
  return value->get<std::int64_t>();
}

std::int64_t read_integer_or(const ConfigJson& config, const std::string& key,
                             std::int64_t when_absent, std::int64_t lowest, std::int64_t highest) {
  return find_value(config, key) == nullptr ? when_absent
                                            : read_integer(config, key, lowest, highest);
}

double read_positive(const ConfigJson& config, const std::string& key) {
  const Json* value = find_value(config, key);
  const bool fits = value != nullptr && value->is_number() && std::isfinite(value->get<double>()) &&
                    value->get<double>() > 0.0;
  if (!fits) refuse(config, key, "must be a number above 0");
  return value->get<double>();
}

double read_positive(const ConfigJson& config, const std::string& key, double when_absent) {
  return has_key(config, key) ? read_positive(config, key) : when_absent;
}

bool read_flag(const ConfigJson& config, const std::string& key, bool when_absent) {
  if (is_null(config, key)) return false;
  const Json* value = find_value(config, key);
  if (value == nullptr) return when_absent;
  if (!value->is_boolean()) refuse(config, key, "must be true or false");
  return value->get<bool>();
}

std::string read_text(const ConfigJson& config, const std::string& key) {
  const Json* value = find_value(config, key);
  if (value == nullptr || !value->is_string()) refuse(config, key, "must be a string");
  return value->get<std::string>();
}

std::string read_text(const ConfigJson& config, const std::string& key,
                      const std::string& when_absent) {
  return has_key(config, key) ? read_text(config, key) : when_absent;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace qpipe
