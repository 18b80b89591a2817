#include "stages/layer.h"

#include <algorithm>
#include <stdexcept>

#include "kernels/activation.h"
#include "kernels/add.h"
#include "kernels/linear.h"
#include "kernels/multiply.h"
#include "kernels/norm.h"
#include "stages/attention.h"
#include "stages/attention_beside_mamba2.h"
#include "stages/delta_net.h"
#include "stages/experts.h"
#include "stages/latent_attention.h"
#include "stages/layer_lists.h"
#include "stages/mamba.h"
#include "stages/mamba2.h"
#include "stages/short_conv.h"

namespace qpipe {

namespace {

template <class... Cases>
struct Overloaded : Cases... {
  using Cases::operator()...;
};

// A linear or nothing in place of the mixer.
Linears mixer_linears(const SingleLinear& s) { return {s.linear}; }
const LinearSpec& last_linear(const SingleLinear& s) { return s.linear; }
void add_mixer_norms(const SingleLinear&, std::vector<NormTensors>&) {}
std::vector<TensorSpec> mixer_vectors(const SingleLinear&) { return {}; }
void add_mixer_steps(const SingleLinear&, std::int64_t hidden, std::vector<Step>& steps) {
  steps.push_back(make_step(Part::mixer, 0, hidden, 0, 1));
}
std::int64_t mixer_scratch_width(const SingleLinear&) { return 0; }
KindTables make_mixer_tables(const SingleLinear&, std::int64_t, Stream&) { return {}; }
std::int64_t mixer_table_bytes(const SingleLinear&, std::int64_t) { return 0; }
void run_mixer(const SingleLinear&, const MixerRun&, Stream&) {}

Linears mixer_linears(const Nothing&) { return {}; }
const LinearSpec& last_linear(const Nothing&) {
  throw std::logic_error("a layer without a mixer has no output of one");
}
void add_mixer_norms(const Nothing&, std::vector<NormTensors>&) {}
std::vector<TensorSpec> mixer_vectors(const Nothing&) { return {}; }
void add_mixer_steps(const Nothing&, std::int64_t, std::vector<Step>&) {}
std::int64_t mixer_scratch_width(const Nothing&) { return 0; }
KindTables make_mixer_tables(const Nothing&, std::int64_t, Stream&) { return {}; }
std::int64_t mixer_table_bytes(const Nothing&, std::int64_t) { return 0; }
void run_mixer(const Nothing&, const MixerRun&, Stream&) {}

Linears mixer_linears(const LayerSpec& spec) {
  return std::visit([](const auto& mixer) { return mixer_linears(mixer); }, spec.mixer);
}

Linears mlp_linears(const LayerSpec& spec) {
  return std::visit(Overloaded{[](const Mlp& m) {
                                 Linears linears = m.in;
                                 linears.push_back(m.out);
                                 return linears;
                               },
                               [](const Experts& e) { return expert_linears(e); },
                               [](const SingleLinear& s) { return Linears{s.linear}; },
                               [](const Nothing&) { return Linears{}; }},
                    spec.mlp);
}

void add_norm_tensors(const std::optional<NormSpec>& norm, std::vector<TensorSpec>& tensors) {
  std::vector<NormTensors> norms;
  add_norm(norm, norms);
  add_tensors(norms, tensors);
}

// The view of the block's input memory for another width.
Tensor input_of_width(const Block& block, std::int64_t width) {
  return {block.input.data, block.input.dtype, block.input.rows, width};
}

const std::optional<NormSpec>& norm_before(const LayerSpec& spec, Part part) {
  static const std::optional<NormSpec> none;
  switch (part) {
    case Part::mixer: return spec.mixer_norm;
    case Part::mlp: return spec.shares_norm() ? spec.mixer_norm : spec.mlp_norm;
    case Part::per_layer: return none;
  }
  return none;
}

// y = the input of the part's first step; experts route with it.
void read_stream(const Layer& layer, Part part, ConstTensor hidden, Tensor y, Routes* routes,
                 Stream& stream) {
  const std::optional<NormSpec>& norm = norm_before(*layer.spec, part);
  const auto* experts = std::get_if<Experts>(&layer.spec->mlp);
  if (part == Part::mlp && experts != nullptr) {
    require(routes != nullptr, "a layer with experts needs a block with room for routes");
    return read_experts_input(*experts, norm, layer, hidden, y, *routes, stream);
  }
  if (norm)
    apply_norm(*norm, layer.norms.at(norm->name), hidden, y, stream);
  else
    convert(hidden, y, stream);
}

std::optional<NormSpec> norm_after(const LayerSpec& spec, Part part) {
  switch (part) {
    case Part::mixer: return spec.after_mixer;
    case Part::mlp: return spec.after_mlp;
    case Part::per_layer: return spec.per_layer->norm;
  }
  return std::nullopt;
}

template <class Alternative>
std::vector<MixerOutput> mixer_outputs(const Alternative& mixer) {
  return {{last_linear(mixer)}};
}

std::vector<MixerOutput> outputs_of(const LayerSpec& spec, Part part) {
  if (part == Part::per_layer) return {{spec.per_layer->out}};
  if (part == Part::mixer)
    return std::visit([](const auto& mixer) { return mixer_outputs(mixer); }, spec.mixer);
  if (const auto* m = std::get_if<Mlp>(&spec.mlp)) return {{m->out, m->out_multiplier}};
  return {{std::get<SingleLinear>(spec.mlp).linear}};
}

// y = Σ multiplier · (x Wᵀ + b), or y += factor · that; x: a panel of the input for each linear.
enum class Sum { new_one, on_top };
void sum_outputs(const Layer& layer, const std::vector<MixerOutput>& outputs, ConstTensor input,
                 bool with_bias, Sum sum, float factor, Tensor y, Stream& stream) {
  std::int64_t first = 0;
  for (const MixerOutput& output : outputs) {
    const Linear& one = layer.linear(output.linear);
    const std::int64_t width = output.linear.in_features;
    const ConstTensor x = outputs.size() == 1 ? input : input.part(first, input.rows, width);
    first += x.size();
    const ConstTensor bias = with_bias ? one.bias : ConstTensor{};
    const float multiplier = factor * output.multiplier;
    if (sum == Sum::on_top) {
      linear_add(x, one.weight, bias, multiplier, y, stream);
    } else {
      linear(x, one.weight, bias, y, stream);
      if (multiplier != 1.0f) scale(y, multiplier, stream);
    }
    sum = Sum::on_top;
  }
}

// h += multiplier · after(f(x)), or h ← after(h + multiplier · f(x)), with f the part's last
// linear, or the experts' sum. y: scratch from here on.
void add_output(const Layer& layer, Part part, ConstTensor x, const Routes* routes, Tensor hidden,
                Tensor y, Tensor scratch, Stream& stream) {
  const LayerSpec& spec = *layer.spec;
  const std::optional<NormSpec> after = norm_after(spec, part);
  const auto normed = [&](Tensor z) {
    apply_norm(*after, layer.norms.at(after->name), z, z, stream);
  };
  const auto* experts = part == Part::mlp ? std::get_if<Experts>(&spec.mlp) : nullptr;
  const bool norm_of_sum = after && spec.residual == Residual::normed;
  if (experts == nullptr && (!after || norm_of_sum)) {
    sum_outputs(layer, outputs_of(spec, part), x, true, Sum::on_top, spec.residual_multiplier,
                hidden, stream);
  } else {
    if (experts != nullptr) {
      expert_output(*experts, layer, x, *routes, y, scratch, stream);
    } else {
      sum_outputs(layer, outputs_of(spec, part), x, true, Sum::new_one, 1.0f, y, stream);
    }
    if (after && !norm_of_sum) normed(y);
    add_scaled(y, spec.residual_multiplier, hidden, stream);
  }
  if (norm_of_sum) normed(hidden);
}

void run_mixer(const LayerSpec& spec, const MixerRun& run, Stream& stream) {
  std::visit([&](const auto& mixer) { run_mixer(mixer, run, stream); }, spec.mixer);
}

void mlp_activations(const Mlp& mlp, const Layer& layer, ConstTensor x, Tensor y, Tensor scratch,
                     Stream& stream) {
  const Tensor up = scratch.part(0, x.rows, outputs(mlp.in));
  project(mlp.in, layer, x, up, stream);
  if (mlp.gate_multiplier != 1.0f) scale(up.col_range(0, mlp.width()), mlp.gate_multiplier, stream);
  if (mlp.xielu)
    return xielu(up, layer.constants.at(mlp.xielu->alpha_p).stored_weight,
                 layer.constants.at(mlp.xielu->alpha_n).stored_weight, mlp.xielu->beta,
                 mlp.xielu->eps, y, stream);
  if (mlp.gated) return gated_activation(up, mlp.activation, mlp.limits, y, stream);
  return activation(up, mlp.activation, y, stream);
}

}  // namespace

const Rope* rope_of(const LayerSpec& spec) {
  if (const auto* a = std::get_if<Attention>(&spec.mixer)) return &a->rope;
  if (const auto* a = std::get_if<LatentAttention>(&spec.mixer)) return &a->rope;
  if (const auto* a = std::get_if<AttentionBesideMamba2>(&spec.mixer)) return &a->attention.rope;
  return nullptr;
}

Linears layer_linears(const LayerSpec& spec) {
  Linears linears = mixer_linears(spec);
  const Linears of_mlp = mlp_linears(spec);
  linears.insert(linears.end(), of_mlp.begin(), of_mlp.end());
  if (spec.per_layer) {
    linears.push_back(spec.per_layer->gate);
    linears.push_back(spec.per_layer->out);
  }
  return linears;
}

std::vector<NormTensors> layer_norms(const LayerSpec& spec) {
  std::vector<NormTensors> norms;
  add_norm(spec.mixer_norm, norms);
  add_norm(spec.mlp_norm, norms);
  std::visit([&](const auto& mixer) { add_mixer_norms(mixer, norms); }, spec.mixer);
  add_norm(spec.after_mixer, norms);
  add_norm(spec.after_mlp, norms);
  if (const auto* e = std::get_if<Experts>(&spec.mlp)) {
    add_norm(e->norm, norms);
    add_norm(e->after, norms);
    add_norm(e->after_shared, norms);
    add_norm(e->router.norm, norms);
    if (e->router.norm && e->router.norm->weight) norms.back().weights = {e->router.norm->name};
  }
  if (spec.per_layer) add_norm(std::optional(spec.per_layer->norm), norms);
  return norms;
}

std::vector<TensorSpec> layer_tensors(const LayerSpec& spec) {
  std::vector<TensorSpec> tensors;
  const Linears linears = layer_linears(spec);
  for (std::size_t i = 0; i < linears.size(); ++i) add_linear(linears[i], tensors, i);
  add_tensors(layer_norms(spec), tensors);
  const auto add_constant = [&](const std::string& name) {
    tensors.push_back({name, {1}, TensorRole::constant});
  };
  if (const auto* m = std::get_if<Mlp>(&spec.mlp); m != nullptr && m->xielu) {
    add_constant(m->xielu->alpha_p);
    add_constant(m->xielu->alpha_n);
  }
  if (!spec.scalar.empty()) add_constant(spec.scalar);
  const std::vector<TensorSpec> vectors =
      std::visit([](const auto& mixer) { return mixer_vectors(mixer); }, spec.mixer);
  tensors.insert(tensors.end(), vectors.begin(), vectors.end());
  if (const auto* e = std::get_if<Experts>(&spec.mlp)) {
    const auto count = static_cast<std::int64_t>(e->experts.size());
    for (const std::string& name : {e->router.correction, e->router.expert_scale})
      if (!name.empty()) tensors.push_back({name, {count}, TensorRole::vector});
  }
  return tensors;
}

std::vector<TensorSpec> embedding_tensors(const Architecture& a) {
  const Embedding& e = a.embedding;
  std::vector<TensorSpec> tensors{{e.tokens, {a.vocab, e.width}, TensorRole::weight}};
  if (!e.positions.empty())
    tensors.push_back(
        {e.positions, {a.max_positions + e.first_position, a.hidden}, TensorRole::weight});
  add_norm_tensors(e.norm, tensors);
  if (e.projection) add_linear(*e.projection, tensors);
  if (a.per_layer) {
    const LinearSpec& projection = a.per_layer->projection;
    tensors.push_back(
        {a.per_layer->tokens, {a.vocab, projection.out_features}, TensorRole::weight});
    add_linear(projection, tensors);
    add_norm_tensors(a.per_layer->norm, tensors);
  }
  return tensors;
}

std::vector<TensorSpec> head_tensors(const Architecture& a) {
  std::vector<TensorSpec> tensors;
  add_norm_tensors(a.head.norm, tensors);
  if (a.head.projection) add_linear(*a.head.projection, tensors);
  if (!a.head.tied)
    tensors.push_back({a.head.name + ".weight", {a.vocab, a.embedding.width}, TensorRole::weight});
  if (a.head.bias) tensors.push_back({a.head.name + ".bias", {a.vocab}, TensorRole::linear_bias});
  return tensors;
}

const Linear& Layer::linear(const LinearSpec& wanted) const {
  for (const Linear& one : linears)
    if (one.name.ends_with(wanted.name) &&
        (one.name.size() == wanted.name.size() ||
         one.name[one.name.size() - wanted.name.size() - 1] == '.'))
      return one;
  throw std::logic_error("layer " + std::to_string(index) + " has no linear " + wanted.name);
}

std::vector<Step> layer_steps(const LayerSpec& spec) {
  std::vector<Step> steps;
  std::visit([&](const auto& mixer) { add_mixer_steps(mixer, spec.hidden, steps); }, spec.mixer);
  if (!steps.empty()) steps.back().hidden = Access::update;
  std::size_t next = mixer_linears(spec).size();
  const auto add = [&](Part part, int number, std::int64_t width, std::size_t linears) -> Step& {
    steps.push_back(make_step(part, number, width, next, linears));
    next += linears;
    return steps.back();
  };
  if (const auto* m = std::get_if<Mlp>(&spec.mlp)) {
    Step& in = add(Part::mlp, 0, spec.hidden, m->in.size());
    if (spec.shares_norm() && steps.size() > 1) {
      std::vector<std::size_t>& first = steps.front().groups.front().linears;
      first.insert(first.end(), in.runs.begin(), in.runs.end());
      in.groups.clear();
    }
    add(Part::mlp, 1, m->width(), 1).hidden = Access::update;
  } else if (const auto* e = std::get_if<Experts>(&spec.mlp)) {
    require(!spec.shares_norm(), "layer_steps: experts have a norm of their own");
    require(spec.residual != Residual::parallel || !e->norm,
            "layer_steps: experts and shared ones read one norm beside attention");
    add_expert_steps(*e, spec.hidden, next, steps);
    next += expert_linears(*e).size();
  } else if (std::holds_alternative<SingleLinear>(spec.mlp)) {
    add(Part::mlp, 0, spec.hidden, 1).hidden = Access::update;
  }
  if (spec.per_layer) {
    add(Part::per_layer, 0, spec.hidden, 1).hidden = Access::read;
    add(Part::per_layer, 1, spec.per_layer->out.in_features, 1).hidden = Access::update;
  }
  if (!steps.empty()) steps.back().input = Access::read;
  return steps;
}

bool Step::is_for_experts() const {
  return std::ranges::any_of(groups, [](const Group& group) { return group.expert >= 0; });
}

std::int64_t Step::columns() const { return first_column(panels.size()); }

std::int64_t Step::first_column(std::size_t panel) const {
  std::int64_t first = 0;
  for (std::size_t i = 0; i < panel; ++i) first += panels.at(i).columns;
  return first;
}

std::size_t most_steps(const Architecture& a) {
  std::size_t most = 0;
  for (const LayerSpec& kind : a.kinds) most = std::max(most, layer_steps(kind).size());
  return most;
}

std::int64_t widest_input(const Architecture& a, std::size_t step) {
  std::int64_t width = 0;
  for (const LayerSpec& kind : a.kinds) {
    const std::vector<Step> steps = layer_steps(kind);
    if (step < steps.size()) width = std::max(width, steps[step].width);
  }
  return width;
}

std::int64_t widest_input(const Architecture& a) {
  std::int64_t width = a.hidden;
  for (std::size_t step = 0; step < most_steps(a); ++step)
    width = std::max(width, widest_input(a, step));
  return width;
}

std::int64_t scratch_width(const Architecture& a) {
  std::int64_t width = a.hidden;
  for (const LayerSpec& kind : a.kinds) {
    width = std::max(width, std::visit([](const auto& mixer) { return mixer_scratch_width(mixer); },
                                       kind.mixer));
    if (const auto* mlp = std::get_if<Mlp>(&kind.mlp)) width = std::max(width, outputs(mlp->in));
    if (const auto* experts = std::get_if<Experts>(&kind.mlp))
      width = std::max(width, experts_scratch_width(*experts, a.hidden));
    if (kind.residual == Residual::parallel && kind.after_mixer)
      width = std::max(width, 2 * a.hidden);
  }
  return width;
}

DecoderTables make_tables(const Architecture& a, std::int64_t seqlen, Stream& stream) {
  DecoderTables tables;
  for (const LayerSpec& kind : a.kinds)
    tables.kinds.push_back(std::visit(
        [&](const auto& mixer) { return make_mixer_tables(mixer, seqlen, stream); }, kind.mixer));
  return tables;
}

std::int64_t table_bytes(const Architecture& a, std::int64_t seqlen) {
  std::int64_t bytes = 0;
  for (const LayerSpec& kind : a.kinds)
    bytes +=
        std::visit([&](const auto& mixer) { return mixer_table_bytes(mixer, seqlen); }, kind.mixer);
  return bytes;
}

void apply_norm(const NormSpec& spec, const Norm& norm, ConstTensor x, Tensor y, Stream& stream) {
  switch (spec.kind) {
    case NormKind::rms: return rms_norm(x, norm.weight, spec.eps, spec.offset, y, stream);
    case NormKind::layer:
      return layer_norm(x, norm.weight, norm.bias, spec.eps, spec.offset, y, stream);
  }
}

void start_layer(const Layer& layer, Block& block, Stream& stream) {
  const LayerSpec& spec = *layer.spec;
  const std::vector<Step> steps = layer_steps(spec);
  if (steps.empty()) return;
  block.input = input_of_width(block, steps.front().width);
  read_stream(layer, steps.front().part, block.hidden.col_range(0, spec.hidden), block.input,
              block.routes, stream);
}

void part_output(const Layer& layer, const DecoderTables& tables, Part part, std::int64_t seqlen,
                 ConstTensor x, const Routes* routes, Tensor between, Tensor scratch,
                 Matrix<float> y, bool add, Stream& stream) {
  const LayerSpec& spec = *layer.spec;
  if (const auto* e = std::get_if<Experts>(&spec.mlp); part == Part::mlp && e != nullptr) {
    require(!add && routes != nullptr, "part_output: experts have a norm and routes of their own");
    const Tensor memory(between.data, between.dtype, x.rows, layer_steps(spec).back().width);
    expert_activations(*e, layer, x, *routes, memory, scratch, stream);
    return expert_output(*e, layer, memory, *routes, y, scratch, stream);
  }
  ConstTensor inner = x;
  const std::vector<Step> steps = layer_steps(spec);
  for (std::size_t i = 0; part == Part::mixer && i + 1 < steps.size(); ++i) {
    if (steps[i].part != part || steps[i + 1].part != part) continue;
    const Tensor next(between.data, between.dtype, x.rows, steps[i + 1].width);
    run_mixer(spec, {layer, tables.of(layer), steps[i].number, seqlen, inner, {}, next, scratch},
              stream);
    inner = next;
  }
  if (const auto* m = std::get_if<Mlp>(&spec.mlp); part == Part::mlp && m != nullptr) {
    const Tensor memory(between.data, between.dtype, x.rows, m->width());
    mlp_activations(*m, layer, x, memory, scratch, stream);
    inner = memory;
  }
  sum_outputs(layer, outputs_of(spec, part), inner, false, add ? Sum::on_top : Sum::new_one, 1.0f,
              y, stream);
}

void advance(const Layer& layer, const DecoderTables& tables, const std::vector<Step>& steps,
             std::size_t index, std::int64_t seqlen, Block& block, Tensor scratch, Stream& stream) {
  const LayerSpec& spec = *layer.spec;
  const Step& step = steps.at(index);
  const Step* next = index + 1 < steps.size() ? &steps[index + 1] : nullptr;
  const std::int64_t tokens = block.input.rows;
  const ConstTensor x = block.input;
  const auto hidden = [&] { return block.hidden.col_range(0, spec.hidden); };
  const auto carried = [&] {
    return block.hidden.empty()
               ? Tensor{}
               : block.hidden.col_range(spec.hidden, block.hidden.cols - spec.hidden);
  };

  const bool within_part = next != nullptr && next->part == step.part;
  if (within_part) {
    block.input = input_of_width(block, next->width);
    switch (step.part) {
      case Part::mixer:
        return run_mixer(
            spec,
            {layer, tables.of(layer), step.number, seqlen, x, carried(), block.input, scratch},
            stream);
      case Part::mlp:
        if (const auto* experts = std::get_if<Experts>(&spec.mlp))
          return expert_activations(*experts, layer, x, *block.routes, block.input, scratch,
                                    stream);
        return mlp_activations(std::get<Mlp>(spec.mlp), layer, x, block.input, scratch, stream);
      case Part::per_layer: {
        const PerLayerInput& p = *spec.per_layer;
        const Tensor gate = scratch.part(0, tokens, p.gate.out_features);
        project({p.gate}, layer, x, gate, stream);
        activation(gate, p.activation, block.input, stream);
        return multiply(carried().col_range(p.carried, p.gate.out_features), block.input, stream);
      }
    }
  }

  // The part's output goes to the residual stream, from which the next part reads. In a parallel
  // layer the MLP reads what the stream was before.
  const bool parallel =
      spec.residual == Residual::parallel && step.part == Part::mixer && next != nullptr;
  const Tensor before = scratch.part(0, tokens, spec.hidden);
  const Tensor y = scratch.part(parallel ? tokens * spec.hidden : 0, tokens, spec.hidden);
  if (parallel) read_stream(layer, next->part, hidden(), before, block.routes, stream);
  add_output(layer, step.part, x, block.routes, hidden(), y, scratch, stream);
  if (next == nullptr) {
    if (!spec.scalar.empty()) multiply(layer.constants.at(spec.scalar).weight, hidden(), stream);
    return;
  }
  block.input = input_of_width(block, next->width);
  if (parallel)
    return copy_on_device(block.input.data, before.data, static_cast<std::size_t>(before.bytes()),
                          stream);
  read_stream(layer, next->part, hidden(), block.input, block.routes, stream);
}

void forward_layer(const Layer& layer, const DecoderTables& tables, std::int64_t seqlen,
                   Block& block, Tensor scratch, Stream& stream) {
  Routes own;
  Routes* const given = block.routes;
  if (given == nullptr) block.routes = &own;
  start_layer(layer, block, stream);
  const std::vector<Step> steps = layer_steps(*layer.spec);
  for (std::size_t i = 0; i < steps.size(); ++i)
    advance(layer, tables, steps, i, seqlen, block, scratch, stream);
  block.routes = given;
}

}  // namespace qpipe
