#include "pipeline/output/model_card.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <functional>

#include "pipeline/options/hub_names.h"
#include "pipeline/output/card_text.h"

namespace qpipe {

namespace {

// "4-bit", or the name of a format that is not counted in bits alone.
std::string width_text(const QuantizePlan& plan) {
  switch (plan.storage.codec) {
    case Codec::nf4: return "NF4";
    case Codec::fp4: return "FP4";
    case Codec::int8_rows: return "LLM.int8";
    case Codec::float8_rows:
    case Codec::float8_blocks: return "FP8";
    case Codec::nvfp4: return "NVFP4";
    case Codec::mxfp4: return "MXFP4";
    case Codec::integer: break;
  }
  return fmt::format("{}-bit", plan.defaults.bits);
}

bool loads(const std::vector<Loader>& loaders, const char* program) {
  return std::any_of(loaders.begin(), loaders.end(),
                     [&](const Loader& loader) { return loader.loads && loader.name == program; });
}

// How each program loads it.
std::string code_of(const Loader& loader) {
  const auto python = [](const std::string& code) { return "\n```python\n" + code + "```\n"; };
  if (loader.name == "transformers")
    return python(fmt::format(
        "from transformers import AutoModelForCausalLM, AutoTokenizer{}\n\n"
        "model = AutoModelForCausalLM.from_pretrained(\"{}\", device_map=\"auto\"{})\n"
        "tokenizer = AutoTokenizer.from_pretrained(\"{}\")\n",
        loader.dequantizes ? ", CompressedTensorsConfig" : "", this_folder,
        loader.dequantizes ? ",\n    quantization_config=CompressedTensorsConfig(dequantize=True)"
                           : "",
        this_folder));
  if (loader.name == "vLLM") return fmt::format("\n```shell\nvllm serve {}\n```\n", this_folder);
  if (loader.name == "SGLang")
    return fmt::format("\n```shell\npython -m sglang.launch_server --model-path {}\n```\n",
                       this_folder);
  if (loader.name == "GPTQModel")
    return python(fmt::format("from gptqmodel import GPTQModel\n\nmodel = GPTQModel.load(\"{}\")\n",
                              this_folder));
  if (loader.name == "AutoAWQ")
    return python(
        fmt::format("from awq import AutoAWQForCausalLM\n\n"
                    "model = AutoAWQForCausalLM.from_quantized(\"{}\")\n",
                    this_folder));
  return {};
}

std::string use_section(const std::vector<Loader>& loaders) {
  std::string text = "\n## Use\n\n| program | loads it | |\n| --- | --- | --- |\n";
  for (const Loader& loader : loaders)
    text += fmt::format("| {} | {} | {} |\n", loader.name, loader.loads ? "yes" : "no", loader.why);
  for (const Loader& loader : loaders)
    if (loader.loads) text += code_of(loader);
  return text;
}

void add_integer_rows(const QuantizePlan& plan,
                      const std::function<void(const std::string&, const std::string&)>& row) {
  const LinearSettings& s = plan.defaults;
  row("bits", std::to_string(s.bits));
  row("group size", s.group_size > 0 ? std::to_string(s.group_size) : "one group per output");
  row("grid", s.symmetric ? "symmetric" : "asymmetric");
  if (s.method == Method::gptq) {
    row("column order", s.desc_act          ? "activation order (desc_act)"
                        : s.act_group_aware ? "activation order within and among groups"
                                            : "as stored");
    row("static groups", s.static_groups ? "yes" : "no");
    row("damping", fmt::format("{} of the mean diagonal", s.damp_percent));
  }
  if (s.mse_norm > 0.0f)
    row("scale search", fmt::format("exponent {}{}", s.mse_norm,
                                    s.weighted_search ? ", errors weighted as in the loss" : ""));
  if (plan.original_target) row("target", "the original model's outputs");
}

// The library whose code the hub offers.
std::string library_name(const std::vector<Loader>& loaders) {
  const auto first = std::find_if(loaders.begin(), loaders.end(),
                                  [](const Loader& loader) { return loader.loads; });
  if (first == loaders.end() || loads(loaders, "transformers")) return "transformers";
  return first->name == "vLLM" ? "vllm" : first->name == "GPTQModel" ? "gptqmodel" : "autoawq";
}

// An address, or the file of this name in the output, if the source has it, or in the source's
// repository.
std::string license_link(const RunReport& r, const std::string& link) {
  return link.empty() || link.find("://") != std::string::npos || !is_hub_name(r.model)
             ? link
             : fmt::format("https://huggingface.co/{}/blob/main/{}", r.model, link);
}

std::string front_matter(const RunReport& r, const QuantizePlan& plan, const SourceCard& source,
                         const std::vector<Loader>& loaders) {
  std::string text = "---\n";
  const auto line = [&](const char* key, const std::string& value) {
    if (!value.empty()) text += fmt::format("{}: {}\n", key, yaml_text(value));
  };
  const auto list = [&](const char* key, const std::vector<std::string>& values) {
    if (!values.empty()) text += fmt::format("{}:\n", key);
    for (const std::string& value : values) text += fmt::format("- {}\n", yaml_text(value));
  };
  if (is_hub_name(r.model)) {  // the hub takes no other
    line("base_model", r.model);
    line("base_model_relation", "quantized");
  }
  line("library_name", library_name(loaders));
  line("pipeline_tag", source.pipeline_tag.empty() ? "text-generation" : source.pipeline_tag);
  line("license", source.license);
  line("license_name", source.license_name);
  line("license_link", license_link(r, source.license_link));
  list("language", source.languages);
  std::vector<std::string> tags{"qpipe"};
  const auto tag = [&](const std::string& name) {
    if (std::find(tags.begin(), tags.end(), name) == tags.end()) tags.push_back(name);
  };
  tag(r.method);
  if (plan.storage.codec == Codec::integer) tag(width_text(plan));
  tag(r.format == "gptq_v2" ? "gptq" : r.format);
  if (loads(loaders, "vLLM")) tag("vllm");
  list("tags", tags);
  return text + "---\n";
}

std::string quality_section(const RunReport& r) {
  if (!r.perplexity_before && !r.perplexity_after) return {};
  std::string text = fmt::format(
      "\n## Perplexity\n\nMeasured on {}, each window alone.\n\n| | perplexity |\n| --- | --- |\n",
      markdown_text(r.evaluation));
  if (r.perplexity_before) text += fmt::format("| original | {:.3f} |\n", *r.perplexity_before);
  if (r.perplexity_after) text += fmt::format("| quantized | {:.3f} |\n", *r.perplexity_after);
  if (const auto percent = recovery_percent(r))
    text += fmt::format("| recovery (original / quantized) | {:.1f} % |\n", *percent);
  return text;
}

std::string how_section(const std::string& config) {
  return "\n## How it was made\n\n`qpipe config.toml`, with what differs from the defaults in "
         "`config.toml`:\n\n```toml\n" +
         config + "```\n";
}

}  // namespace

std::string model_card(const RunReport& r, const QuantizePlan& plan, const SourceCard& source,
                       const std::vector<Loader>& loaders, const std::string& config) {
  const std::string base = markdown_text(std::filesystem::path(r.model).filename().string());
  std::string card = front_matter(r, plan, source, loaders);
  card += fmt::format("\n# {} in {} ({})\n\n", base, width_text(plan), r.method);
  card += fmt::format("Made with qpipe {}{} from {}.\n\n| setting | value |\n| --- | --- |\n",
                      r.version, r.builds.size() > 1 ? " (more than one build of it)" : "",
                      code_span(r.model));
  const auto row = [&](const std::string& name, const std::string& value) {
    card += fmt::format("| {} | {} |\n", name, value);
  };
  row("method", r.method);
  row("checkpoint format", r.format);
  if (plan.storage.codec == Codec::integer) add_integer_rows(plan, row);
  if (plan.storage.codec == Codec::nf4 || plan.storage.codec == Codec::fp4) {
    row("block size", std::to_string(plan.storage.four_bit.block_size));
    row("double quantization", plan.storage.four_bit.double_quant ? "yes" : "no");
  }
  row("bits per quantized weight", fmt::format("{:.3f}", r.bits_per_weight));
  const auto fell_back =
      std::count_if(r.modules.begin(), r.modules.end(), [](const auto& m) { return m.fell_back; });
  if (fell_back > 0) row("rounded to nearest instead", fmt::format("{} modules", fell_back));
  if (!r.calibration.empty())
    row("calibration",
        fmt::format("{} ({} tokens)", markdown_text(r.calibration), r.calibration_tokens));
  return card + quality_section(r) + use_section(loaders) + how_section(config);
}

}  // namespace qpipe
