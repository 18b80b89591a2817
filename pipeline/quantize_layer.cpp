#include "pipeline/quantize_layer.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "kernels/transpose.h"
#include "launch/signals.h"
#include "pipeline/files/error.h"
#include "pipeline/layers/fast_forward.h"
#include "stages/calibrate.h"
#include "stages/clip.h"
#include "stages/fold.h"
#include "stages/layer.h"
#include "stages/rescale.h"
#include "stages/waiting_weights.h"

namespace qpipe {

void check_in(Comm& comm, const std::optional<UserError>& fault, int signals,
              const std::string& where) {
  const double code = fault ? static_cast<double>(fault->code) : 0.0;
  int most_signals = 0;
  double first_code = 0.0;
  const std::vector<double> all = comm.all_gather({static_cast<double>(signals_received()), code});
  for (std::size_t i = 0; i < all.size(); i += 2) {
    most_signals = std::max(most_signals, static_cast<int>(all[i]));
    if (first_code == 0.0) first_code = all[i + 1];
  }
  if (first_code != 0.0)
    throw UserError(static_cast<ExitCode>(first_code),
                    comm.first_failure(fault ? fault->what() : ""));
  if (most_signals >= signals)
    throw UserError(ExitCode::temporary,
                    "stopped by a signal " + where + "; run the same command again to go on");
}

namespace {

std::string describe(const Layer& layer, const Group& group) {
  return fmt::format("layer {}, input of {}", layer.index,
                     layer.linears[group.linears.front()].name);
}

// The group's linears that are quantized, as indices into Layer::linears.
std::vector<std::size_t> chosen(const Loop& loop, const Layer& layer, const Group& group) {
  std::vector<std::size_t> result;
  for (const std::size_t i : group.linears)
    if (!loop.plan.modules.at(layer.linears[i].name).skip) result.push_back(i);
  return result;
}

std::vector<LinearSettings> settings_of(const Loop& loop, const Layer& layer,
                                        const std::vector<std::size_t>& linears) {
  std::vector<LinearSettings> settings;
  for (const std::size_t i : linears)
    settings.push_back(loop.plan.modules.at(layer.linears[i].name));
  return settings;
}

std::vector<const Linear*> pointers(const Layer& layer, const std::vector<std::size_t>& linears) {
  std::vector<const Linear*> result;
  for (const std::size_t i : linears) result.push_back(&layer.linears[i]);
  return result;
}

// Values that are not finite are a fault of the data, which all ranks find alike.
template <class Work>
auto as_user_error(Work work) {
  try {
    return work();
  } catch (const std::domain_error& error) {
    throw UserError(ExitCode::data, error.what());
  }
}

void store_solved(Loop& loop, const std::string& name, const QuantizedLinear& q) {
  {
    Timed timed(loop.report.seconds.write, loop.comm, loop.stream);
    loop.store.put(name, q, loop.stream);
  }
  loop.zero_of_zero = loop.zero_of_zero || q.has_zero_of_zero;
  loop.report.modules.push_back({name, q.settings.bits, q.settings.group_size, q.mean_squared_error,
                                 q.damp, q.fell_back, false});
  if (q.fell_back)
    loop.progress.say("warning: " + name +
                      ": its Hessian is not positive definite at any damping; rounded to nearest. "
                      "Use more calibration samples.");
}

void solve_group(Loop& loop, Layer& layer, const Group& group, const Hessian* hessian) {
  const std::vector<std::size_t> indices = chosen(loop, layer, group);
  if (indices.empty()) return;
  const WeightsOnDevice weights(layer, indices, loop.stream);
  const std::vector<const Linear*> linears = pointers(layer, indices);
  std::vector<QuantizedLinear> solved;
  {
    Timed timed(loop.report.seconds.solve, loop.comm, loop.stream);
    solved = as_user_error([&] {
      return solve(hessian, linears, settings_of(loop, layer, indices), loop.comm, loop.stream);
    });
  }
  for (std::size_t i = 0; i < solved.size(); ++i) {
    store_solved(loop, linears[i]->name, solved[i]);
    if (!loop.plan.quantized_propagation) continue;
    dequantize_into(solved[i], linears[i]->weight, loop.stream);
    set_overwritten(layer, indices[i]);
  }
}

void forward_step(Loop& loop, const DecoderTables& tables, Layer& layer,
                  const std::vector<Step>& steps, std::size_t step, Activations& activations) {
  if (step + 1 == steps.size() && !loop.output_needed) return;
  Timed timed(loop.report.seconds.forward, loop.comm, loop.stream);
  const WeightsOnDevice weights(layer, steps[step].runs, loop.stream);
  advance(layer, tables, steps, step, activations, loop.stream);
  check_in(loop.comm, loop.store.fault(), 2, fmt::format("inside layer {}", layer.index));
}

void start(Loop& loop, const Layer& layer, Activations& activations) {
  Timed timed(loop.report.seconds.forward, loop.comm, loop.stream);
  start_layer(layer, activations, loop.stream);
}

Hessian calibrate_group(Loop& loop, const Layer& layer, const Group& group,
                        const Activations& activations) {
  Timed timed(loop.report.seconds.hessian, loop.comm, loop.stream);
  return as_user_error([&] {
    return calibrate(activations, group, describe(layer, group), loop.plan.hessian_tokens,
                     loop.plan.places, loop.comm, loop.stream);
  });
}

// Each linear is solved on the input that the quantized linears before it give.
void quantize_layer_sequentially(Loop& loop, const DecoderTables& tables, Layer& layer,
                                 Activations& activations) {
  const std::vector<Step> steps = layer_steps(*layer.spec);
  start(loop, layer, activations);
  for (std::size_t step = 0; step < steps.size(); ++step) {
    for (const Group& group : steps[step].groups) {
      if (chosen(loop, layer, group).empty()) continue;
      const Hessian hessian = calibrate_group(loop, layer, group, activations);
      solve_group(loop, layer, group, &hessian);
    }
    forward_step(loop, tables, layer, steps, step, activations);
  }
}

}  // namespace

void run_layer(Loop& loop, const DecoderTables& tables, Layer& layer, Activations& activations) {
  if (!layer.waiting.empty()) {
    const std::vector<Step> steps = layer_steps(*layer.spec);
    start(loop, layer, activations);
    for (std::size_t step = 0; step < steps.size(); ++step)
      forward_step(loop, tables, layer, steps, step, activations);
    return;
  }
  Timed timed(loop.report.seconds.forward, loop.comm, loop.stream);
  forward_layer(layer, tables, activations, loop.stream);
  check_in(loop.comm, loop.store.fault(), 2, fmt::format("inside layer {}", layer.index));
}

namespace {

// The layer's input, which run_again takes up.
void save_hidden(Loop& loop, Activations& activations) {
  if (!loop.plan.quantized_propagation || !loop.output_needed) return;
  const BlockStore& hidden = activations.hidden;
  if (loop.saved_hidden.width() != hidden.width())  // there is none yet; a rank may own no block
    loop.saved_hidden =
        BlockStore(block_rows(activations.blocking, activations.owned), hidden.width(),
                   hidden.place(), loop.plan.places.folder, loop.stream);
  copy_blocks(hidden, loop.saved_hidden, loop.stream);
}

void run_again(Loop& loop, const DecoderTables& tables, Layer& layer, Activations& activations) {
  std::swap(activations.hidden, loop.saved_hidden);
  run_layer(loop, tables, layer, activations);
}

// Of each group of each step.
using Hessians = std::vector<std::vector<Hessian>>;

Hessians hessians_of(const std::vector<Step>& steps) {
  Hessians hessians(steps.size());
  for (std::size_t i = 0; i < steps.size(); ++i) hessians[i].resize(steps[i].groups.size());
  return hessians;
}

// true_sequential = false: all of the layer's Hessians see its original weights; the layer runs
// again with the quantized ones.
void quantize_layer_at_once(Loop& loop, const DecoderTables& tables, Layer& layer,
                            Activations& activations) {
  save_hidden(loop, activations);
  const std::vector<Step> steps = layer_steps(*layer.spec);
  Hessians hessians = hessians_of(steps);
  start(loop, layer, activations);
  for (std::size_t i = 0; i < steps.size(); ++i) {
    for (std::size_t g = 0; g < steps[i].groups.size(); ++g)
      if (!chosen(loop, layer, steps[i].groups[g]).empty())
        hessians[i][g] = calibrate_group(loop, layer, steps[i].groups[g], activations);
    forward_step(loop, tables, layer, steps, i, activations);
  }
  for (std::size_t i = 0; i < steps.size(); ++i)
    for (std::size_t g = 0; g < steps[i].groups.size(); ++g) {
      solve_group(loop, layer, steps[i].groups[g], &hessians[i][g]);
      hessians[i][g] = Hessian{};
    }
  if (loop.plan.quantized_propagation && loop.output_needed)
    run_again(loop, tables, layer, activations);
}

ScaledPair search_pair(Loop& loop, const DecoderTables& tables, Layer& layer,
                       const ScalingPair& pair, const Activations& activations, Hessian& hessian) {
  Timed timed(loop.report.seconds.search, loop.comm, loop.stream);
  const Options::Awq& o = loop.options.awq;
  const ScaleSearch search{o.search == "exact" ? ScaleLoss::exact : ScaleLoss::gram, o.grid,
                           o.duo_scaling, o.search_tokens, loop.plan.search_rows};
  const bool by_hessian = needs_hessian(search, pair);
  if (by_hessian) bring_to_device(hessian, loop.stream);
  const WeightsOnDevice weights(
      layer, by_hessian ? pair.linears : inspected_linears(*layer.spec, pair), loop.stream);
  ScaledPair found = search_scale(tables, layer, pair, settings_of(loop, layer, pair.linears),
                                  activations, hessian, search, loop.comm, loop.stream);
  leave_device(hessian);
  ScaleReport report{layer_prefix(loop.architecture, layer.index) + source_name(*layer.spec, pair),
                     {},
                     found.ratio,
                     found.loss};
  for (const std::size_t i : pair.linears) report.linears.push_back(layer.linears[i].name);
  loop.report.scales.push_back(report);
  return found;
}

// What the factors change in tensors that are not packed.
void store_scaled(Loop& loop, Layer& layer, const std::vector<ScaledPair>& pairs,
                  const std::vector<LinearFactors>& factors) {
  Timed timed(loop.report.seconds.write, loop.comm, loop.stream);
  for (const ChangedTensor& tensor : divided_vectors(loop.architecture, layer, pairs, loop.stream))
    loop.store.replace(tensor.name, tensor.values);
  for (std::size_t i = 0; i < layer.linears.size(); ++i) {
    const std::string name = layer.linears[i].name + ".weight";
    if (factors[i].none() || !loop.plan.modules.at(layer.linears[i].name).skip ||
        !loop.store.owns(name))
      continue;
    const WeightsOnDevice weights(layer, {i}, loop.stream);
    Array<float> weight = scaled_weight(layer.linears[i], factors[i], loop.stream);
    if (layer.linears[i].transposed) {
      Array<float> turned(weight.view.cols, weight.view.rows, loop.stream);
      transpose(weight.view, turned.view, loop.stream);
      weight = std::move(turned);
    }
    std::vector<float> values(static_cast<std::size_t>(weight.view.size()));
    copy_to_host(values.data(), weight.view.data, weight.memory.bytes(), loop.stream);
    loop.store.replace(name, values);
  }
}

// Clips and rounds the scaled weights of one group. hessian: of the input that the scaled layer
// has.
void solve_scaled_group(Loop& loop, Layer& layer, const Group& group,
                        const std::vector<LinearFactors>& factors, const Hessian& hessian) {
  const std::vector<std::size_t> indices = chosen(loop, layer, group);
  const std::vector<LinearSettings> settings = settings_of(loop, layer, indices);
  const WeightsOnDevice weights(layer, indices, loop.stream);
  const auto clipped_rows = [&](std::size_t i, const RowRange& rows) {
    const Linear& linear = layer.linears[indices[i]];
    Array<float> w = scaled_rows(linear, factors[indices[i]], rows, loop.stream);
    if (loop.options.awq.clip && may_clip(linear.name))
      clip_weight(w, hessian, settings[i], loop.stream);
    return w;
  };
  std::vector<QuantizedLinear> solved;
  {
    Timed timed(loop.report.seconds.solve, loop.comm, loop.stream);
    solved = as_user_error([&] {
      return solve(&hessian, pointers(layer, indices), settings, clipped_rows, loop.comm,
                   loop.stream);
    });
    for (std::size_t i = 0; i < solved.size(); ++i)
      solved[i].mean_squared_error = output_error(layer.linears[indices[i]], factors[indices[i]],
                                                  solved[i], hessian, loop.comm, loop.stream);
  }
  for (std::size_t i = 0; i < solved.size(); ++i) {
    const Linear& linear = layer.linears[indices[i]];
    store_solved(loop, linear.name, solved[i]);
    if (!loop.plan.quantized_propagation) continue;
    unscaled_weight_into(solved[i], factors[indices[i]], linear.weight, loop.stream);
    set_overwritten(layer, indices[i]);
  }
}

// AWQ: every pair's factors are searched with the layer's original weights; then the layer is
// scaled, clipped and rounded.
void quantize_layer_awq(Loop& loop, const DecoderTables& tables, Layer& layer,
                        Activations& activations) {
  save_hidden(loop, activations);
  const std::vector<Step> steps = layer_steps(*layer.spec);
  const std::vector<ScalingPair> candidates = scaling_pairs(*layer.spec);
  Hessians hessians = hessians_of(steps);
  std::vector<ScaledPair> pairs;
  start(loop, layer, activations);
  for (std::size_t i = 0; i < steps.size(); ++i) {
    for (std::size_t g = 0; g < steps[i].groups.size(); ++g) {
      if (chosen(loop, layer, steps[i].groups[g]).empty()) continue;
      hessians[i][g] = calibrate_group(loop, layer, steps[i].groups[g], activations);
      for (const ScalingPair& pair : candidates)
        if (pair.step == i && pair.group == g)
          pairs.push_back(search_pair(loop, tables, layer, pair, activations, hessians[i][g]));
    }
    forward_step(loop, tables, layer, steps, i, activations);
  }
  const std::vector<LinearFactors> factors = linear_factors(layer, pairs);
  if (loop.plan.quantized_propagation) loop.factors = factors_json(factors);
  store_scaled(loop, layer, pairs, factors);
  for (std::size_t i = 0; i < steps.size(); ++i)
    for (std::size_t g = 0; g < steps[i].groups.size(); ++g) {
      if (chosen(loop, layer, steps[i].groups[g]).empty()) continue;
      Hessian& hessian = hessians[i][g];
      for (const ScaledPair& p : pairs)
        if (p.pair.step == i && p.pair.group == g) divide_input(hessian, p.scale, loop.stream);
      bring_to_device(hessian, loop.stream);
      solve_scaled_group(loop, layer, steps[i].groups[g], factors, hessian);
      hessian = Hessian{};
    }
  if (loop.plan.quantized_propagation && loop.output_needed)
    run_again(loop, tables, layer, activations);
}

void quantize_without_calibration(Loop& loop, Layer& layer) {
  for (const Step& step : layer_steps(*layer.spec))
    for (const Group& group : step.groups) solve_group(loop, layer, group, nullptr);
}

}  // namespace

void quantize_layer(Loop& loop, const DecoderTables& tables, Layer& layer,
                    Activations& activations) {
  if (!loop.plan.calibrated)
    quantize_without_calibration(loop, layer);
  else if (loop.plan.awq)
    quantize_layer_awq(loop, tables, layer, activations);
  else if (loop.options.quantize.true_sequential && loop.plan.quantized_propagation)
    quantize_layer_sequentially(loop, tables, layer, activations);
  else
    quantize_layer_at_once(loop, tables, layer, activations);
}
}  // namespace qpipe
