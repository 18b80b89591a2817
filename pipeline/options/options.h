// Every option of a run. Names, types, units, help and checks are declared once, in
// options_visit.h; the defaults are here.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace qpipe {

// [[quantize.overrides]]: the first entry whose regular expression matches the module's full name
// wins; unset (0 / -2 / "") keeps the default.
struct ModuleOverride {
  std::string
      match;  // regular expression (RE2's syntax), searched in "model.layers.3.mlp.down_proj"
  bool skip = false;            // leave the module unquantized
  std::int64_t bits = 0;        // 0: as [quantize]
  std::int64_t group_size = 0;  // 0: as [quantize]
  std::string symmetric;        // "true", "false" or "": as [quantize]
};

// [[calibration.mix]]: one of several sources of the calibration's samples.
struct MixEntry {
  std::string data;        // as calibration.data
  double share = 0.0;      // of the samples, beside the others' shares; 0: 1
  std::string text_field;  // "": as [calibration]
  std::string dataset;     // "": as [calibration]
};

struct Options {
  struct Model {
    std::string path;  // a folder, or ORG/NAME[@REVISION] of the hub
  } model;

  struct Calibration {
    // .h5/.hdf5, .safetensors, .txt, .jsonl, .parquet, each text also with .gz or .zst, or
    // hf:ORG/NAME[/CONFIG]:SPLIT; "" without mix: what qpipe ships (pipeline/data/default_mix.h)
    std::string data;
    std::string dataset = "input_ids";  // name of the tensor of token ids in .h5 / .safetensors
    std::string text_field = "text";
    std::int64_t samples = 128;
    std::int64_t seqlen = 2048;
    std::int64_t expert_tokens = 256;  // that an expert is calibrated with, at least
    std::int64_t seed = 0;
    std::string mode = "windows";  // windows | documents
    std::string cache;  // folder of tokenized data; "": $XDG_CACHE_HOME/qpipe or ~/.cache/qpipe
    std::vector<MixEntry> mix;
  } calibration;

  struct Quantize {
    std::string method = "gptq";  // gptq | awq | rtn | bnb-nf4 | bnb-fp4 | bnb-int8 | fp8 |
                                  // fp8-block | nvfp4 | mxfp4
    std::int64_t bits = 4;
    std::int64_t group_size = 128;  // -1: one group per output channel
    bool symmetric = true;
    bool desc_act = false;
    bool static_groups = false;
    bool act_group_aware = false;
    double damp_percent = 0.01;         // fraction of mean(diag H)
    double damp_auto_increment = 0.01;  // added after each failed factorisation
    double mse = -1.0;  // exponent of the scale search's error; 0: no search; -1: 0, for gptq 2.4
    bool true_sequential = true;
    bool allow_fallback = false;  // go on when more than 2% of the modules fall back to RTN
    std::string propagate =
        "auto";  // auto (= original for awq, else quantized) | quantized | original
    std::string target = "quantized";  // quantized | original
    std::vector<ModuleOverride> overrides;
  } quantize;

  struct Awq {
    std::string search = "exact";        // exact | gram
    std::int64_t search_tokens = 32768;  // 0: all
    std::int64_t search_rows = 1024;     // of each linear, in the Gram search; 0: all
    std::int64_t grid = 20;
    bool duo_scaling = true;
    bool clip = true;
    bool zero_point = true;        // in place of quantize.symmetric
    std::string rounding = "rtn";  // rtn | gptq
  } awq;

  struct Bnb {
    std::int64_t block_size = 64;
    bool double_quant = false;
    std::string storage = "uint8";       // uint8 | bfloat16 | float16 | float32: the same bytes
    std::string compute_dtype = "auto";  // auto (= output.dtype) | bfloat16 | float16 | float32
  } bnb;

  struct Parallel {
    std::string backend = "auto";  // auto | cpu | cuda
    bool share_gpu = false;
    std::int64_t teams = 0;  // groups of ranks that take the layers in turns; 0: as the method asks
    std::int64_t threads = 0;    // CPU threads per rank; 0: as OpenMP says
    std::int64_t timeout = 600;  // s, of every collective
  } parallel;

  struct Memory {
    std::int64_t micro_batch = 16384;  // tokens per forward block
    std::string gpu = "auto";          // of the card, for each rank: auto | a size
    std::string host = "auto";         // of the machine, for each rank: auto | a size
  } memory;

  struct Output {
    std::string path;
    std::string format =
        "auto";  // auto | gptq | gptq_v2 | awq | compressed-tensors | bitsandbytes | fp8
    std::string target = "any";  // any | vllm | transformers: who must load the result
    std::string dtype = "auto";  // of the tensors left unquantized: auto | float16 | bfloat16
    std::string max_shard_size = "5GB";
    bool overwrite = false;
  } output;

  struct Run {
    std::string progress = "auto";  // auto | bar | plain | none
    std::string report;             // JSON file; "": OUTPUT.report.json beside the output folder
    std::string folder;  // what a stopped run goes on from; "": OUTPUT.run beside the output folder
    std::string resume = "auto";  // auto | require | never
    bool allow_other_build = false;
    std::string log_level = "info";
  } run;

  struct Evaluate {
    std::string data;  // "": no evaluation
    std::string dataset = "input_ids";
    std::string text_field = "text";
    std::int64_t samples = 0;  // 0: all windows in order
    std::int64_t seqlen = 2048;
    bool before = true;
    bool after = true;
  } evaluate;

  // Of paths that stand for names of the hub: path to name. No option.
  std::map<std::string, std::string> fetched;
};

// Whether load_options also checks that the model and the data are there. Those of the hub are not
// asked for.
enum class Inputs { must_exist, unchecked };

// Reads a TOML file ("": none), then each of `sets` ("section.key=value", the last one wins), and
// validates the result. Relative paths stay relative to the current folder. Throws UserError with
// FILE:LINE and the key: ExitCode::config for a wrong key or value, no_input for a missing file.
Options load_options(const std::filesystem::path& toml, const std::vector<std::string>& sets,
                     Inputs inputs = Inputs::must_exist);

// Checks of values and of combinations that need no model. Throws UserError(ExitCode::config) for
// the first fault.
void validate_options(const Options& options);

// The effective values, all of them: read back by load_options to equal Options.
std::string options_as_toml(const Options& options);
nlohmann::json options_as_json(const Options& options);

// Those of them that differ from the defaults, and that `shown` says yes to.
std::string changed_options_as_toml(const Options& options,
                                    const std::function<bool(const std::string&)>& shown);

// Absolute paths cut to their last name, or the hub's name that they stand for: for what others are
// given to read.
Options without_folders(Options options);

// A table of every option: key, type, default, unit, values allowed, help.
std::string options_help();

}  // namespace qpipe
