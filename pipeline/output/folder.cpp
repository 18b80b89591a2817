#include "pipeline/output/folder.h"

#include <fstream>

#include "pipeline/output/output.h"
#include "pipeline/plan/quantization_config.h"

namespace qpipe {

namespace {

// The `license:` line of the source's model card, if it has one.
std::string source_license(const std::filesystem::path& folder) {
  std::ifstream card(folder / "README.md");
  std::string line;
  if (!std::getline(card, line) || line != "---") return {};
  while (std::getline(card, line) && line != "---")
    if (line.starts_with("license: ")) return line.substr(9);
  return {};
}

std::string torch_name(DType dtype) { return dtype == DType::f16 ? "float16" : "bfloat16"; }

// The decoder's type, in the model's configuration and where the decoder's own inside of it repeats
// it. A vision tower keeps its type.
void set_dtype(nlohmann::json& config, const std::string& name) {
  config.erase("dtype");
  config["torch_dtype"] = name;
  for (const char* key : {"text_config", "llm_config", "language_config", "thinker_config"}) {
    const auto inner = config.find(key);
    if (inner == config.end() || !inner->is_object()) continue;
    inner->erase("quantization_config");
    if (inner->contains("dtype") || inner->contains("torch_dtype")) set_dtype(*inner, name);
  }
}

// Wherever it is said.
void set_untied(nlohmann::json& config) {
  config["tie_word_embeddings"] = false;
  const auto text = config.find("text_config");
  if (text != config.end() && text->is_object()) (*text)["tie_word_embeddings"] = false;
}

}  // namespace

std::string model_name(const Checkpoint& checkpoint) {
  const std::string recorded = checkpoint.config().value("_name_or_path", "");
  if (!recorded.empty() && recorded.find('/') != std::string::npos && recorded.front() != '/' &&
      recorded.front() != '.')
    return recorded;
  return std::filesystem::weakly_canonical(checkpoint.folder()).filename().string();
}

void write_folder(const Options& options, const Checkpoint& source, const QuantizePlan& plan,
                  const nlohmann::json& index, const RunReport& report) {
  const std::filesystem::path folder = options.output.path;
  copy_auxiliary_files(source.folder(), folder);
  std::vector<TextFile> files;
  if (!index.is_null()) files.push_back({"model.safetensors.index.json", index.dump(2) + "\n"});
  const nlohmann::json quantization = quantization_config(options, plan);
  nlohmann::json config = source.config();
  set_dtype(config, torch_name(plan.storage.dtype));
  if (plan.untied) set_untied(config);
  config["quantization_config"] = quantization;
  // GPTQModel and AutoGPTQ read this file first.
  if (plan.storage.format == Format::gptq || plan.storage.format == Format::gptq_v2)
    files.push_back({"quantize_config.json", quantization.dump(2) + "\n"});
  QuantizedLinears linears{{}, plan.skipped().empty()};
  for (const auto& [module, settings] : plan.modules)
    if (!settings.skip) linears.bits.push_back(settings.bits);
  const std::vector<Loader> loaders =
      loaders_of(read_stored_format(config, (folder / "config.json").string()), config, linears);
  files.push_back(
      {"README.md", model_card(report, plan, source_license(source.folder()), loaders)});
  files.push_back({"config.json", config.dump(2) + "\n"});
  write_text_files(folder, files);
}

}  // namespace qpipe
