#include "pipeline/plan/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <set>
#include <stdexcept>

#include "kernels/clip_search.h"
#include "pipeline/files/error.h"
#include "pipeline/files/pattern.h"
#include "pipeline/model/model.h"
#include "pipeline/model/passed_through.h"
#include "pipeline/options/sizes.h"
#include "pipeline/plan/family_loaders.h"
#include "pipeline/plan/format_choice.h"
#include "pipeline/plan/module_names.h"
#include "pipeline/plan/whole_stacks.h"
#include "stages/clip.h"
#include "stages/layer.h"

namespace qpipe {

namespace {

LinearSettings default_settings(const Options& options) {
  const Options::Quantize& o = options.quantize;
  const bool awq = o.method == "awq";
  LinearSettings s;
  s.method = (awq ? options.awq.rounding : o.method) == "rtn" ? Method::rtn : Method::gptq;
  s.bits = static_cast<int>(o.bits);
  s.group_size = o.group_size;
  s.symmetric = awq ? !options.awq.zero_point : o.symmetric;
  s.desc_act = s.method == Method::gptq && o.desc_act;
  s.static_groups = s.method == Method::gptq && o.static_groups;
  s.act_group_aware = s.method == Method::gptq && o.act_group_aware;
  s.weighted_search = o.mse < 0.0 && o.target == "original";
  const float searched = s.weighted_search ? 2.0f : 2.4f;
  s.mse_norm = o.mse >= 0.0 ? static_cast<float>(o.mse) : o.method == "gptq" ? searched : 0.0f;
  s.damp_percent = o.damp_percent;
  s.damp_increment = o.damp_auto_increment;
  return s;
}

// A codec's own condition on the sizes; "" when it is met.
std::string size_fault(const LinearSpec& linear, const LinearSettings& s,
                       const StorageSettings& storage) {
  const auto multiple = [&](std::int64_t of) {
    return linear.in_features % of == 0 ? ""
                                        : fmt::format(
                                              "its groups of {} inputs do not divide {}; add an "
                                              "entry to quantize.overrides with skip = true for it",
                                              of, linear.in_features);
  };
  switch (storage.codec) {
    case Codec::nvfp4: return multiple(16);
    case Codec::mxfp4: return multiple(32);
    case Codec::nf4:
    case Codec::fp4:
    case Codec::int8_rows:
    case Codec::float8_rows:
    case Codec::float8_blocks: return {};
    case Codec::integer: break;
  }
  if (s.group_size > 0 && linear.in_features % s.group_size != 0) {
    std::string sizes;
    for (const std::int64_t g : {32, 64, 96, 128, 192, 256, 512, 1024})
      if (linear.in_features % g == 0) sizes += fmt::format("{}, ", g);
    return fmt::format("quantize.group_size = {} does not divide the {} inputs; use {}or -1",
                       s.group_size, linear.in_features, sizes);
  }
  if (linear.in_features % 32 != 0 || linear.out_features % 32 != 0)
    return fmt::format(
        "{} packs 32 values at a time, and a size is no multiple of 32; add an entry to "
        "quantize.overrides with skip = true for it",
        name_of(storage.format));
  if (storage.format == Format::awq && s.bits != 4)
    return "awq holds 4 bits only; remove bits from the entry of quantize.overrides";
  return {};
}

void check_clip(const std::string& module, const LinearSpec& linear, const LinearSettings& s) {
  if (s.group_columns(linear.in_features) > largest_clip_group)
    throw UserError(ExitCode::config, fmt::format("{}: awq.clip needs groups of at most {} inputs, "
                                                  "and quantize.group_size = {}; choose a smaller "
                                                  "group or set awq.clip = false",
                                                  module, largest_clip_group, s.group_size));
}

// The type of the decoder's first linear.
DType source_dtype(const Architecture& architecture, const Checkpoint& checkpoint) {
  for (std::int64_t layer = 0; layer < architecture.layers; ++layer)
    for (const LinearSpec& linear : layer_linears(architecture.layer(layer)))
      return checkpoint.info(layer_prefix(architecture, layer) + linear.name + ".weight").dtype;
  return checkpoint.info(architecture.embedding.tokens).dtype;
}

// "model.layers.3.…" of a decoder of more than three layers.
bool is_in_a_layer(const Architecture& architecture, const std::string& name) {
  if (!name.starts_with(architecture.layer_prefix)) return false;
  const char* begin = name.data() + architecture.layer_prefix.size();
  const char* end = name.data() + name.size();
  std::int64_t layer = 0;
  const auto [after, error] = std::from_chars(begin, end, layer);
  return error == std::errc() && after != end && *after == '.' && layer >= 0 &&
         layer < architecture.layers;
}

// The tensors that the decoder doesn't read go last; and all modules of floats are named.
void pass_through_the_rest(const Architecture& architecture, const Checkpoint& checkpoint,
                           QuantizePlan& plan) {
  std::set<std::string> written;
  for (const TensorInfo& tensor : plan.tensors) written.insert(tensor.name);
  std::vector<std::string> unread;  // inside of the decoder layers
  for (const std::string& name : passed_through(architecture, checkpoint)) {
    if (written.contains(name)) {
      plan.notes.push_back(fmt::format(
          "'{}' of the original is left out: a part of a quantized linear has its name", name));
      continue;
    }
    plan.passed.push_back(checkpoint.info(name));
    plan.tensors.push_back(plan.passed.back());
    if (is_in_a_layer(architecture, name)) unread.push_back(name);
  }
  if (!unread.empty())
    plan.notes.push_back(fmt::format(
        "{} tensor(s) of decoder layers are copied, but config.json gives the decoder no use for "
        "them; the first is '{}'",
        unread.size(), unread.front()));

  // Tables and norms of heads have two axes as linears do.
  std::set<std::string> others{architecture.embedding.tokens, architecture.embedding.positions,
                               architecture.head.name + ".weight"};
  if (architecture.per_layer) others.insert(architecture.per_layer->tokens);
  for (std::int64_t layer = 0; layer < architecture.layers; ++layer)
    for (const TensorSpec& tensor : layer_tensors(architecture.layer(layer)))
      if (tensor.role != TensorRole::weight)
        others.insert(layer_prefix(architecture, layer) + tensor.name);
  std::vector<TensorInfo> floats = plan.kept;
  floats.insert(floats.end(), plan.passed.begin(), plan.passed.end());
  for (std::string& module : float_linears(floats))
    if (!others.contains(module + ".weight") && !plan.modules.contains(module))
      plan.unquantized.push_back(std::move(module));
}

// quantize.overrides: the first entry that matches a module counts.
class Overrides {
 public:
  explicit Overrides(const std::vector<ModuleOverride>& entries)
      : entries_(entries), used_(entries.size(), false) {
    for (const ModuleOverride& entry : entries)
      patterns_.emplace_back(entry.match, Anchor::anywhere);
  }

  void apply(const std::string& module, LinearSettings& settings) {
    const auto found =
        std::find_if(patterns_.begin(), patterns_.end(),
                     [&](const Pattern& pattern) { return pattern.matches(module); });
    if (found == patterns_.end()) return;
    const auto i = static_cast<std::size_t>(found - patterns_.begin());
    apply_override(entries_[i], settings);
    used_[i] = true;
  }

  void check_used(const std::string& some_module) const {
    const auto unused = std::find(used_.begin(), used_.end(), false);
    if (unused == used_.end()) return;
    const auto i = static_cast<std::size_t>(unused - used_.begin());
    throw UserError(
        ExitCode::config,
        fmt::format(
            "quantize.overrides[{}]: match = \"{}\" matches no module; modules are named like {}",
            i, entries_[i].match, some_module));
  }

 private:
  const std::vector<ModuleOverride>& entries_;
  std::vector<Pattern> patterns_;
  std::vector<bool> used_;
};

// Whether the source has a linear's tensors as they are to be stored, but for scales that widen.
bool has_parts(const Checkpoint& checkpoint, const std::string& module,
               const std::vector<NamedTensor>& wanted) {
  const std::vector<TensorInfo> parts = checkpoint.parts_of(module + ".weight");
  return parts.size() == wanted.size() && std::ranges::all_of(wanted, [&](const NamedTensor& part) {
           return std::ranges::any_of(parts, [&](const TensorInfo& stored) {
             return stored.name == part.name && stored.shape == part.shape &&
                    (stored.dtype == part.dtype ||
                     (part.dtype == DType::f32 &&
                      (stored.dtype == DType::bf16 || stored.dtype == DType::f16)));
           });
         });
}

std::string note_of_a_quantized_source(const Checkpoint& checkpoint, const QuantizePlan& plan) {
  const auto packed =
      std::ranges::count_if(plan.modules, [](const auto& module) { return !module.second.skip; });
  const std::size_t copied = plan.packed_in_source.size();
  std::string note = fmt::format("the source is quantized ({}): ", checkpoint.dequantized_from());
  if (copied > 0)
    note += fmt::format("{} of {} linears are copied, as they are packed in this way already",
                        copied, packed);
  if (std::ssize(plan.packed_in_source) < packed)
    note += copied > 0 ? "; the others are dequantized and quantized anew"
                       : "its weights are dequantized as they are read, and quantized anew";
  return note;
}

Procedure choose_procedure(const Options& options, const QuantizePlan& plan) {
  if (plan.storage.codec != Codec::integer) return Procedure::cast;
  if (options.quantize.method == "awq") return Procedure::awq;
  if (plan.defaults.method == Method::rtn) return Procedure::round;
  return options.quantize.true_sequential && plan.quantized_propagation ? Procedure::sequential
                                                                        : Procedure::at_once;
}

// Decays of a state, corrections of routers: small, and float32 for a reason.
bool stays_float32(const TensorSpec& tensor, const TensorInfo& stored) {
  return tensor.role == TensorRole::vector && stored.dtype == DType::f32;
}

}  // namespace

bool calibrates(Procedure procedure) {
  switch (procedure) {
    case Procedure::cast:
    case Procedure::round: return false;
    case Procedure::sequential:
    case Procedure::at_once:
    case Procedure::awq: return true;
  }
  throw std::logic_error("calibrates: no such procedure");
}

QuantizePlan plan_quantization(const Options& options, const Architecture& architecture,
                               const Checkpoint& checkpoint) {
  QuantizePlan plan;
  plan.defaults = default_settings(options);
  const FormatChoice choice =
      choose_format(options, plan.defaults, source_dtype(architecture, checkpoint));
  plan.storage = choice.storage;
  plan.notes = choice.notes;
  plan.layer_prefix = architecture.layer_prefix;
  plan.lm_head = architecture.head.name;
  plan.untied = is_untied(architecture, checkpoint.config());
  if (plan.untied)
    plan.notes.push_back(fmt::format(
        "tie_word_embeddings is true, but '{}.weight' differs from '{}': both are kept, "
        "as in transformers, and the output says tie_word_embeddings = false",
        architecture.head.name, architecture.embedding.tokens));
  const bool awq = options.quantize.method == "awq";
  plan.quantized_propagation =
      options.quantize.propagate == "auto" ? !awq : options.quantize.propagate == "quantized";
  plan.procedure = choose_procedure(options, plan);
  plan.original_target = options.quantize.target == "original";
  plan.expert_tokens = options.calibration.expert_tokens;
  plan.max_shard_bytes = parse_size(options.output.max_shard_size);
  if (awq && options.awq.search == "gram") {
    plan.search_rows = options.awq.search_rows;
    if (options.awq.rounding == "rtn") plan.hessian_tokens = options.awq.search_tokens;
  }

  Overrides overrides(options.quantize.overrides);
  const auto keep = [&](const std::string& name) {
    const TensorInfo& info = checkpoint.info(name);
    plan.kept.push_back({name, plan.storage.dtype, info.shape});
    plan.tensors.push_back(plan.kept.back());
  };
  for (const TensorSpec& tensor : embedding_tensors(architecture)) keep(tensor.name);
  double packed_bits = 0.0;
  double packed_weights = 0.0;
  for (std::int64_t layer = 0; layer < architecture.layers; ++layer) {
    const std::string prefix = layer_prefix(architecture, layer);
    const LayerSpec& spec = architecture.layer(layer);
    const std::vector<LinearSpec> linears = layer_linears(spec);
    for (const TensorSpec& tensor : layer_tensors(spec)) {
      if (tensor.role != TensorRole::weight) {
        keep(prefix + tensor.name);
        if (stays_float32(tensor, checkpoint.info(prefix + tensor.name)))
          plan.kept.back().dtype = plan.tensors.back().dtype = DType::f32;
        continue;
      }
      const LinearSpec& linear = linears[tensor.linear];
      const std::string module = prefix + linear.name;
      LinearSettings settings = plan.defaults;
      overrides.apply(module, settings);
      if (linear.kept) {
        settings.skip = true;
        plan.unquantized.push_back(module);
      }
      plan.modules[module] = settings;
      if (settings.skip) {
        keep(prefix + tensor.name);
        continue;
      }
      const std::string fault = size_fault(linear, settings, plan.storage);
      if (!fault.empty())
        throw UserError(ExitCode::config,
                        fmt::format("{} (out {}, in {}): {}", module, linear.out_features,
                                    linear.in_features, fault));
      if (awq && options.awq.clip && may_clip(module)) check_clip(module, linear, settings);
      if (!settings.symmetric && plan.storage.format == Format::gptq) plan.may_need_v2 = true;
      const std::vector<NamedTensor> parts =
          stored_tensors(module, linear.out_features, linear.in_features, settings, plan.storage);
      if (plan.casts() && has_parts(checkpoint, module, parts))
        plan.packed_in_source.insert(module);
      for (const NamedTensor& part : parts) {
        plan.tensors.push_back({part.name, part.dtype, part.shape});
        packed_bits += 8.0 * static_cast<double>(plan.tensors.back().bytes());
      }
      packed_weights +=
          static_cast<double>(linear.out_features) * static_cast<double>(linear.in_features);
    }
  }
  if (!plan.modules.empty()) overrides.check_used(plan.modules.begin()->first);
  if (!checkpoint.dequantized_from().empty())
    plan.notes.push_back(note_of_a_quantized_source(checkpoint, plan));
  if (options.output.target != "vllm")
    for (const FamilyFault& fault :
         family_faults(plan.storage.format, checkpoint.config(), plan.packs_experts()))
      plan.notes.push_back(fmt::format("{} does not load this family in format {}{}: it {}",
                                       fault.program, name_of(plan.storage.format),
                                       fault.dequantized ? " but dequantized" : "", fault.why));
  for (const TensorSpec& tensor : head_tensors(architecture)) keep(tensor.name);
  pass_through_the_rest(architecture, checkpoint, plan);
  keep_whole_stacks(checkpoint, plan);
  plan.bits_per_weight = packed_weights > 0.0 ? packed_bits / packed_weights : 0.0;
  return plan;
}

bool QuantizePlan::packs_experts() const {
  return std::any_of(modules.begin(), modules.end(), [](const auto& module) {
    return !module.second.skip && is_of_an_expert(module.first);
  });
}

std::vector<std::string> QuantizePlan::skipped() const {
  const std::set<std::string> others(unquantized.begin(), unquantized.end());
  std::vector<std::string> names;
  for (const auto& [module, settings] : modules)
    if (settings.skip && !others.contains(module)) names.push_back(module);
  return names;
}

}  // namespace qpipe
