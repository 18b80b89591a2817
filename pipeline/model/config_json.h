// Typed reading of keys of config.json. Every fault is one line that names the file, the key and
// what it must be.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "pipeline/files/error.h"

namespace qpipe {

struct ConfigJson {
  const nlohmann::json& object;
  std::string where;  // "DIR/config.json", or "DIR/config.json: rope_scaling" for an object inside
  // The keys that were asked for, where somebody keeps count.
  std::shared_ptr<std::set<std::string>> asked = nullptr;
};

// Keys that decide nothing here: known to the family, but not read by the reference.
void skip_keys(const ConfigJson& config, const std::vector<std::string>& keys);

[[noreturn]] void refuse(const ConfigJson& config, const std::string& key, const std::string& must,
                         ExitCode code = ExitCode::data);

// The key's value; nullptr when it is absent or null, which mean the same here: whoever gives null
// a meaning of its own, as transformers does with sliding_window, asks is_null.
const nlohmann::json* find_value(const ConfigJson& config, const std::string& key);
bool has_key(const ConfigJson& config, const std::string& key);  // there, and not null
bool is_null(const ConfigJson& config, const std::string& key);  // there, and null

std::int64_t read_integer(const ConfigJson& config, const std::string& key, std::int64_t lowest,
                          std::int64_t highest);
std::int64_t read_integer_or(const ConfigJson& config, const std::string& key,
                             std::int64_t when_absent, std::int64_t lowest, std::int64_t highest);
// A finite number above zero.
double read_positive(const ConfigJson& config, const std::string& key);
double read_positive(const ConfigJson& config, const std::string& key, double when_absent);
// null reads as false, as Python does.
bool read_flag(const ConfigJson& config, const std::string& key, bool when_absent);
std::string read_text(const ConfigJson& config, const std::string& key);
std::string read_text(const ConfigJson& config, const std::string& key,
                      const std::string& when_absent);

std::string joined(const std::vector<std::string>& names);  // "a, b, c"

}  // namespace qpipe
