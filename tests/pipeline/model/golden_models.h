// The golden config.json files as architectures, and what tests ask of those.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <filesystem>
#include <fstream>

#include "pipeline/files/error.h"
#include "pipeline/model/model.h"
#include "tests/paths.h"

namespace qpipe {

using Json = nlohmann::json;

inline const std::filesystem::path golden = tests_folder() / "golden";

inline Json golden_json(const std::string& name) {
  std::ifstream file(golden / name);
  EXPECT_TRUE(file.good()) << golden / name;
  return Json::parse(file);
}

inline Json config_of(const std::string& model) {
  return golden_json("models/" + model + "/config.json");
}

inline Architecture architecture_of(const std::string& model) {
  return read_architecture(config_of(model), "config.json");
}

inline Json without(Json config, std::initializer_list<const char*> keys) {
  for (const char* key : keys) config.erase(key);
  return config;
}

inline Json with(Json config, const Json& changes) {
  config.update(changes);
  return config;
}

// The one line that the user reads.
inline std::string fault(const Json& config) {
  try {
    read_architecture(config, "m/config.json");
  } catch (const UserError& error) {
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    return error.what();
  }
  return "no fault";
}

inline void expect_fault(const Json& config, std::initializer_list<const char*> parts) {
  const std::string message = fault(config);
  EXPECT_NE(message.find("m/config.json: "), std::string::npos) << message;
  for (const char* part : parts)
    EXPECT_NE(message.find(part), std::string::npos) << "'" << part << "' is not in: " << message;
}

// Of the first layer, or of another.
inline const LayerSpec& layer_of(const Architecture& a, std::int64_t layer = 0) {
  return a.layer(layer);
}

inline const Attention& attention_of(const Architecture& a, std::int64_t layer = 0) {
  return std::get<Attention>(a.layer(layer).mixer);
}

inline const Mlp& mlp_of(const Architecture& a, std::int64_t layer = 0) {
  return std::get<Mlp>(a.layer(layer).mlp);
}

inline std::vector<std::int64_t> windows_of(const Architecture& a) {
  std::vector<std::int64_t> windows;
  for (std::int64_t layer = 0; layer < a.layers; ++layer)
    windows.push_back(attention_of(a, layer).window);
  return windows;
}

inline std::string name_of(const std::optional<NormSpec>& norm) { return norm ? norm->name : ""; }

// The names of the norms before and behind attention and MLP; "" for one that is not there.
using NormNames = std::array<std::string, 4>;

inline NormNames norms_of(const LayerSpec& layer) {
  return {name_of(layer.mixer_norm), name_of(layer.after_mixer), name_of(layer.mlp_norm),
          name_of(layer.after_mlp)};
}

}  // namespace qpipe
