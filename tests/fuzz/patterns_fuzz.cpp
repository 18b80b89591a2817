// Names of modules, a line each, from a checkpoint that is not trusted; a first line "match ..."
// is a user's pattern for a model of two layers.
#include "pipeline/model/model.h"
#include "pipeline/plan/module_names.h"
#include "pipeline/plan/plan.h"
#include "tests/fuzz/fuzz.h"

namespace {

const nlohmann::json config = nlohmann::json::parse(R"({
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 96, "hidden_size": 32,
  "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "silu",
  "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-6,
  "tie_word_embeddings": false, "torch_dtype": "bfloat16"})");

void plan(const std::string& match) {
  using namespace qpipe;
  static const Architecture architecture = read_architecture(config, "config.json");
  static const Checkpoint checkpoint("model", config, expected_tensors(architecture, DType::bf16));
  Options options;
  options.model.path = "model";
  options.output.path = "out";
  options.calibration.data = "tokens.h5";
  options.quantize.group_size = 32;
  options.quantize.overrides.push_back(
      {.match = match, .skip = true, .bits = 0, .group_size = 0, .symmetric = ""});
  validate_options(options);
  plan_quantization(options, architecture, checkpoint);
}

}  // namespace

void qpipe::fuzz::run_input(std::string_view input) {
  std::vector<std::string> modules;
  std::vector<TensorInfo> tensors;
  for (bool first = true; !input.empty() && modules.size() < 50; first = false) {
    const std::size_t end = std::min(input.find('\n'), input.size());
    const std::string line(input.substr(0, end));
    input.remove_prefix(std::min(end + 1, input.size()));
    if (first && line.starts_with("match ")) return plan(line.substr(6));
    modules.push_back(line);
    tensors.push_back({line + ".weight", DType::bf16, {8, 8}});
    tensors.push_back({line, DType::f16, {4, 8, 8}});
  }
  float_linears(tensors);
  fused_modules(modules);
  has_root(roots_beside(modules, "model.layers.", {"model.layers.0.mlp.down_proj"}));
  patterns_of(modules, "model.layers.", {"model.layers.0.mlp.down_proj"});
}
