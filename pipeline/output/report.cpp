#include "pipeline/output/report.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "pipeline/files/json_text.h"

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

std::optional<double> recovery_percent(const RunReport& r) {
  if (!r.perplexity_before || !r.perplexity_after) return std::nullopt;
  const double percent = 100.0 * *r.perplexity_before / *r.perplexity_after;
  return std::isfinite(percent) ? std::optional(percent) : std::nullopt;
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
  if (const auto recovery = recovery_percent(r)) json["perplexity"]["recovery_percent"] = *recovery;
  if (!r.evaluation.empty()) json["perplexity"]["data"] = r.evaluation;
  return json;
}

}  // namespace qpipe
