#include "pipeline/output/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <limits>

#include "pipeline/files/json_text.h"
#include "pipeline/output/card_text.h"

namespace qpipe {

namespace {

// JSON has no NaN and no infinity: they are written as null, which reads as NaN.
double number_or_nan(const nlohmann::json& json) {
  return json.is_null() ? std::numeric_limits<double>::quiet_NaN() : json.get<double>();
}

}  // namespace

void to_json(nlohmann::json& json, const ModuleReport& m) {
  json = {{"name", m.name},
          {"bits", m.bits},
          {"group_size", m.group_size},
          {"mean_squared_error", m.mean_squared_error},
          {"damp", m.damp},
          {"fell_back", m.fell_back},
          {"skipped", m.skipped},
          {"tokens", m.tokens},
          {"agreement", m.agreement}};
}

void from_json(const nlohmann::json& json, ModuleReport& m) {
  json.at("name").get_to(m.name);
  m.bits = integer_of<decltype(m.bits)>(json.at("bits")).value();
  m.group_size = integer_of<decltype(m.group_size)>(json.at("group_size")).value();
  m.mean_squared_error = number_or_nan(json.at("mean_squared_error"));
  m.damp = number_or_nan(json.at("damp"));
  json.at("fell_back").get_to(m.fell_back);
  json.at("skipped").get_to(m.skipped);
  m.tokens = integer_of<decltype(m.tokens)>(json.at("tokens")).value();
  m.agreement = number_or_nan(json.at("agreement"));
}

void to_json(nlohmann::json& json, const ScaleReport& s) {
  json = {{"source", s.source}, {"linears", s.linears}, {"ratio", s.ratio}, {"loss", s.loss}};
}

void from_json(const nlohmann::json& json, ScaleReport& s) {
  json.at("source").get_to(s.source);
  json.at("linears").get_to(s.linears);
  s.ratio = number_or_nan(json.at("ratio"));
  s.loss = number_or_nan(json.at("loss"));
}

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(LinearFactors, column, row)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Communication, team_bytes, team_seconds, hidden_bytes)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(PhaseSeconds, start, read, hessian, search, solve, forward,
                                   write, commit, wait, evaluate, total)

void to_json(nlohmann::json& json, const LayerFindings& findings) {
  json = {{"modules", findings.modules},
          {"scales", findings.scales},
          {"zero_of_zero", findings.zero_of_zero},
          {"largest_activation", findings.largest_activation}};
  if (!findings.factors.empty()) json["factors"] = findings.factors;
}

void from_json(const nlohmann::json& json, LayerFindings& findings) {
  json.at("modules").get_to(findings.modules);
  json.at("scales").get_to(findings.scales);
  json.at("zero_of_zero").get_to(findings.zero_of_zero);
  findings.largest_activation = number_or_nan(json.at("largest_activation"));
  if (json.contains("factors")) json.at("factors").get_to(findings.factors);
}

void take_up(const LayerFindings& findings, RunReport& report) {
  const auto append = [](auto& all, const auto& some) {
    all.insert(all.end(), some.begin(), some.end());
  };
  append(report.modules, findings.modules);
  append(report.scales, findings.scales);
  report.zero_of_zero = report.zero_of_zero || findings.zero_of_zero;
  if (findings.largest_activation != 0.0)
    report.largest_activations.push_back(findings.largest_activation);
}

std::vector<PhaseSeconds> gather_seconds(const PhaseSeconds& seconds, Comm& comm) {
  std::vector<PhaseSeconds> all;
  for (const std::string& text : comm.gather(nlohmann::json(seconds).dump()))
    all.push_back(nlohmann::json::parse(text).get<PhaseSeconds>());
  return all;
}

nlohmann::json report_json(const RunReport& r) {
  nlohmann::json modules = nlohmann::json::array();
  for (const ModuleReport& m : r.modules) {
    nlohmann::json entry{{"name", m.name}};
    if (m.skipped) {
      entry["skipped"] = true;
    } else {
      entry.update({{"bits", m.bits},
                    {"group_size", m.group_size},
                    {"mean_squared_error", m.mean_squared_error}});
      if (m.tokens >= 0) entry["tokens"] = m.tokens;
      if (m.agreement >= 0.0) entry["original_target"] = m.agreement;
      if (m.fell_back)
        entry["fell_back_to_rtn"] = true;  // no damping was enough
      else
        entry["damp_percent"] = m.damp;
    }
    modules.push_back(entry);
  }
  nlohmann::json json{
      {"qpipe", r.version},
      {"builds", r.builds},
      {"model", r.model},
      {"method", r.method},
      {"format", r.format},
      {"options", r.options},
      {"calibration",
       {{"source", r.calibration}, {"tokens", r.calibration_tokens}, {"xxh3", r.calibration_hash}}},
      {"bits_per_weight", r.bits_per_weight},
      {"bytes", r.bytes},
      {"ranks", r.ranks},
      {"device", r.device},
      {"device_peak_bytes", r.device_peak_bytes},
      {"seconds", r.seconds},
      {"seconds_of_ranks", r.seconds_of_ranks},
      {"communication", r.communication},
      {"fell_back_to_rtn", std::count_if(r.modules.begin(), r.modules.end(),
                                         [](const auto& m) { return m.fell_back; })},
      {"dtype", r.dtype},
      {"modules", modules}};
  if (!r.largest_activations.empty()) json["largest_activations"] = r.largest_activations;
  for (const ScaleReport& s : r.scales)
    json["scales"].push_back(
        {{"source", s.source}, {"linears", s.linears}, {"ratio", s.ratio}, {"loss", s.loss}});
  if (r.perplexity_before) json["perplexity"]["before"] = *r.perplexity_before;
  if (r.perplexity_after) json["perplexity"]["after"] = *r.perplexity_after;
  if (!r.evaluation.empty()) json["perplexity"]["data"] = r.evaluation;
  return json;
}

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

std::string use_section(const std::vector<Loader>& loaders) {
  std::string text = "\n## Use\n\n| program | loads it | |\n| --- | --- | --- |\n";
  for (const Loader& loader : loaders)
    text += fmt::format("| {} | {} | {} |\n", loader.name, loader.loads ? "yes" : "no", loader.why);
  for (const Loader& loader : loaders) {
    if (!loader.loads) continue;
    if (loader.name == "transformers")
      text += fmt::format(
          "\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer{}\n\n"
          "model = AutoModelForCausalLM.from_pretrained(\"THIS_FOLDER\", device_map=\"auto\"{})\n"
          "tokenizer = AutoTokenizer.from_pretrained(\"THIS_FOLDER\")\n```\n",
          loader.dequantizes ? ", CompressedTensorsConfig" : "",
          loader.dequantizes ? ",\n    quantization_config=CompressedTensorsConfig(dequantize=True)"
                             : "");
    if (loader.name == "vLLM") text += "\n`vllm serve THIS_FOLDER` serves it as it is.\n";
  }
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
}

}  // namespace

std::string model_card(const RunReport& r, const QuantizePlan& plan, const std::string& license,
                       const std::vector<Loader>& loaders) {
  const std::string base = markdown_text(std::filesystem::path(r.model).filename().string());
  const std::string width = width_text(plan);
  std::string tags = "- " + r.method + "\n";
  if (plan.storage.codec == Codec::integer) tags += "- " + width + "\n";
  std::string card = fmt::format(
      "---\nbase_model: {}\nbase_model_relation: quantized\nlibrary_name: "
      "transformers\npipeline_tag: text-generation\n{}tags:\n{}- qpipe\n"
      "---\n\n# {} in {} ({})\n\n",
      yaml_text(r.model), license.empty() ? "" : "license: " + yaml_text(license) + "\n", tags,
      base, width, r.method);
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
  if (r.perplexity_before || r.perplexity_after) {
    card += fmt::format(
        "\n## Perplexity\n\nMeasured on {}, each window alone.\n\n| | perplexity |\n| --- | --- "
        "|\n",
        markdown_text(r.evaluation));
    if (r.perplexity_before) card += fmt::format("| original | {:.3f} |\n", *r.perplexity_before);
    if (r.perplexity_after) card += fmt::format("| quantized | {:.3f} |\n", *r.perplexity_after);
  }
  return card + use_section(loaders);
}

}  // namespace qpipe
