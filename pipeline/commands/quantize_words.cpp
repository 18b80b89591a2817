#include "pipeline/commands/quantize_words.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "pipeline/commands/path_option.h"

namespace qpipe {

namespace {

// The data sets that GPTQ's own script knows by name.
std::string data_of_name(const std::string& name) {
  if (name == "c4") return "hf:allenai/c4/en:train";
  if (name == "wikitext2") return "hf:Salesforce/wikitext/wikitext-2-raw-v1:train";
  return name;
}

}  // namespace

// As --set KEY=VALUE.
void QuantizeWords::add(CLI::App& command, const char* names, const std::string& key,
                        const std::string& meaning) {
  command.add_option_function<std::string>(
      names, [this, key](const std::string& value) { sets_.push_back(key + "=" + value); },
      fmt::format("{} ({})", meaning, key));
}

void QuantizeWords::add_flag(CLI::App& command, const char* names, const std::string& key,
                             const char* value, const std::string& meaning) {
  command.add_flag_callback(
      names, [this, key, value] { sets_.push_back(key + "=" + value); },
      fmt::format("{} ({} = {})", meaning, key, value));
}

void QuantizeWords::add_to(CLI::App& command) {
  command.description(
      "Quantizes a model without a configuration file. Each option is one of the configuration's, "
      "named in brackets; names of GPTQ's own script are taken, too.");
  command.set_help_flag("-h,--help", "this text");
  command.add_option("model", model_, "folder, or ORG/NAME[@REVISION] (model.path)")
      ->required()
      ->transform(as_path);
  command.add_option("-o,--output,--out", output_, "folder to write (output.path)")
      ->required()
      ->transform(as_path);
  add(command, "--method", "quantize.method", "gptq, awq, rtn, bnb-nf4, ...; gptq by itself");
  add(command, "--bits,--wbits", "quantize.bits", "width of a weight");
  add(command, "--group-size,--groupsize", "quantize.group_size", "weights that share a scale");
  add_flag(command, "--desc-act,--act-order", "quantize.desc_act", "true",
           "GPTQ's order of columns");
  add_flag(command, "--act-group-aware", "quantize.act_group_aware", "true",
           "a better order, at no cost");
  add_flag(command, "--static-groups", "quantize.static_groups", "true",
           "scales from original weights");
  add_flag(command, "--symmetric,--sym", "quantize.symmetric", "true", "no zero points");
  add_flag(command, "--asymmetric,--asym", "quantize.symmetric", "false", "zero points");
  add(command, "--damp,--percdamp", "quantize.damp_percent", "added to the Hessian's diagonal");
  add(command, "--samples,--nsamples", "calibration.samples", "sequences to calibrate on");
  add(command, "--seqlen", "calibration.seqlen", "tokens of each");
  add(command, "--seed", "calibration.seed", "of the choice of samples");
  command.add_option("--data,--dataset", data_,
                     "file, hf:ORG/NAME[/CONFIG]:SPLIT, c4 or wikitext2; without: a small mix "
                     "that qpipe ships (calibration.data)");
  command.add_option("--eval", eval_, "as --data: perplexity before and after (evaluate.data)");
  add(command, "--target", "output.target", "any, vllm or transformers: who must load the result");
  add_flag(command, "--overwrite", "output.overwrite", "true", "replace what qpipe wrote there");
  command.add_option("--set", sets_given_, "section.key=value; wins over the others")
      ->allow_extra_args(false);
  command.add_flag("--dry-run", dry_run_, "check, print the configuration, write nothing");
  command.add_flag("--resume", resume_, "only go on with a run that was stopped");
}

Options QuantizeWords::options() const {
  std::vector<std::string> sets = sets_;
  sets.push_back("model.path=" + model_);
  sets.push_back("output.path=" + output_);
  if (!data_.empty()) sets.push_back("calibration.data=" + data_of_name(data_));
  if (!eval_.empty()) sets.push_back("evaluate.data=" + data_of_name(eval_));
  if (resume_) sets.emplace_back("run.resume=require");
  sets.insert(sets.end(), sets_given_.begin(), sets_given_.end());
  return load_options({}, sets);
}

}  // namespace qpipe
