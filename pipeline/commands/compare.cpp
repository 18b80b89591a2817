#include "pipeline/commands/compare.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <set>
#include <type_traits>

#include "launch/leave.h"
#include "pipeline/commands/compare_table.h"
#include "pipeline/files/error.h"
#include "pipeline/files/json_text.h"
#include "pipeline/files/suggest.h"
#include "pipeline/files/terminal.h"
#include "pipeline/files/user_output.h"
#include "pipeline/files/user_path.h"
#include "pipeline/model/checkpoint.h"
#include "pipeline/model/model.h"
#include "pipeline/model/read_back.h"
#include "pipeline/options/options_visit.h"
#include "pipeline/output/output.h"
#include "pipeline/quantize.h"
#include "stages/layer.h"

namespace qpipe {

namespace {

namespace fs = std::filesystem;

[[noreturn]] void refuse(const std::string& entry, const std::string& message) {
  throw UserError(ExitCode::usage, fmt::format("--methods {}: {}", entry, message));
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::size_t begin = 0;
  for (std::size_t end; (end = text.find(separator, begin)) != std::string::npos; begin = end + 1)
    parts.push_back(text.substr(begin, end - begin));
  parts.push_back(text.substr(begin));
  return parts;
}

std::vector<std::string> method_names() {
  std::vector<std::string> names;
  const Options options;
  visit_options(options, [&](const std::string& key, const auto&, const auto& rule, const char*,
                             const char*) {
    if constexpr (std::is_same_v<decltype(rule), const OneOf&>)
      if (key == "quantize.method") names = rule.values;
  });
  return names;
}

// Keys of [quantize], [awq] and [bnb] that are a single value: "quantize.bits", …
std::vector<std::string> setting_keys() {
  std::vector<std::string> keys;
  const Options options;
  visit_options(options,
                [&](const std::string& key, const auto&, auto&&, const char*, const char*) {
                  const std::string section = key.substr(0, key.find('.'));
                  if ((section == "quantize" || section == "awq" || section == "bnb") &&
                      key != "quantize.method" && key != "quantize.overrides")
                    keys.push_back(key);
                });
  return keys;
}

bool rounds_to_integers(const std::string& method) {
  return method == "gptq" || method == "awq" || method == "rtn";
}

bool has_effect(const std::string& key, const std::string& method) {
  if (key.starts_with("awq.")) return method == "awq";
  if (key.starts_with("bnb.")) return method.starts_with("bnb-");
  return rounds_to_integers(method);
}

// "mse=2.4" to "quantize.mse=2.4".
std::string read_setting(const CompareMethod& method, const std::string& setting) {
  const std::size_t equals = setting.find('=');
  if (equals == std::string::npos || equals == 0 || equals + 1 == setting.size())
    refuse(method.label, "write settings as METHOD:key=value,key=value");
  const std::string name = setting.substr(0, equals);
  std::vector<std::string> names;
  for (const std::string& key : setting_keys()) {
    names.push_back(key.substr(key.find('.') + 1));
    if (names.back() != name) continue;
    if (!has_effect(key, method.method))
      refuse(method.label, fmt::format("{} has no effect on {}; remove it", key, method.method));
    return key + setting.substr(equals);
  }
  const std::string near = nearest_name(name, names);
  refuse(method.label,
         fmt::format("unknown setting {}; {}", name,
                     near.empty() ? fmt::format("known are {}", fmt::join(names, ", "))
                                  : "did you mean " + near + "?"));
}

}  // namespace

std::vector<CompareMethod> read_methods(const std::string& text) {
  // A comma divides methods and settings; a part with "=" but no colon before it is one more
  // setting of the method before.
  std::vector<std::string> entries;
  for (const std::string& part : split(text, ',')) {
    if (part.find('=') < part.find(':') && !entries.empty())
      entries.back() += "," + part;
    else
      entries.push_back(part);
  }

  const std::vector<std::string> known = method_names();
  std::vector<CompareMethod> methods;
  std::set<std::string> suffixes;
  for (const std::string& entry : entries) {
    const std::size_t colon = entry.find(':');
    CompareMethod method{entry, entry.substr(0, colon), {}};
    if (entry.empty()) refuse(text, "an entry is empty; write METHOD,METHOD");
    if (const std::size_t comma = entry.find(','); comma < colon)
      refuse(entry, fmt::format("settings stand behind a colon: {}:{}", entry.substr(0, comma),
                                entry.substr(comma + 1)));
    if (std::find(known.begin(), known.end(), method.method) == known.end()) {
      const std::string near = nearest_name(method.method, known);
      refuse(entry, fmt::format("unknown method {}; {}", method.method,
                                near.empty() ? fmt::format("known are {}", fmt::join(known, ", "))
                                             : "did you mean " + near + "?"));
    }
    if (colon != std::string::npos)
      for (const std::string& setting : split(entry.substr(colon + 1), ','))
        method.sets.push_back(read_setting(method, setting));
    if (!suffixes.insert(folder_suffix(method)).second)
      refuse(text, entry + " is there twice; give it once, or with other settings");
    methods.push_back(method);
  }
  return methods;
}

std::string folder_suffix(const CompareMethod& method) {
  std::string suffix = method.label;
  for (char& c : suffix)
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '.' && c != '_') c = '-';
  return suffix;
}

CompareRequest read_compare(const fs::path& config, const std::string& methods,
                            const std::vector<std::string>& sets, const std::string& out) {
  CompareRequest request;
  request.methods = read_methods(methods);
  std::string output;
  for (const CompareMethod& method : request.methods) {
    std::vector<std::string> all = sets;
    all.push_back("quantize.method=" + method.method);
    all.insert(all.end(), method.sets.begin(), method.sets.end());
    Options options;
    try {
      options = load_options(config, all);
    } catch (const UserError& error) {
      if (error.code != ExitCode::config) throw;
      throw UserError(error.code,
                      fmt::format("{} (for {} of --methods)", error.what(), method.label));
    }
    if (options.evaluate.data.empty())
      throw UserError(ExitCode::config,
                      fmt::format("{}: evaluate.data is not set; compare measures perplexity, so "
                                  "add data = \"...\" (text "
                                  "or token ids) under [evaluate]",
                                  config.string()));
    output = options.output.path;
    options.output.path = beside(output, "-" + folder_suffix(method));
    options.run.report.clear();  // beside each folder
    options.evaluate.before = options.evaluate.after = true;
    validate_options(options);
    request.options.push_back(options);
  }
  request.stem = out.empty() ? beside(output, ".compare") : out;
  if (!out.empty() && request.stem.has_parent_path() &&
      !fs::is_directory(request.stem.parent_path()))
    throw UserError(ExitCode::cannot_create, fmt::format("--out {}: {} is no folder; make it first",
                                                         out, request.stem.parent_path().string()));
  for (const char* ending : {".json", ".md"})
    check_user_output(request.stem.string() + ending, "--out");  // before the work
  return request;
}

namespace {

// From the folder itself, as `qpipe verify` tells it.
std::vector<Loader> loaders_of_folder(const fs::path& folder) {
  const Checkpoint checkpoint(folder);
  const std::string where = (folder / "config.json").string();
  const Architecture architecture = read_architecture(checkpoint);
  const StoredFormat format = read_stored_format(checkpoint.config(), where);
  std::vector<LinearReport> linears;
  for (std::int64_t layer = 0; layer < architecture.layers; ++layer)
    for (const LinearSpec& spec : layer_linears(architecture.layer(layer))) {
      LinearReport linear;
      linear.name = layer_prefix(architecture, layer) + spec.name;
      if (is_packed(checkpoint, linear.name))
        linear.packed = check_packed_linear(format, checkpoint, linear.name, spec.out_features,
                                            spec.in_features);
      linears.push_back(linear);
    }
  return loaders_of(format, checkpoint.config(), quantized_linears(linears));
}

void measure_original(Comparison& comparison, const std::string& folder) {
  const Checkpoint checkpoint(folder);
  std::int64_t weights = 0;
  for (const std::string& name : checkpoint.names()) {
    const TensorInfo& info = checkpoint.info(name);
    weights += info.bytes() / static_cast<std::int64_t>(size_of(info.dtype));
  }
  comparison.original_bytes = checkpoint.total_bytes();
  comparison.original_bits_per_weight =
      8.0 * static_cast<double>(comparison.original_bytes) / static_cast<double>(weights);
}

int bits_of(const Options& options) {
  const std::string& method = options.quantize.method;
  if (rounds_to_integers(method)) return static_cast<int>(options.quantize.bits);
  return method == "bnb-int8" || method == "fp8" || method == "fp8-block" ? 8 : 4;
}

CompareRow row_of(const CompareMethod& method, const Options& options, const RunReport& report) {
  CompareRow row;
  row.label = method.label;
  row.method = method.method;
  row.folder = options.output.path;
  row.format = report.format;
  row.bits = bits_of(options);
  row.calibrated = report.calibration_tokens > 0;
  row.rounds_activations =
      method.method == "bnb-int8" || method.method == "fp8" || method.method == "fp8-block";
  row.perplexity = report.perplexity_after.value();
  row.bytes = report.bytes;
  row.bits_per_weight = report.bits_per_weight;
  row.seconds = report.seconds.total - report.seconds.evaluate;
  row.loaders = loaders_of_folder(options.output.path);
  return row;
}

void write_files(const Comparison& comparison, const fs::path& stem) {
  write_user_output(stem.string() + ".json", to_json_text(comparison_json(comparison)));
  write_user_output(stem.string() + ".md", comparison_markdown(comparison));
}

}  // namespace

int run_compare(const CompareRequest& request) {
  for (Options options : request.options) {
    if (!request.dry_run) options.run.progress = "none";
    quantize(options, true);
  }
  if (request.dry_run) return static_cast<int>(ExitCode::ok);

  const bool first = world().rank == 0;
  Comparison comparison;
  std::optional<double> original;
  for (std::size_t i = 0; i < request.methods.size(); ++i) {
    const RunReport report = quantize(request.options[i], false, original);
    original = report.perplexity_before;
    if (!first) continue;
    if (i == 0) {
      comparison.model = report.model;
      comparison.evaluation = report.evaluation;
      comparison.device = report.device;
      comparison.ranks = report.ranks;
      comparison.original_perplexity = original.value();
      measure_original(comparison, request.options[i].model.path);
    }
    if (comparison.calibration.empty()) comparison.calibration = report.calibration;
    comparison.rows.push_back(row_of(request.methods[i], request.options[i], report));
    write_files(comparison, request.stem);
  }
  if (first) {
    print_result(comparison_text(comparison));
    finish_results();
    tell(fmt::format("table in {0}.md and {0}.json\n", printable(request.stem.string())));
  }
  return static_cast<int>(ExitCode::ok);
}

}  // namespace qpipe
