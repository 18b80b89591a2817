#include "pipeline/quantize_layer.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <functional>
#include <iterator>
#include <stdexcept>
#include <utility>

#include "kernels/transpose.h"
#include "launch/signals.h"
#include "pipeline/files/agree.h"
#include "stages/calibrate.h"
#include "stages/clip.h"
#include "stages/fold.h"
#include "stages/layer.h"
#include "stages/rescale.h"
#include "stages/solvers.h"
#include "stages/starved.h"
#include "stages/waiting_weights.h"

namespace qpipe {

void check_in(Comm& comm, const std::optional<UserError>& fault, int signals,
              const std::string& where) {
  agree(comm, fault);
  std::optional<UserError> stop;
  if (signals_received() >= signals)
    stop = UserError(ExitCode::temporary,
                     "stopped by a signal " + where + "; run the same command again to go on");
  agree(comm, stop);
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

// Groups of a step whose Hessians are summed in one pass over its input: experts together, as many
// as Places allows, any other alone. Those in which nothing is quantized are left out.
using Wave = std::vector<std::size_t>;  // as indices into Step::groups

std::vector<Wave> waves_of(const Loop& loop, const Layer& layer, const Step& step) {
  const std::int64_t most = loop.plan.places.groups_at_once;
  std::vector<Wave> waves;
  for (std::size_t g = 0; g < step.groups.size(); ++g) {
    const Group& group = step.groups[g];
    if (chosen(loop, layer, group).empty()) continue;
    const bool joins = group.expert >= 0 && !waves.empty() &&
                       step.groups[waves.back().front()].expert >= 0 &&
                       (most == 0 || std::ssize(waves.back()) < most);
    if (!joins) waves.emplace_back();
    waves.back().push_back(g);
  }
  return waves;
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

// tokens: that an expert met; −1 for all others.
void note_solved(const Loop& loop, const std::string& name, const QuantizedLinear& q,
                 std::int64_t tokens, LayerFindings& found) {
  found.zero_of_zero = found.zero_of_zero || q.has_zero_of_zero;
  found.modules.push_back({name, q.settings.bits, q.settings.group_size, q.mean_squared_error,
                           q.damp, q.fell_back, false, tokens, q.agreement});
  if (q.fell_back)
    loop.progress.say("warning: " + name +
                      ": its Hessian is not positive definite at any damping; rounded to nearest. "
                      "Use more calibration samples.");
}

// An expert that no token came to has no Hessian: it is rounded to nearest.
std::vector<LinearSettings> settings_for(const Loop& loop, const Layer& layer,
                                         const std::vector<std::size_t>& linears,
                                         const Hessian* hessian) {
  std::vector<LinearSettings> settings = settings_of(loop, layer, linears);
  if (hessian != nullptr && hessian->tokens == 0)
    for (LinearSettings& s : settings) s.method = Method::rtn;
  return settings;
}

std::int64_t tokens_of(const Group& group, const Hessian* hessian) {
  return hessian == nullptr || group.expert < 0 ? -1 : hessian->routed;
}

// A group's linears that are quantized, how, and its Hessian, which is freed when they are stored.
struct GroupTask {
  const Group& group;
  std::vector<std::size_t> indices;  // into Layer::linears
  std::vector<LinearSettings> settings;
  Hessian* hessian = nullptr;  // null: rounded without one
  std::function<std::vector<QuantizedLinear>(Comm& comm, Stream& stream)> solve = {};
  std::vector<PackedTensor> packed = {};  // by the thread that solved one of several groups
};

GroupTask task_of(const Loop& loop, const Layer& layer, const Group& group, Hessian* hessian) {
  const std::vector<std::size_t> indices = chosen(loop, layer, group);
  return {group, indices, settings_for(loop, layer, indices, hessian), hessian};
}

// weight = what the codes say, in terms of the layer's input without factors.
using Propagate =
    std::function<void(const QuantizedLinear& solved, std::size_t linear, Stream& stream)>;

// The solved linears' weights, which are on the device, become those of the codes.
void overwrite(Layer& layer, const GroupTask& task, const std::vector<QuantizedLinear>& solved,
               const Propagate& propagate, Stream& stream) {
  for (std::size_t i = 0; i < solved.size(); ++i) {
    propagate(solved[i], task.indices[i], stream);
    set_overwritten(layer, task.indices[i]);
  }
}

void note_all(const Loop& loop, const Layer& layer, const GroupTask& task,
              const std::vector<QuantizedLinear>& solved, LayerFindings& found) {
  for (std::size_t i = 0; i < solved.size(); ++i)
    note_solved(loop, layer.linears[task.indices[i]].name, solved[i],
                tokens_of(task.group, task.hessian), found);
  if (task.hessian != nullptr) *task.hessian = Hessian{};
}

// The thread that solves it also packs it, and gives the layer its weights.
GroupToSolve dealt(const Loop& loop, Layer& layer, GroupTask& task, const Propagate& propagate) {
  GroupToSolve result;
  result.solve = [&loop, &layer, &task, &propagate](Comm& alone, Stream& stream) {
    const WeightsOnDevice weights(layer, task.indices, stream);
    std::vector<QuantizedLinear> solved = task.solve(alone, stream);
    for (std::size_t i = 0; i < solved.size(); ++i)
      std::ranges::move(loop.store.pack(layer.linears[task.indices[i]].name, solved[i], stream),
                        std::back_inserter(task.packed));
    if (loop.plan.quantized_propagation) overwrite(layer, task, solved, propagate, stream);
    return solved;
  };
  result.outline = [&layer, &task] {
    std::vector<QuantizedLinear> linears;
    linears.reserve(task.indices.size());
    for (std::size_t i = 0; i < task.indices.size(); ++i)
      linears.push_back(outline_of(layer.linears[task.indices[i]], task.settings[i]));
    return linears;
  };
  return result;
}

void solve_group(const Loop& loop, Layer& layer, const GroupTask& task, const Propagate& propagate,
                 LayerFindings& found) {
  const WeightsOnDevice weights(layer, task.indices, loop.stream);
  std::vector<QuantizedLinear> solved;
  {
    Timed timed(loop.seconds.solve, loop.comm, loop.stream);
    solved = as_user_error([&] { return task.solve(loop.comm, loop.stream); });
  }
  {
    Timed timed(loop.seconds.write, loop.comm, loop.stream);
    for (std::size_t i = 0; i < solved.size(); ++i)
      loop.store.put(layer.linears[task.indices[i]].name, solved[i], loop.stream);
  }
  note_all(loop, layer, task, solved, found);
  if (loop.plan.quantized_propagation) overwrite(layer, task, solved, propagate, loop.stream);
}

// One group by all ranks together, several side by side.
void solve_groups(const Loop& loop, Layer& layer, std::vector<GroupTask>& tasks,
                  const Propagate& propagate, LayerFindings& found) {
  if (tasks.size() == 1) return solve_group(loop, layer, tasks[0], propagate, found);
  Timed timed(loop.seconds.solve, loop.comm, loop.stream);
  std::vector<GroupToSolve> groups;
  groups.reserve(tasks.size());
  for (GroupTask& task : tasks) {
    groups.push_back(dealt(loop, layer, task, propagate));
    groups.back().owner = owner_of_group(groups.size() - 1, loop.comm.size());
  }
  SolvedGroups in_order(std::move(groups),
                        loop.plan.quantized_propagation ? CodesFor::other_ranks : CodesFor::nobody,
                        loop.solvers, loop.comm, loop.stream);
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    GroupTask& task = tasks[i];
    const std::vector<QuantizedLinear> solved = as_user_error([&] { return in_order.next(); });
    if (!task.packed.empty()) loop.store.put(std::move(task.packed));
    note_all(loop, layer, task, solved, found);
    if (!loop.plan.quantized_propagation || owner_of_group(i, loop.comm.size()) == loop.comm.rank())
      continue;
    const WeightsOnDevice weights(layer, task.indices, loop.stream);
    overwrite(layer, task, solved, propagate, loop.stream);
  }
}

// By the checkpoint's weights. hessians: of the groups, or empty.
void solve_wave(const Loop& loop, Layer& layer, const Step& step, const Wave& wave,
                const std::vector<Hessian*>& hessians, LayerFindings& found) {
  std::vector<GroupTask> tasks;
  tasks.reserve(wave.size());
  for (std::size_t i = 0; i < wave.size(); ++i) {
    GroupTask& task = tasks.emplace_back(
        task_of(loop, layer, step.groups[wave[i]], hessians.empty() ? nullptr : hessians[i]));
    task.solve = [&layer, &task](Comm& comm, Stream& stream) {
      return solve(task.hessian, pointers(layer, task.indices), task.settings, comm, stream);
    };
  }
  const Propagate propagate = [&](const QuantizedLinear& solved, std::size_t linear,
                                  Stream& stream) {
    dequantize_into(solved, layer.linears[linear].weight, stream);
  };
  solve_groups(loop, layer, tasks, propagate, found);
}

void forward_step(const Loop& loop, Layer& layer, const std::vector<Step>& steps, std::size_t step,
                  Output output, Activations& activations) {
  if (step + 1 == steps.size() && output == Output::ahead) return;
  Timed timed(loop.seconds.forward, loop.comm, loop.stream);
  const RunsOnDevice runs(layer, steps[step].runs, loop.plan.places.experts_at_once, loop.stream);
  if (steps[step].part == Part::mlp && steps[step].number == 0 && loop.plan.calibrates())
    keep_extra_rows(layer, loop.plan.expert_tokens, loop.plan.hessian_tokens, activations,
                    loop.comm, loop.stream);
  advance(layer, loop.tables, steps, step, activations, loop.stream);
  check_in(loop.comm, loop.store.fault(), 2, fmt::format("inside layer {}", layer.index));
}

void start(const Loop& loop, const Layer& layer, Activations& activations) {
  Timed timed(loop.seconds.forward, loop.comm, loop.stream);
  start_layer(layer, activations, loop.stream);
}

// The rank that solves the wave's group `number` and needs its Hessian; −1: all ranks do, which
// work on the only group together, or on AWQ's searches.
int owner_of(const Loop& loop, const Wave& wave, std::size_t number) {
  const bool alone = wave.size() > 1 && loop.plan.procedure != Procedure::awq;
  return alone ? owner_of_group(number, loop.comm.size()) : -1;
}

// In the order of the wave. original: null, or the original model's at the same step.
std::vector<Hessian> calibrate_wave(const Loop& loop, const Layer& layer, const Step& step,
                                    const Wave& wave, const Activations& activations,
                                    const Activations* original, LayerFindings& found) {
  Timed timed(loop.seconds.hessian, loop.comm, loop.stream);
  std::vector<CalibratedGroup> groups;
  for (std::size_t i = 0; i < wave.size(); ++i) {
    const Group& group = step.groups[wave[i]];
    groups.push_back({group, describe(layer, group), owner_of(loop, wave, i)});
  }
  std::vector<Hessian> hessians = as_user_error([&] {
    return calibrate(activations, groups, loop.plan.hessian_tokens, loop.plan.expert_tokens,
                     loop.plan.places, loop.comm, loop.stream);
  });
  if (original != nullptr)
    for (std::size_t i = 0; i < groups.size(); ++i)
      hessians[i].cross = as_user_error([&] {
        return cross_moments(*original, activations, groups[i].group, groups[i].what,
                             loop.plan.hessian_tokens, loop.plan.places, loop.comm, loop.stream);
      });
  for (const Hessian& hessian : hessians)
    found.largest_activation = std::max(found.largest_activation, double{hessian.largest_input});
  return hessians;
}

std::string some_numbers(const std::vector<std::int64_t>& numbers) {
  constexpr std::size_t most = 8;
  const auto end = numbers.begin() + static_cast<std::ptrdiff_t>(std::min(most, numbers.size()));
  return fmt::format("{}{}", fmt::join(numbers.begin(), end, ", "),
                     numbers.size() > most ? ", …" : "");
}

// What a user is to know of experts that few tokens reach, once a layer.
void warn_of_starved(const Loop& loop, const Layer& layer, const Step& step,
                     const Activations& activations) {
  const auto* experts = std::get_if<Experts>(&layer.spec->mlp);
  if (experts == nullptr || step.part != Part::mlp || step.number != 0) return;
  const auto count = static_cast<std::int64_t>(experts->experts.size());
  const std::vector<std::int64_t> tokens =
      tokens_of_experts(activations, count, loop.plan.hessian_tokens, loop.comm);
  const std::int64_t wanted = std::max<std::int64_t>(1, loop.plan.expert_tokens);
  std::vector<std::int64_t> starved;
  for (std::int64_t e = 0; e < count; ++e)
    if (tokens[static_cast<std::size_t>(e)] < wanted) starved.push_back(e);
  if (starved.empty()) return;
  loop.progress.say(
      fmt::format("warning: layer {}: {} of {} experts met fewer than {} calibration token{} ({}; "
                  "the least {}); "
                  "{}. More samples, or text of more kinds, reach more experts.",
                  layer.index, starved.size(), count, wanted, wanted == 1 ? "" : "s",
                  some_numbers(starved), *std::min_element(tokens.begin(), tokens.end()),
                  loop.plan.expert_tokens > 0 ? "they are calibrated with others on top"
                                              : "they are rounded to nearest"));
}

std::vector<Hessian*> pointers(std::vector<Hessian>& hessians) {
  std::vector<Hessian*> result;
  result.reserve(hessians.size());
  for (Hessian& hessian : hessians) result.push_back(&hessian);
  return result;
}

// The original model's step, while the layer has its weights. Both models have one scratch memory.
void forward_original(const Loop& loop, Layer& layer, const std::vector<Step>& steps,
                      std::size_t step, Output output, Activations& original,
                      Activations& activations) {
  if (step + 1 == steps.size() && output != Output::needed) return;
  Timed timed(loop.seconds.forward, loop.comm, loop.stream);
  const RunsOnDevice runs(layer, steps[step].runs, loop.plan.places.experts_at_once, loop.stream);
  std::swap(original.scratch, activations.scratch);
  advance(layer, loop.tables, steps, step, original, loop.stream);
  std::swap(original.scratch, activations.scratch);
}

// Each linear is solved on the input that the quantized linears before it give. original: null, or
// what the original model has there, whose outputs are aimed at then (stages/original_target.h). By
// all but experts: other tokens come to them than in the original model.
void quantize_layer_sequentially(const Loop& loop, Layer& layer, Output output,
                                 Activations& activations, Activations* original,
                                 LayerFindings& found) {
  const std::vector<Step> steps = layer_steps(*layer.spec);
  if (original != nullptr) start(loop, layer, *original);
  start(loop, layer, activations);
  for (std::size_t step = 0; step < steps.size(); ++step) {
    warn_of_starved(loop, layer, steps[step], activations);
    const std::vector<Wave> waves = waves_of(loop, layer, steps[step]);
    std::vector<std::vector<Hessian>> aimed;  // of all waves, before the original's input goes on
    if (original != nullptr && !steps[step].is_for_experts())
      for (const Wave& wave : waves)
        aimed.push_back(
            calibrate_wave(loop, layer, steps[step], wave, activations, original, found));
    if (original != nullptr)
      forward_original(loop, layer, steps, step, output, *original, activations);
    for (std::size_t i = 0; i < waves.size(); ++i) {
      std::vector<Hessian> hessians =
          aimed.empty()
              ? calibrate_wave(loop, layer, steps[step], waves[i], activations, nullptr, found)
              : std::move(aimed[i]);
      solve_wave(loop, layer, steps[step], waves[i], pointers(hessians), found);
    }
    forward_step(loop, layer, steps, step, output, activations);
  }
}

}  // namespace

void run_layer(const Loop& loop, Layer& layer, Activations& activations) {
  if (!layer.waiting.empty()) {
    const std::vector<Step> steps = layer_steps(*layer.spec);
    start(loop, layer, activations);
    for (std::size_t step = 0; step < steps.size(); ++step)
      forward_step(loop, layer, steps, step, Output::needed, activations);
    return;
  }
  Timed timed(loop.seconds.forward, loop.comm, loop.stream);
  forward_layer(layer, loop.tables, activations, loop.stream);
  check_in(loop.comm, loop.store.fault(), 2, fmt::format("inside layer {}", layer.index));
}

namespace {

// The layer's input, which run_again takes up.
void save_hidden(const Loop& loop, Activations& activations) {
  make_spare(activations, loop.plan.places, loop.stream);
  copy_blocks(activations.hidden, activations.spare, loop.stream);
}

void run_again(const Loop& loop, Layer& layer, Activations& activations) {
  std::swap(activations.hidden, activations.spare);
  run_layer(loop, layer, activations);
}

// Of each group of each step.
using Hessians = std::vector<std::vector<Hessian>>;

Hessians hessians_of(const std::vector<Step>& steps) {
  Hessians hessians(steps.size());
  for (std::size_t i = 0; i < steps.size(); ++i) hessians[i].resize(steps[i].groups.size());
  return hessians;
}

std::vector<Hessian*> of_wave(std::vector<Hessian>& of_step, const Wave& wave) {
  std::vector<Hessian*> result;
  result.reserve(wave.size());
  for (const std::size_t g : wave) result.push_back(&of_step[g]);
  return result;
}

// The Hessians of all of a step's groups in which something is quantized.
void calibrate_step(const Loop& loop, const Layer& layer, const Step& step,
                    const Activations& activations, std::vector<Hessian>& hessians,
                    LayerFindings& found) {
  warn_of_starved(loop, layer, step, activations);
  for (const Wave& wave : waves_of(loop, layer, step)) {
    std::vector<Hessian> summed =
        calibrate_wave(loop, layer, step, wave, activations, nullptr, found);
    for (std::size_t i = 0; i < wave.size(); ++i) hessians[wave[i]] = std::move(summed[i]);
  }
}

// true_sequential = false: all of the layer's Hessians see its original weights; the layer runs
// again with the quantized ones.
void quantize_layer_at_once(const Loop& loop, Layer& layer, Output output, Activations& activations,
                            LayerFindings& found) {
  const bool runs_again = loop.plan.quantized_propagation && output == Output::needed;
  if (runs_again) save_hidden(loop, activations);
  const std::vector<Step> steps = layer_steps(*layer.spec);
  Hessians hessians = hessians_of(steps);
  start(loop, layer, activations);
  for (std::size_t i = 0; i < steps.size(); ++i) {
    calibrate_step(loop, layer, steps[i], activations, hessians[i], found);
    forward_step(loop, layer, steps, i, output, activations);
  }
  for (std::size_t i = 0; i < steps.size(); ++i)
    for (const Wave& wave : waves_of(loop, layer, steps[i]))
      solve_wave(loop, layer, steps[i], wave, of_wave(hessians[i], wave), found);
  if (runs_again) run_again(loop, layer, activations);
}

ScaledPair search_pair(const Loop& loop, Layer& layer, const ScalingPair& pair,
                       const Activations& activations, const std::vector<Hessian*>& hessians,
                       LayerFindings& found_in_layer) {
  Timed timed(loop.seconds.search, loop.comm, loop.stream);
  const Options::Awq& o = loop.options.awq;
  const ScaleSearch search{o.search == "exact" ? ScaleLoss::exact : ScaleLoss::gram, o.grid,
                           o.duo_scaling, o.search_tokens, loop.plan.search_rows};
  const bool by_hessian = needs_hessian(search, pair);
  const WeightsOnDevice weights(
      layer, by_hessian ? pair.linears : inspected_linears(*layer.spec, pair), loop.stream);
  ScaledPair found = as_user_error([&] {
    return search_scale(loop.tables, layer, pair, settings_of(loop, layer, pair.linears),
                        activations, hessians, search, loop.comm, loop.stream);
  });
  ScaleReport report{layer_prefix(loop.architecture, layer.index) + source_name(*layer.spec, pair),
                     {},
                     found.ratio,
                     found.loss};
  for (const std::size_t i : pair.linears) report.linears.push_back(layer.linears[i].name);
  found_in_layer.scales.push_back(report);
  return found;
}

// Whether some group of a pair has linears to quantize and tokens to judge them by.
bool says_something(const std::vector<Hessian*>& hessians) {
  return std::any_of(hessians.begin(), hessians.end(),
                     [](const Hessian* hessian) { return hessian->tokens > 0; });
}

// What the factors change in tensors that are not packed.
void store_scaled(const Loop& loop, Layer& layer, const std::vector<ScaledPair>& pairs,
                  const std::vector<LinearFactors>& factors) {
  Timed timed(loop.seconds.write, loop.comm, loop.stream);
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

// Clips and rounds the scaled weights of some groups of step `number`, whose Hessians become those
// of the input that the scaled layer has.
void solve_scaled_wave(const Loop& loop, Layer& layer, const Step& step, std::size_t number,
                       const Wave& wave, const std::vector<Hessian*>& hessians,
                       const std::vector<ScaledPair>& pairs,
                       const std::vector<LinearFactors>& factors, LayerFindings& found) {
  std::vector<GroupTask> tasks;
  tasks.reserve(wave.size());
  for (std::size_t i = 0; i < wave.size(); ++i) {
    GroupTask& task = tasks.emplace_back(task_of(loop, layer, step.groups[wave[i]], hessians[i]));
    task.solve = [&, &task = task, g = wave[i]](Comm& comm, Stream& stream) {
      for (const ScaledPair& p : pairs)
        if (p.pair.step == number && std::ranges::find(p.pair.groups, g) != p.pair.groups.end())
          divide_input(*task.hessian, p.scale, stream);
      bring_to_device(*task.hessian, stream);
      const auto clipped_rows = [&](std::size_t k, const RowRange& rows) {
        const Linear& linear = layer.linears[task.indices[k]];
        Array<float> w = scaled_rows(linear, factors[task.indices[k]], rows, stream);
        if (loop.options.awq.clip && may_clip(linear.name) && task.hessian->tokens > 0)
          clip_weight(w, *task.hessian, task.settings[k], stream);
        return w;
      };
      std::vector<QuantizedLinear> solved = solve(task.hessian, pointers(layer, task.indices),
                                                  task.settings, clipped_rows, comm, stream);
      for (std::size_t k = 0; k < solved.size(); ++k)
        solved[k].mean_squared_error =
            output_error(layer.linears[task.indices[k]], factors[task.indices[k]], solved[k],
                         *task.hessian, comm, stream);
      return solved;
    };
  }
  const Propagate propagate = [&](const QuantizedLinear& solved, std::size_t linear,
                                  Stream& stream) {
    unscaled_weight_into(solved, factors[linear], layer.linears[linear].weight, stream);
  };
  solve_groups(loop, layer, tasks, propagate, found);
}

// AWQ: every pair's factors are searched with the layer's original weights; then the layer is
// scaled, clipped and rounded.
void quantize_layer_awq(const Loop& loop, Layer& layer, Output output, Activations& activations,
                        LayerFindings& found) {
  const bool runs_again = loop.plan.quantized_propagation && output == Output::needed;
  if (runs_again) save_hidden(loop, activations);
  const std::vector<Step> steps = layer_steps(*layer.spec);
  const std::vector<ScalingPair> candidates = scaling_pairs(*layer.spec);
  Hessians hessians = hessians_of(steps);
  std::vector<ScaledPair> pairs;
  start(loop, layer, activations);
  for (std::size_t i = 0; i < steps.size(); ++i) {
    calibrate_step(loop, layer, steps[i], activations, hessians[i], found);
    for (const ScalingPair& pair : candidates) {
      if (pair.step != i) continue;
      std::vector<Hessian*> of_pair;
      for (const std::size_t g : pair.groups) of_pair.push_back(&hessians[i][g]);
      if (says_something(of_pair))
        pairs.push_back(search_pair(loop, layer, pair, activations, of_pair, found));
    }
    forward_step(loop, layer, steps, i, output, activations);
  }
  const std::vector<LinearFactors> factors = linear_factors(layer, pairs);
  if (loop.plan.quantized_propagation) found.factors = factors;
  store_scaled(loop, layer, pairs, factors);
  for (std::size_t i = 0; i < steps.size(); ++i)
    for (const Wave& wave : waves_of(loop, layer, steps[i]))
      solve_scaled_wave(loop, layer, steps[i], i, wave, of_wave(hessians[i], wave), pairs, factors,
                        found);
  if (runs_again) run_again(loop, layer, activations);
}

void round_layer(const Loop& loop, Layer& layer, LayerFindings& found) {
  for (const Step& step : layer_steps(*layer.spec))
    for (const Wave& wave : waves_of(loop, layer, step))
      solve_wave(loop, layer, step, wave, {}, found);
}

}  // namespace

LayerFindings quantize_layer(const Loop& loop, Layer& layer, Output output,
                             Activations& activations, Activations* original) {
  LayerFindings found;
  switch (loop.plan.procedure) {
    case Procedure::cast: throw std::logic_error("quantize_layer: casts go tensor by tensor");
    case Procedure::round: round_layer(loop, layer, found); break;
    case Procedure::sequential:
      quantize_layer_sequentially(loop, layer, output, activations, original, found);
      break;
    case Procedure::at_once: quantize_layer_at_once(loop, layer, output, activations, found); break;
    case Procedure::awq: quantize_layer_awq(loop, layer, output, activations, found); break;
  }
  if (loop.plan.calibrates())
    found.largest_activation =
        std::max(found.largest_activation, largest_output(activations, loop.comm, loop.stream));
  return found;
}

}  // namespace qpipe
