// The families: model_type → the function that reads config.json into an Architecture. A new one is
// a page in this folder and a line in families.cpp.
#pragma once

#include <string>
#include <vector>

#include "pipeline/model/config_json.h"
#include "stages/architecture.h"

namespace qpipe {

// Each throws UserError for a missing key, a contradiction, or a form that is not computed.
Architecture read_llama(const ConfigJson& config);
Architecture read_mistral(const ConfigJson& config);
Architecture read_qwen2(const ConfigJson& config);
Architecture read_qwen3(const ConfigJson& config);
Architecture read_falcon(const ConfigJson& config);
Architecture read_refined_web(const ConfigJson& config);
Architecture read_refined_web_model(const ConfigJson& config);

struct Family {
  std::string model_type;  // of the text model where config.json has a text_config
  Architecture (*read)(const ConfigJson& config);
};

const std::vector<Family>& families();

}  // namespace qpipe
