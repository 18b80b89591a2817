#include "pipeline/plan/run_sizes.h"

#include <algorithm>
#include <map>
#include <set>
#include <stdexcept>
#include <utility>

#include "kernels/alignment.h"
#include "stages/architecture.h"
#include "stages/experts.h"
#include "stages/layer.h"

namespace qpipe {

namespace {

std::int64_t in_type(const TensorInfo& info, std::int64_t element) {
  return info.bytes() / static_cast<std::int64_t>(size_of(info.dtype)) * element;
}

struct Source {
  const Architecture& architecture;
  const Checkpoint& checkpoint;
  const QuantizePlan& plan;
  std::map<std::string, std::int64_t> packed;  // module → bytes
  DType compute;
  std::int64_t element;
};

LinearSizes linear_sizes(const Source& s, const std::string& module, const LinearSpec& spec) {
  const TensorInfo& info = s.checkpoint.info(module + ".weight");
  const LinearSettings& settings = s.plan.modules.at(module);
  LinearSizes sizes;
  sizes.rows = spec.out_features;
  sizes.columns = spec.in_features;
  sizes.stored_bytes = aligned(info.bytes());
  sizes.copy_bytes = info.dtype == s.compute ? 0 : in_type(info, s.element);
  sizes.quantized = !settings.skip;
  sizes.packed_bytes = sizes.quantized ? s.packed.at(module) : 0;
  sizes.gptq = sizes.quantized && settings.method == Method::gptq;
  sizes.static_groups = settings.static_groups;
  sizes.group_columns = settings.group_columns(sizes.columns);
  return sizes;
}

bool alike(StepSizes groups, const StepSizes& next) {
  groups.groups = next.groups;
  if (!next.search && groups.search && *groups.search != Inspected::linears) groups.search.reset();
  return groups == next;
}

LayerSizes layer_sizes(const Source& s, std::int64_t index) {
  const std::string prefix = layer_prefix(s.architecture, index);
  const LayerSpec& spec = s.architecture.layer(index);
  const std::vector<LinearSpec> linears = layer_linears(spec);
  LayerSizes layer;
  layer.count = 1;
  for (const TensorSpec& tensor : layer_tensors(spec)) {
    if (tensor.role == TensorRole::weight && !linears[tensor.linear].kept) continue;
    const TensorInfo& info = s.checkpoint.info(prefix + tensor.name);
    layer.small_bytes += aligned(info.bytes());
    if (info.dtype != s.compute) layer.small_copy_bytes += in_type(info, s.element);
  }
  const std::vector<ScalingPair> pairs =
      s.plan.procedure == Procedure::awq ? scaling_pairs(spec) : std::vector<ScalingPair>{};
  const std::vector<Step> steps = layer_steps(spec);
  const auto* experts = std::get_if<Experts>(&spec.mlp);
  for (std::size_t i = 0; i < steps.size(); ++i) {
    const Step& step = steps[i];
    const std::size_t first_of_step = layer.steps.size();
    bool searched = false;
    for (const Group& group : step.groups) {
      StepSizes sizes;
      const std::string& first = linears[group.linears.front()].name;
      sizes.part = step.part;
      sizes.name = first.substr(first.rfind('.') + 1);
      sizes.step = i;
      sizes.width = step.width;
      if (group.expert >= 0) {
        sizes.share = static_cast<double>(experts->per_token()) /
                      static_cast<double>(experts->experts.size());
        sizes.gathers = !step.panels[group.panel].sorted;
        sizes.weighted = group.weighted;
      }
      sizes.columns = group.width;
      sizes.to_original = s.plan.original_target && !step.is_for_experts();
      sizes.hidden = step.hidden;
      sizes.input = step.input;
      sizes.attention_width = step.attention_width;
      sizes.state_width = step.state_width;
      std::set<std::pair<bool, std::int64_t>> orders;  // linears of one order share a factor
      for (const std::size_t l : group.linears) {
        if (linears[l].kept) continue;  // with what is small
        const std::string module = prefix + linears[l].name;
        const LinearSizes& linear = sizes.linears.emplace_back(linear_sizes(s, module, linears[l]));
        const LinearSettings& settings = s.plan.modules.at(module);
        if (linear.gptq)
          orders.emplace(settings.desc_act,
                         settings.act_group_aware && !settings.desc_act ? linear.group_columns : 0);
      }
      sizes.factors = static_cast<std::int64_t>(orders.size());
      const auto g = static_cast<std::size_t>(&group - step.groups.data());
      if (sizes.solves())
        for (const ScalingPair& pair : pairs)  // that of several groups with the first to be solved
          if (pair.step == i &&
              (pair.groups == std::vector{g} || (pair.groups.size() > 1 && !searched)))
            sizes.search = pair.inspected;
      searched = searched || sizes.search;
      if (layer.steps.size() > first_of_step && alike(layer.steps.back(), sizes))
        ++layer.steps.back().groups;
      else
        layer.steps.push_back(std::move(sizes));
    }
  }
  return layer;
}

bool equal_layers(const LayerSizes& a, const LayerSizes& b) {
  return a.small_bytes == b.small_bytes && a.small_copy_bytes == b.small_copy_bytes &&
         a.steps == b.steps;
}

std::int64_t sum_of(const LayerSizes& layer, std::int64_t LinearSizes::*bytes) {
  std::int64_t sum = 0;
  for (const StepSizes& step : layer.steps)
    for (const LinearSizes& linear : step.linears) sum += step.groups * linear.*bytes;
  return sum;
}

}  // namespace

std::int64_t LayerSizes::attention_width() const {
  std::int64_t width = 0;
  for (const StepSizes& step : steps) width += step.attention_width;
  return width;
}

std::int64_t LayerSizes::state_width() const {
  std::int64_t width = 0;
  for (const StepSizes& step : steps) width += step.state_width;
  return width;
}

bool LayerSizes::begins_step(std::size_t index) const {
  return index == 0 || steps.at(index).step != steps.at(index - 1).step;
}

bool StepSizes::solves() const {
  return std::any_of(linears.begin(), linears.end(),
                     [](const LinearSizes& linear) { return linear.quantized; });
}

std::int64_t LayerSizes::stored_bytes() const {
  return small_bytes + sum_of(*this, &LinearSizes::stored_bytes);
}
std::int64_t LayerSizes::copy_bytes() const { return sum_of(*this, &LinearSizes::copy_bytes); }
std::int64_t LayerSizes::packed_bytes() const { return sum_of(*this, &LinearSizes::packed_bytes); }

bool RunSizes::at_once() const {
  switch (procedure) {
    case Procedure::cast:
    case Procedure::round:
    case Procedure::sequential: return false;
    case Procedure::at_once:
    case Procedure::awq: return true;
  }
  throw std::logic_error("RunSizes: no such procedure");
}

RunSizes run_sizes(const Options& options, const Architecture& a, const Checkpoint& checkpoint,
                   const QuantizePlan& plan, Backend backend) {
  Source source{a,
                checkpoint,
                plan,
                {},
                backend == Backend::cuda ? DType::bf16 : DType::f32,
                backend == Backend::cuda ? 2 : 4};
  RunSizes r;
  r.backend = backend;
  // On the CPU the kernels share the cores themselves.
  constexpr int fill_a_gpu = 8;
  r.most_solvers = backend == Backend::cuda ? fill_a_gpu : 1;
  r.compute_element = source.element;
  r.hidden = a.hidden;
  r.stream_width = a.stream_width();
  r.vocab = a.vocab;
  r.widest_input = widest_input(a);
  for (std::size_t step = 0; step < most_steps(a); ++step)
    r.input_widths.push_back(widest_input(a, step));
  r.scratch_width = scratch_width(a);
  for (const LayerSpec& kind : a.kinds)
    if (const auto* experts = std::get_if<Experts>(&kind.mlp)) {
      r.route_bytes = std::max(r.route_bytes, route_bytes(*experts));
      r.routed_experts =
          std::max(r.routed_experts, static_cast<std::int64_t>(experts->experts.size()));
    }
  r.layers = a.layers;
  r.procedure = plan.procedure;
  r.casts_steps = plan.storage.codec == Codec::nvfp4;
  r.quantized_propagation = plan.quantized_propagation;
  r.original_target = plan.original_target;
  r.exact_search = r.awq() && options.awq.search == "exact";
  r.grid = options.awq.grid;
  r.search_tokens = options.awq.search_tokens;
  r.search_rows = plan.search_rows;
  r.hessian_tokens = plan.hessian_tokens;
  r.samples = plan.calibrates() ? options.calibration.samples : 0;
  r.seqlen = options.calibration.seqlen;
  r.micro_batch = options.memory.micro_batch;
  r.expert_tokens = plan.expert_tokens;
  if (!options.evaluate.data.empty() && (options.evaluate.before || options.evaluate.after))
    r.evaluate_samples = options.evaluate.samples;
  r.evaluate_seqlen = options.evaluate.seqlen;
  r.table_bytes = table_bytes(a, r.seqlen);

  const std::set<std::string> tables{a.embedding.tokens, a.embedding.positions,
                                     a.per_layer ? a.per_layer->tokens : ""};
  for (const TensorSpec& tensor : embedding_tensors(a)) {
    const TensorInfo& info = checkpoint.info(tensor.name);
    r.embedding_bytes +=
        tables.contains(tensor.name) ? info.bytes() : in_type(info, source.element);
  }
  // Before a projection, and a second time in the stream: stages/embedding.cpp.
  if (a.embedding.projection) r.embedding_columns = a.embedding.width;
  if (a.per_layer)
    r.embedding_columns = std::max(r.embedding_columns, a.per_layer->projection.out_features);
  const TensorInfo& head =
      checkpoint.info(a.head.tied ? a.embedding.tokens : a.head.name + ".weight");
  r.head_bytes = head.bytes();
  if (head.dtype != source.compute) r.head_compute_bytes = in_type(head, source.element);
  for (const TensorInfo& info : plan.kept)
    if (!info.name.starts_with(plan.layer_prefix)) {
      const TensorInfo& stored = checkpoint.info(info.name);
      const std::int64_t piece = std::min(copied_elements, in_type(stored, 1));
      const std::size_t element = size_of(stored.dtype) + sizeof(float) +
                                  (stored.dtype == info.dtype ? 0 : size_of(info.dtype));
      r.kept_host_bytes.push_back(piece * static_cast<std::int64_t>(element));
    }
  for (const TensorInfo& info : plan.passed)
    r.passed_host_bytes = std::max(r.passed_host_bytes, std::min(copied_bytes, info.bytes()));
  for (const TensorInfo& info : plan.tensors) {
    r.output_bytes += info.bytes();
    if (plan.may_need_v2 && info.name.ends_with(".qzeros")) r.kept_back_bytes += info.bytes();
    // "MODULE.part", or "MODULE.weight.part" as bitsandbytes names its own.
    for (std::size_t dot = info.name.rfind('.'); dot != std::string::npos && dot > 0;
         dot = info.name.rfind('.', dot - 1))
      if (const auto module = plan.modules.find(info.name.substr(0, dot));
          module != plan.modules.end()) {
        source.packed[module->first] += info.bytes();
        break;
      }
  }
  for (std::int64_t index = 0; index < a.layers; ++index) {
    LayerSizes layer = layer_sizes(source, index);
    const auto same =
        std::find_if(r.layer_kinds.begin(), r.layer_kinds.end(),
                     [&](const LayerSizes& kind) { return equal_layers(kind, layer); });
    if (same == r.layer_kinds.end())
      r.layer_kinds.push_back(std::move(layer));
    else
      ++same->count;
  }
  return r;
}

}  // namespace qpipe
