#include "pipeline/output/folder.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "pipeline/files/durable_file.h"
#include "pipeline/files/error.h"
#include "pipeline/files/input_file.h"
#include "pipeline/files/json_text.h"
#include "pipeline/options/hub_names.h"
#include "pipeline/output/auxiliary_files.h"
#include "pipeline/output/model_card.h"
#include "pipeline/output/shard_plan.h"
#include "pipeline/plan/quantization_config.h"

namespace qpipe {

namespace {

// "ORG/NAME" of models--ORG--NAME/snapshots/REVISION; "" elsewhere.
std::string name_in_hub_cache(const std::filesystem::path& folder) {
  constexpr std::string_view prefix = "models--";
  const std::string entry = folder.parent_path().parent_path().filename().string();
  const std::size_t dashes = entry.find("--", prefix.size());
  if (folder.parent_path().filename() != "snapshots" || !entry.starts_with(prefix) ||
      dashes == std::string::npos)
    return {};
  const std::string name =
      entry.substr(prefix.size(), dashes - prefix.size()) + "/" + entry.substr(dashes + 2);
  return is_hub_name(name) ? name : "";
}

// What made the output, without what names this machine's folders or changes no byte.
std::string settings_of_card(Options options, const std::string& model) {
  const bool of_the_hub = options.fetched.contains(options.model.path);
  options = without_folders(options);
  if (!of_the_hub) options.model.path = model;
  return changed_options_as_toml(options, [](const std::string& key) {
    constexpr std::array<const char*, 7> elsewhere{"output.path", "output.overwrite",  "memory.gpu",
                                                   "memory.host", "calibration.cache", "run.",
                                                   "parallel."};
    return std::none_of(elsewhere.begin(), elsewhere.end(),
                        [&](const char* beginning) { return key.starts_with(beginning); });
  });
}

std::string torch_name(DType dtype) { return dtype == DType::f16 ? "float16" : "bfloat16"; }

// GPTQModel and AutoGPTQ read quantize_config.json first.
bool writes_quantize_config(const QuantizePlan& plan) {
  return plan.storage.format == Format::gptq || plan.storage.format == Format::gptq_v2;
}

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
  std::error_code error;
  std::filesystem::path folder = std::filesystem::weakly_canonical(checkpoint.folder(), error);
  if (!folder.has_filename()) folder = folder.parent_path();
  if (const std::string name = name_in_hub_cache(folder); !name.empty()) return name;
  const auto recorded = checkpoint.config().find("_name_or_path");
  if (recorded != checkpoint.config().end() && recorded->is_string() &&
      is_hub_name(recorded->get<std::string>()))
    return recorded->get<std::string>();
  return printable(folder.filename().string());
}

OutputFiles output_files(const QuantizePlan& plan, const Checkpoint& source) {
  OutputFiles files{auxiliary_files(source.folder()), {}};
  FileNames names{"config.json", "README.md", manifest_name};
  if (writes_quantize_config(plan)) names.insert("quantize_config.json");
  const std::size_t shards = plan_shards(plan.tensors, plan.max_shard_bytes).size();
  for (std::size_t shard = 0; shard < shards; ++shard) names.insert(shard_name(shard, shards));
  if (shards > 1) names.insert("model.safetensors.index.json");
  names.insert(files.copied.begin(), files.copied.end());
  files.all = std::move(names);
  return files;
}

void write_folder(const Options& options, const Checkpoint& source, const QuantizePlan& plan,
                  const OutputFiles& output, const nlohmann::json& index, const RunReport& report) {
  const std::filesystem::path folder = options.output.path;
  copy_files(source.folder(), folder, output.copied);
  std::vector<TextFile> files;
  if (!index.is_null()) files.push_back({"model.safetensors.index.json", to_json_text(index)});
  const nlohmann::json quantization = quantization_config(options, plan);
  nlohmann::json config = source.config();
  // Where the source lay on the machine that wrote it is nobody's business.
  if (const auto path = config.find("_name_or_path");
      path != config.end() && path->is_string() && path->get<std::string>().starts_with('/'))
    config.erase(path);
  set_dtype(config, torch_name(plan.storage.dtype));
  if (plan.untied) set_untied(config);
  config["quantization_config"] = quantization;
  if (writes_quantize_config(plan))
    files.push_back({"quantize_config.json", to_json_text(quantization)});
  QuantizedLinears linears{{}, plan.skipped().empty(), plan.packs_experts()};
  for (const auto& [module, settings] : plan.modules)
    if (!settings.skip) linears.bits.push_back(settings.bits);
  const std::vector<Loader> loaders =
      loaders_of(read_stored_format(config, (folder / "config.json").string()), config, linears);
  files.push_back({"README.md", model_card(report, plan, read_source_card(source.folder()), loaders,
                                           settings_of_card(options, report.model))});
  files.push_back({"config.json", to_json_text(config)});
  write_text_files(folder, files);
  write_manifest(folder, output.all);
}

}  // namespace qpipe
