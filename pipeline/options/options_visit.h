// The one declaration of every option. Reading, --set, help, validation and echo are visits of it.
#pragma once

#include <string>
#include <type_traits>
#include <vector>

#include "pipeline/options/limits.h"
#include "pipeline/options/option_rules.h"
#include "pipeline/options/options.h"

namespace qpipe {

// One function for each section.
template <class Section, class Visit>
void visit_model(Section& model, Visit& visit) {
  visit(
      "model.path", model.path, RequiredPath{}, "",
      "folder of the Hugging Face checkpoint (config.json and safetensors), or ORG/NAME[@REVISION] "
      "of the hub");
}

template <class Section, class Visit>
void visit_calibration(Section& calibration, Visit& visit) {
  visit("calibration.data", calibration.data, AnyPath{}, "",
        "token ids (.h5, .hdf5, .safetensors), text or rows with text or chats (.txt, .jsonl, "
        ".parquet, each also with .gz or .zst), or hf:ORG/NAME[/CONFIG]:SPLIT; empty: a small mix "
        "that qpipe ships");
  visit("calibration.dataset", calibration.dataset, Required{}, "",
        "name of the token ids in an .h5 or .safetensors file");
  visit("calibration.text_field", calibration.text_field, Required{}, "",
        "field of each row that holds the text; where it is not there, messages, conversations, or "
        "prompt and completion are taken");
  visit("calibration.samples", calibration.samples, Within{1, most_samples}, "samples",
        "how many sequences to calibrate on");
  visit("calibration.seqlen", calibration.seqlen, Within{1, most_seqlen}, "tokens",
        "length of each sequence");
  visit("calibration.expert_tokens", calibration.expert_tokens, Within{0, most_seqlen}, "tokens",
        "an expert to which fewer come is calibrated with evenly spaced others on top; 0: with its "
        "own alone");
  visit("calibration.seed", calibration.seed, Within{0}, "",
        "seed of the random choice of windows or documents");
  visit("calibration.mode", calibration.mode, OneOf{{"windows", "documents"}}, "",
        "how text is cut: random windows of the concatenated text, or the start of each document");
  visit("calibration.cache", calibration.cache, AnyPath{}, "",
        "folder of tokenized text; empty: $XDG_CACHE_HOME/qpipe or ~/.cache/qpipe");
  visit("calibration.mix", calibration.mix, AnyValue{}, "",
        "several sources instead of calibration.data");
}

template <class Section, class Visit>
void visit_quantize(Section& quantize, Visit& visit) {
  visit("quantize.method", quantize.method,
        OneOf{{"gptq", "awq", "rtn", "bnb-nf4", "bnb-fp4", "bnb-int8", "fp8", "fp8-block", "nvfp4",
               "mxfp4"}},
        "",
        "gptq and awq calibrate; rtn rounds to nearest; bnb-*: bitsandbytes; fp8, nvfp4, mxfp4: "
        "floats for vLLM; fp8-block: as DeepSeek-V3");
  visit("quantize.bits", quantize.bits, OneOfNumbers{{2, 3, 4, 8}}, "bits",
        "width of a quantized weight");
  visit("quantize.group_size", quantize.group_size, GroupSize{}, "inputs",
        "weights that share a scale and a zero; -1: a whole output channel");
  visit("quantize.symmetric", quantize.symmetric, AnyValue{}, "",
        "grid centred on zero; false: with a zero point, more exact at 2-4 bits (awq: "
        "awq.zero_point)");
  visit(
      "quantize.desc_act", quantize.desc_act, AnyValue{}, "",
      "quantize columns by descending activation, groups formed in that order (slower inference)");
  visit("quantize.static_groups", quantize.static_groups, AnyValue{}, "",
        "fix all groups' scales from the original weights");
  visit("quantize.act_group_aware", quantize.act_group_aware, AnyValue{}, "",
        "quantize columns by descending activation but keep the groups in place (no cost in "
        "inference)");
  visit("quantize.damp_percent", quantize.damp_percent, Inside{0.0, 1.0}, "of mean(diag H)",
        "added to the Hessian's diagonal");
  visit("quantize.damp_auto_increment", quantize.damp_auto_increment, Inside{0.0, 1.0},
        "of mean(diag H)", "added to damp_percent each time the factorisation fails");
  visit("quantize.mse", quantize.mse, Within{-1, most_mse_exponent}, "",
        "search scales that minimise the sum of |error|^mse; 0: no search; -1: 0, for gptq 2.4, or "
        "with target = original the sum of squares with the weights that they have in the loss");
  visit("quantize.true_sequential", quantize.true_sequential, AnyValue{}, "",
        "inside a layer, calibrate each step on the quantized steps before it");
  visit("quantize.allow_fallback", quantize.allow_fallback, AnyValue{}, "",
        "go on when more than 2% of the modules have no usable Hessian and are rounded to nearest");
  visit("quantize.propagate", quantize.propagate, OneOf{{"auto", "quantized", "original"}}, "",
        "which layer outputs the next layer calibrates on; auto: original for awq, else quantized");
  visit("quantize.target", quantize.target, OneOf{{"quantized", "original"}}, "",
        "gptq: codes come near to what the linear makes of its input in the quantized model, or to "
        "what it makes of that in the original model (better, in about twice the time)");
  visit("quantize.overrides", quantize.overrides, AnyValue{}, "",
        "settings of single modules; the first match wins");
}

template <class Section, class Visit>
void visit_awq(Section& awq, Visit& visit) {
  visit("awq.search", awq.search, OneOf{{"exact", "gram"}}, "",
        "how scales are compared: by the outputs of attention and MLP, or by those of the linears "
        "alone (faster)");
  visit("awq.search_tokens", awq.search_tokens, Within{0, most_tokens}, "tokens",
        "evenly spaced, that outputs (search = exact) are compared on, or Gram matrices (gram with "
        "rounding = rtn) are summed over; 0: all");
  visit("awq.search_rows", awq.search_rows, Within{0, most_rows}, "rows",
        "search = gram: scales are compared by this many outputs of each linear, evenly spaced; 0: "
        "by all");
  visit("awq.grid", awq.grid, Within{1, most_ratios}, "ratios",
        "how many scales are tried for each group of linears");
  visit("awq.duo_scaling", awq.duo_scaling, AnyValue{}, "",
        "scales follow the weights' relative magnitude, too");
  visit("awq.clip", awq.clip, AnyValue{}, "",
        "search how far each group of weights is cut off before rounding");
  visit("awq.zero_point", awq.zero_point, AnyValue{}, "",
        "grid with a zero point; false: centred on zero");
  visit("awq.rounding", awq.rounding, OneOf{{"rtn", "gptq"}}, "",
        "how the scaled weights are rounded: to nearest, or by gptq");
}

template <class Section, class Visit>
void visit_bnb(Section& bnb, Visit& visit) {
  visit("bnb.block_size", bnb.block_size, OneOfNumbers{{64, 128, 256, 512, 1024, 2048, 4096}},
        "weights", "that share a scale, in 4 bits");
  visit("bnb.double_quant", bnb.double_quant, AnyValue{}, "",
        "quantize the scales, too: 0.37 bits less for each weight");
  visit("bnb.storage", bnb.storage, OneOf{{"uint8", "bfloat16", "float16", "float32"}}, "",
        "type that the packed bytes are declared as; bfloat16 suits FSDP");
  visit("bnb.compute_dtype", bnb.compute_dtype, OneOf{{"auto", "bfloat16", "float16", "float32"}},
        "", "type that loaders compute in; auto: that of the unquantized tensors");
}

template <class Section, class Visit>
void visit_parallel(Section& parallel, Visit& visit) {
  visit("parallel.backend", parallel.backend, OneOf{{"auto", "cpu", "cuda"}}, "",
        "auto: cuda when a GPU is there");
  visit("parallel.share_gpu", parallel.share_gpu, AnyValue{}, "", "let several ranks use one GPU");
  visit("parallel.teams", parallel.teams, Within{0, most_ranks}, "teams",
        "groups of ranks that take the layers in turns and hand on the hidden states; 0: as many "
        "as ranks if layers are independent of each "
        "other (propagate = original), else 1");
  visit("parallel.threads", parallel.threads, Within{0, most_threads}, "threads",
        "CPU threads of each rank; 0: this rank's share of the cores");
  visit("parallel.timeout", parallel.timeout, Within{1, most_seconds}, "s",
        "longest wait of a rank for the others");
}

template <class Section, class Visit>
void visit_memory(Section& memory, Visit& visit) {
  visit("memory.micro_batch", memory.micro_batch, Within{1, most_seqlen}, "tokens",
        "block that goes through a layer at once; part of the result");
  visit(
      "memory.gpu", memory.gpu, SizeOrAuto{}, "",
      "of the card, for each rank; auto: 92% of what is free, divided by the ranks that share it");
  visit("memory.host", memory.host, SizeOrAuto{}, "",
        "of the machine, for each rank; auto: 80% of what is available, divided by its ranks");
}

template <class Section, class Visit>
void visit_output(Section& output, Visit& visit) {
  visit("output.path", output.path, RequiredPath{}, "",
        "folder to write the quantized checkpoint to");
  visit("output.format", output.format,
        OneOf{{"auto", "gptq", "gptq_v2", "awq", "compressed-tensors", "bitsandbytes", "fp8"}}, "",
        "auto: what the method and output.target ask for; gptq and rtn: gptq when symmetric, else "
        "gptq_v2");
  visit("output.target", output.target, OneOf{{"any", "vllm", "transformers"}}, "",
        "who must load the result");
  visit("output.dtype", output.dtype, OneOf{{"auto", "float16", "bfloat16"}}, "",
        "of the tensors left unquantized; auto: float16 beside integer codes, else the source's");
  visit("output.max_shard_size", output.max_shard_size, ByteSize{}, "",
        "size of a safetensors file");
  visit("output.overwrite", output.overwrite, AnyValue{}, "",
        "write into a folder that is not empty: what qpipe wrote there is removed, other files "
        "stay");
}

template <class Section, class Visit>
void visit_run(Section& run, Visit& visit) {
  visit("run.progress", run.progress, OneOf{{"auto", "bar", "plain", "none"}}, "",
        "auto: a bar on a terminal, else plain lines");
  visit("run.report", run.report, AnyPath{}, "",
        "JSON file of losses and timings; empty: OUTPUT.report.json beside the output folder");
  visit("run.folder", run.folder, AnyPath{}, "",
        "state of an unfinished run; empty: OUTPUT.run beside the output folder");
  visit("run.resume", run.resume, OneOf{{"auto", "require", "never"}}, "",
        "auto: go on with an unfinished run of the same settings; require: fail when there is "
        "none; never: start over");
  visit("run.allow_other_build", run.allow_other_build, AnyValue{}, "",
        "go on with an unfinished run of another build of qpipe or its libraries, whose results "
        "may differ in bits");
  visit("run.log_level", run.log_level, OneOf{{"trace", "debug", "info", "warn", "error", "off"}},
        "", "least severe message that is logged");
}

template <class Section, class Visit>
void visit_evaluate(Section& evaluate, Visit& visit) {
  visit("evaluate.data", evaluate.data, AnyPath{}, "",
        "tokens or text to compute the perplexity on; empty: no evaluation");
  visit("evaluate.dataset", evaluate.dataset, Required{}, "",
        "name of the token ids in an .h5 or .safetensors file");
  visit("evaluate.text_field", evaluate.text_field, Required{}, "",
        "field of each row that holds the text");
  visit("evaluate.samples", evaluate.samples, Within{0, most_samples}, "samples",
        "consecutive windows from the start; 0: all");
  visit("evaluate.seqlen", evaluate.seqlen, Within{2, most_seqlen}, "tokens",
        "length of each window");
  visit("evaluate.before", evaluate.before, AnyValue{}, "", "evaluate the original");
  visit("evaluate.after", evaluate.after, AnyValue{}, "", "evaluate the quantized model");
}

// Calls visit(key, value, rule, unit, help) for each option, sections in order. `Tree` is Options
// or const Options; where the value is a vector (is_tables), visit_entry visits its entries.
template <class Tree, class Visit>
void visit_options(Tree& options, Visit&& visit) {
  visit_model(options.model, visit);
  visit_calibration(options.calibration, visit);
  visit_quantize(options.quantize, visit);
  visit_awq(options.awq, visit);
  visit_bnb(options.bnb, visit);
  visit_parallel(options.parallel, visit);
  visit_memory(options.memory, visit);
  visit_output(options.output, visit);
  visit_run(options.run, visit);
  visit_evaluate(options.evaluate, visit);
}

template <class Value>
inline constexpr bool is_tables = false;
template <class Entry>
inline constexpr bool is_tables<std::vector<Entry>> = true;

// The same for one entry of [[calibration.mix]] or [[quantize.overrides]]. Keys are without
// section. The first key is required; 0, false and "" stand for what is not set.
template <class Entry, class Visit>
requires std::is_same_v<std::remove_const_t<Entry>, MixEntry>
void visit_entry(Entry& entry, Visit&& visit) {
  visit("data", entry.data, RequiredPath{}, "", "as calibration.data");
  visit("share", entry.share, Inside{0.0, 1e9}, "", "of the samples, beside the other shares; 1");
  visit("text_field", entry.text_field, AnyValue{}, "", "instead of calibration.text_field");
  visit("dataset", entry.dataset, AnyValue{}, "", "instead of calibration.dataset");
}

template <class Entry, class Visit>
requires std::is_same_v<std::remove_const_t<Entry>, ModuleOverride>
void visit_entry(Entry& entry, Visit&& visit) {
  visit("match", entry.match, RegularExpression{}, "",
        "searched in the module's full name, such as model.layers.3.mlp.down_proj");
  visit("skip", entry.skip, AnyValue{}, "", "leave the module unquantized");
  visit("bits", entry.bits, OneOfNumbers{{2, 3, 4, 8}}, "bits", "instead of quantize.bits");
  visit("group_size", entry.group_size, GroupSize{}, "inputs", "instead of quantize.group_size");
  visit("symmetric", entry.symmetric, OptionalBoolean{}, "", "instead of quantize.symmetric");
}

}  // namespace qpipe
