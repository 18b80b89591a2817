#include "pipeline/plan/run_estimate.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "stages/calibrate.h"
#include "stages/factor_team.h"

namespace qpipe {

namespace {

constexpr double h100_tflops = 989.0;  // dense bfloat16, data sheet
constexpr const char* hidden_states = "hidden states";

double as_double(std::int64_t value) { return static_cast<double>(value); }

// Layers that a team works on while the others work on theirs; all of them where each layer waits
// for the one before.
std::int64_t layers_in_turn(const RunSizes& r, const Teams& teams) {
  const bool waits = r.calibrates() && r.quantized_propagation;
  return waits ? r.layers : (r.layers + teams.teams - 1) / teams.teams;
}

// value(layer), averaged over the layers.
template <class Value>
double mean_over_layers(const RunSizes& r, Value value) {
  double sum = 0.0;
  for (const LayerSizes& layer : r.layer_kinds) sum += as_double(layer.count) * value(layer);
  return sum / as_double(r.layers);
}

double largest_tokens(const RunSizes& r, const Teams& teams) {
  const Blocking blocking = r.blocking();
  return as_double(std::min(largest_share(r, teams) * blocking.block_samples, r.samples) *
                   r.seqlen);
}

// One pass of a layer's linears of `kinds`, without attention.
double linear_flops(const LayerSizes& layer, double tokens) {
  double elements = 0.0;
  for (const StepSizes& step : layer.steps)
    for (const LinearSizes& linear : step.linears)
      elements += step.passes() * as_double(linear.elements());
  return 2.0 * tokens * elements;
}

// q·k and p·v over half of the square, or what a recurrent state takes in their place.
double mixing_flops(const RunSizes& r, const LayerSizes& layer, double tokens) {
  return 2.0 * tokens * as_double(r.seqlen * layer.attention_width() + layer.state_width());
}

// Of a layer's pass; a round's layers follow one another by two blocks
// (pipeline/layers/hidden_stream.cpp).
double pipeline_passes(const RunSizes& r, const Teams& teams) {
  const double blocks = as_double(std::max<std::int64_t>(1, largest_share(r, teams)));
  const double stages = as_double(std::min<std::int64_t>(teams.teams, r.layers));
  return (blocks + 2.0 * (stages - 1.0)) / blocks;
}

double pass_seconds(const RunSizes& r, const LayerSizes& layer, double tokens, const Rates& rates) {
  return (linear_flops(layer, tokens) + mixing_flops(r, layer, tokens)) / rates.forward;
}

// Again where the layer runs with quantized weights, or ahead for the teams after it, where its
// inputs are not kept.
double forward_passes(const RunSizes& r, const Teams& teams, const Places& places) {
  switch (r.procedure) {
    case Procedure::cast:
    case Procedure::round: return 0.0;
    case Procedure::sequential: return r.original_target ? 2.0 : 1.0;
    case Procedure::at_once:
    case Procedure::awq:
      if (streams(r, teams)) return pipeline_passes(r, teams) + (places.inputs_kept ? 0.0 : 1.0);
      return r.runs_again() ? 2.0 : 1.0;
  }
  throw std::logic_error("forward_passes: no such procedure");
}

// Of a rank's tokens, where all ranks together take `sampled`; 0: all.
double sampled_of(double tokens, std::int64_t sampled, const Teams& teams) {
  return sampled == 0 ? tokens : std::min(tokens, as_double(sampled) / teams.ranks_of_team);
}

double hessian_seconds(const RunSizes& r, const LayerSizes& layer, const Teams& teams,
                       double tokens, const Rates& rates) {
  const double seen = sampled_of(tokens, r.hessian_tokens, teams);
  double flops = 0.0;
  for (const StepSizes& step : layer.steps)
    if (step.solves())  // cross moments have no symmetry
      flops += (step.to_original ? 3.0 : 1.0) * step.passes() * seen * as_double(step.columns) *
               as_double(step.columns);
  return flops / rates.hessian;
}

double search_seconds(const RunSizes& r, const LayerSizes& layer, const Teams& teams, double tokens,
                      const Rates& rates) {
  const double searched = sampled_of(tokens, r.search_tokens, teams);
  double seconds = 0.0;
  for (const StepSizes& step : layer.steps) {
    if (!step.search) continue;
    if (r.exact_search && *step.search != Inspected::linears) {
      const bool attention = is_inspected(*step.search, Part::mixer);
      double flops = attention ? mixing_flops(r, layer, searched) : 0.0;
      for (const StepSizes& other : layer.steps) {
        if (!is_inspected(*step.search, other.part)) continue;
        for (const LinearSizes& linear : other.linears)
          flops += 2.0 * searched * other.passes() * as_double(linear.elements());
      }
      seconds += as_double(r.grid + 1) * flops / rates.forward;
    } else {
      double flops = 0.0;
      for (const LinearSizes& linear : step.linears) {
        const std::int64_t rows =
            r.search_rows == 0 ? linear.rows : std::min(linear.rows, r.search_rows);
        if (linear.quantized)
          flops += 2.0 * as_double(rows) * as_double(linear.columns) * as_double(linear.columns);
      }
      seconds += as_double(r.grid * step.groups) * flops / teams.ranks_of_team / rates.gram;
    }
  }
  return seconds;
}

bool factored_in_team(const RunSizes& r, const StepSizes& step, const Teams& teams) {
  return r.backend == Backend::cuda &&
         factors_in_team(step.factors, step.columns, teams.ranks_of_team);
}

// A team at work on one factor divides the products. The columns one after another stay, and what
// is sent is in traffic(), as if nothing were hidden by what runs beside it.
double factor_seconds(const RunSizes& r, const StepSizes& step, const Teams& teams,
                      const Rates& rates) {
  const double d = as_double(step.columns);
  const double product = d * d * d / 3.0 / rates.factor;
  if (factored_in_team(r, step, teams))
    return as_double(step.factors) * (product / teams.ranks_of_team + d * rates.factor_column);
  const std::int64_t in_turn = (step.factors + teams.ranks_of_team - 1) / teams.ranks_of_team;
  return as_double(in_turn) * (product + d * rates.factor_column);
}

// What each rank has of a step's factors in the end, or of their panels from the diagonal down.
double factor_traffic(const RunSizes& r, const StepSizes& step, const Teams& teams,
                      const Places& places) {
  if (groups_side_by_side(step, places, teams.ranks_of_team) > 0) return 0.0;
  const double d = as_double(step.columns);
  return as_double(step.groups * step.factors) *
         (factored_in_team(r, step, teams) ? 2.0 * d * d : 4.0 * d * (d + 1.0));
}

// Experts that are solved side by side wait for their columns at the same time.
double solve_seconds(const RunSizes& r, const LayerSizes& layer, const Teams& teams,
                     const Places& places, const Rates& rates) {
  double seconds = 0.0;
  for (const StepSizes& step : layer.steps) {
    const std::int64_t dealt = groups_side_by_side(step, places, teams.ranks_of_team);
    const Teams at_work{teams.teams, dealt > 0 ? 1 : teams.ranks_of_team};
    const std::int64_t in_turn =
        dealt > 0 ? (step.groups + teams.ranks_of_team - 1) / teams.ranks_of_team : step.groups;
    const double d = as_double(step.columns);
    std::int64_t rows = 0;
    for (const LinearSizes& linear : step.linears) rows += linear.gptq ? linear.rows : 0;
    const double columns =  // one sweep for each order
        as_double(std::max<std::int64_t>(step.factors, rows > 0 ? 1 : 0)) * d * rates.sweep_column;
    const double moved = step.to_original ? 4.0 / rates.target : 0.0;
    const double products =
        as_double(rows) * d * d / at_work.ranks_of_team * (1.0 / rates.sweep + moved);
    const double factors = factor_seconds(r, step, at_work, rates);
    const double waits = dealt > 0 ? as_double(step.factors) * d * rates.factor_column : 0.0;
    seconds +=
        as_double(in_turn) * (factors - waits + products +
                              (waits + columns) / as_double(std::max<std::int64_t>(dealt, 1)));
  }
  return seconds;
}

// Bytes that cross between the device and where blocks are kept: each step's input is read for each
// range of the Hessian's columns, for AWQ's means and in the forward pass, which writes the next
// one; the residual stream is read by the first norm, and updated twice. A layer that runs again
// does so block by block, as a whole, where its weights do not wait.
struct Crossings {
  double host = 0.0;
  double disk_read = 0.0;
  double disk_written = 0.0;
};

Crossings crossings(const RunSizes& r, const LayerSizes& layer, const Places& places,
                    double tokens) {
  Crossings result;
  const double element = as_double(r.compute_element);
  const double passes = r.runs_again() && places.weights_by_step ? 2.0 : 1.0;
  const auto add = [&](Place place, double read, double written) {
    if (place == Place::device) return;
    result.host += read + written;
    if (place != Place::disk) return;
    result.disk_read += read;
    result.disk_written += written;
  };
  for (std::size_t i = 0; i < layer.steps.size(); ++i) {
    const StepSizes& step = layer.steps[i];
    const std::int64_t panel = places.hessian_panel_columns;
    double sums = step.solves() ? 1.0 : 0.0;  // passes over the input
    if (step.solves() && panel > 0) sums *= std::ceil(as_double(step.columns) / as_double(panel));
    if (step.solves() && places.groups_at_once > 0)
      sums *= std::ceil(as_double(step.groups) / as_double(places.groups_at_once));
    const double bytes = tokens * as_double(step.width) * element;
    const double forward = layer.begins_step(i) ? passes : 0.0;
    add(places.input, bytes * (sums + (step.search ? 1.0 : 0.0) + forward), bytes * forward);
  }
  const double hidden = tokens * as_double(r.stream_width) * element;
  add(places.hidden, hidden * 3.0 * passes, hidden * 2.0 * passes);
  if (r.runs_again() && !places.weights_by_step) add(places.hidden, hidden, hidden);
  if (places.weights_by_step)
    result.host += 3.0 * as_double(layer.stored_bytes());  // to forward, to solve, and back
  if (places.experts_at_once > 0) {                        // anew for each further block
    const double blocks = std::ceil(tokens / as_double(r.blocking().block_tokens()));
    for (const StepSizes& step : layer.steps)
      if (step.share < 1.0)
        for (const LinearSizes& linear : step.linears)
          result.host += passes * (blocks - 1.0) * as_double(step.groups * linear.stored_bytes);
  }
  if (places.hessian_on_host)
    for (const StepSizes& step : layer.steps)
      if (step.solves())
        result.host += 4.0 * as_double(step.groups) * as_double(step.columns) *
                       as_double(step.columns);  // half of it, twice
  return result;
}

// Activations in host memory.
double locked_bytes(const RunSizes& r, const Places& places, double tokens) {
  const std::int64_t columns = (places.hidden == Place::host ? r.stream_width : 0) +
                               (places.input == Place::host ? r.widest_input : 0);
  return tokens * as_double(columns * r.compute_element);
}

}  // namespace

Rates scaled_to(double tflops, Rates rates) {
  for (double* rate :
       {&rates.forward, &rates.hessian, &rates.factor, &rates.sweep, &rates.target, &rates.gram})
    *rate *= tflops / h100_tflops;
  return rates;
}

std::vector<Traffic> traffic(const RunSizes& r, const Teams& teams, const Places& places) {
  const double ring = as_double(teams.ranks_of_team - 1) / teams.ranks_of_team;
  const double layers = as_double((r.layers + teams.teams - 1) / teams.teams);
  const auto bytes = [&](double per_layer) {
    return static_cast<std::int64_t>(layers * per_layer);
  };
  std::vector<Traffic> result;
  const auto add = [&](const char* purpose, double per_layer) {
    if (bytes(per_layer) > 0) result.push_back({purpose, bytes(per_layer)});
  };
  if (r.casts()) return result;
  // All get a sum, or one.
  const auto receivers = [&](const StepSizes& step) {
    return sums_go_to_owners(r, step, places, teams.ranks_of_team) ? 1.0 : 2.0;
  };
  add("weights", ring * mean_over_layers(r, [](const LayerSizes& layer) {
                   return as_double(layer.stored_bytes());
                 }));
  if (r.calibrates()) {
    add("sums of Hessians",
        ring * mean_over_layers(r, [&](const LayerSizes& layer) {
          double sum = 0.0;
          for (const StepSizes& step : layer.steps)
            if (step.solves())
              sum += receivers(step) * 8.0 *
                     as_double(step.groups * hessian_sum_elements(step.columns, step.columns));
          return sum;
        }));
    add("Cholesky factors", ring * mean_over_layers(r, [&](const LayerSizes& layer) {
                              double sum = 0.0;
                              for (const StepSizes& step : layer.steps)
                                sum += factor_traffic(r, step, teams, places);
                              return sum;
                            }));
  }
  add("codes", ring * mean_over_layers(r, [](const LayerSizes& layer) {
                 double sum = 0.0;
                 for (const StepSizes& step : layer.steps)
                   for (const LinearSizes& linear : step.linears)
                     if (linear.quantized)
                       sum += as_double(step.groups *
                                        (linear.elements() + 5 * linear.rows * linear.groups()));
                 return sum;
               }));
  if (teams.teams > 1 && r.calibrates())
    add(hidden_states,
        largest_tokens(r, teams) * as_double(r.stream_width) * as_double(r.compute_element));
  return result;
}

RunTime run_time(const RunSizes& r, const Teams& teams, const Places& places, int machines,
                 const Rates& rates) {
  RunTime time;
  const double layers = as_double(layers_in_turn(r, teams));
  const auto add = [&](const char* name, double seconds) {
    if (seconds > 0.0) time.phases.push_back({name, seconds});
  };
  const auto per_layer = [&](auto value) { return layers * mean_over_layers(r, value); };
  const double ranks_of_machine = as_double(teams.ranks()) / machines;
  const double tokens = r.calibrates() ? largest_tokens(r, teams) : 0.0;
  const double network = machines > 1 ? rates.fabric : rates.network;
  add("start", rates.start + ranks_of_machine * locked_bytes(r, places, tokens) / rates.page_lock);
  if (r.calibrates()) {
    const double forward = per_layer([&](const LayerSizes& layer) {
      return forward_passes(r, teams, places) * pass_seconds(r, layer, tokens, rates);
    });
    const double hessian = per_layer(
        [&](const LayerSizes& layer) { return hessian_seconds(r, layer, teams, tokens, rates); });
    add("forward", forward);
    add("Hessians", hessian);
    add("AWQ's search", r.awq() ? per_layer([&](const LayerSizes& layer) {
          return search_seconds(r, layer, teams, tokens, rates);
        })
                                : 0.0);
    add("factors and codes", per_layer([&](const LayerSizes& layer) {
          return solve_seconds(r, layer, teams, places, rates);
        }));
    // Blocks travel while others are computed: what is longer counts.
    const double travel = per_layer([&](const LayerSizes& layer) {
      const Crossings c = crossings(r, layer, places, tokens);
      return std::max(c.host / rates.offload,
                      ranks_of_machine * (c.disk_read / rates.read + c.disk_written / rates.write));
    });
    add("waiting for offloaded blocks", travel - forward - hessian);
    if (teams.teams > 1) {  // beside the pass through the round, or with nothing beside
      const double hidden =
          layers * tokens * as_double(r.stream_width) * as_double(r.compute_element) / network;
      const double beside =
          per_layer([&](const LayerSizes& layer) { return pass_seconds(r, layer, tokens, rates); });
      add("waiting for hidden states", streams(r, teams) ? hidden - beside : hidden);
    }
  }
  double sent = 0.0;
  for (const Traffic& t : traffic(r, teams, places))
    if (t.purpose != hidden_states) sent += as_double(t.bytes);
  add("network", sent / network * layers / as_double((r.layers + teams.teams - 1) / teams.teams));
  double work = 0.0;
  for (const PhaseTime& phase : time.phases) work += phase.seconds;
  time.write = as_double(r.output_bytes) / machines / rates.write;
  const double at_once =
      std::min(as_double(teams.teams), as_double(r.layers));  // layers that end together
  const double last =
      at_once *
      mean_over_layers(r, [](const LayerSizes& layer) { return as_double(layer.packed_bytes()); }) /
      machines / rates.write;
  add("writing, after the last layers", std::max(last, time.write - (r.calibrates() ? work : 0.0)));
  const double stored = as_double(r.layers) * mean_over_layers(r, [](const LayerSizes& layer) {
                          return as_double(layer.stored_bytes());
                        });
  time.read = stored / machines / rates.read;
  for (const PhaseTime& phase : time.phases) time.total += phase.seconds;
  time.total = std::max(time.total, time.read);
  return time;
}

}  // namespace qpipe
