#include "pipeline/plan/memory_plan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <functional>
#include <stdexcept>

#include "kernels/hessian.h"
#include "launch/teams.h"
#include "pipeline/files/error.h"
#include "pipeline/options/sizes.h"

namespace qpipe {

namespace {

const Phase& most(const std::vector<Phase>& phases, std::int64_t Use::*bytes) {
  return *std::max_element(phases.begin(), phases.end(), [&](const Phase& a, const Phase& b) {
    return a.total().*bytes < b.total().*bytes;
  });
}

std::int64_t host_need(const std::vector<Phase>& phases, const Budget& budget) {
  std::int64_t need = 0;
  for (const Phase& phase : phases)
    need = std::max(need, phase.total().host + (budget.one_memory ? phase.total().device : 0));
  return need;
}

bool fits(const std::vector<Phase>& phases, const Budget& budget) {
  return most(phases, &Use::device).total().device <= budget.device &&
         host_need(phases, budget) <= budget.host;
}

std::int64_t widest_hessian(const RunSizes& run) {
  std::int64_t widest = 0;
  for (const LayerSizes& layer : run.layer_kinds)
    for (const StepSizes& step : layer.steps)
      if (step.solves()) widest = std::max(widest, step.columns);
  return widest;
}

std::int64_t most_groups(const RunSizes& run) {
  std::int64_t most = 0;
  for (const LayerSizes& layer : run.layer_kinds)
    for (const StepSizes& step : layer.steps)
      if (step.solves()) most = std::max(most, step.groups);
  return most;
}

constexpr int few_solvers = 4;

// By cost, each with all that is before it.
std::vector<Places> places_by_cost(const RunSizes& run, const Teams& teams) {
  std::vector<Places> choices{Places{}};
  choices.front().solvers = run.most_solvers;
  const auto then = [&](const std::function<void(Places&)>& change) {
    Places next = choices.back();
    change(next);
    choices.push_back(next);
  };
  if (streams(run, teams)) {
    choices.front().inputs_kept = true;
    then([](Places& p) { p.inputs_kept = false; });
  }
  // Experts in waves, each a pass over the input: as few as fit.
  const auto wave = [&](std::int64_t most, std::int64_t least) {
    for (std::int64_t groups = most_groups(run) / 2; groups >= least; groups /= 2)
      if (groups <= most) then([&](Places& p) { p.groups_at_once = groups; });
  };
  if (run.calibrates()) {
    constexpr std::int64_t small_wave = 8;
    wave(most_groups(run), small_wave);
    if (run.most_solvers > few_solvers) then([](Places& p) { p.solvers = few_solvers; });
    then([](Places& p) { p.input = Place::host; });
    then([](Places& p) { p.hidden = Place::host; });
    if (run.most_solvers > 1) then([](Places& p) { p.solvers = 1; });
    wave(small_wave - 1, 1);
    const std::int64_t unit = hessian_panel(run.backend);
    for (std::int64_t columns = (widest_hessian(run) - 1) / unit * unit; columns > 0;
         columns -= unit)
      then([&](Places& p) { p.hessian_panel_columns = columns; });
  }
  for (const int workers : {4, 2, 1})
    if (run.casts()) then([&](Places& p) { p.cast_workers = workers; });
  if (!run.casts()) then([](Places& p) { p.weights_by_step = true; });
  if (run.calibrates())
    for (std::int64_t experts = most_groups(run) / 2; experts > 0; experts /= 2)
      then([&](Places& p) { p.experts_at_once = experts; });
  if (run.calibrates()) {
    then([](Places& p) { p.hessian_on_host = true; });
    const std::vector<Places> on_host = choices;
    for (const bool hidden : {false, true})
      for (Places next : on_host) {
        if ((hidden ? next.hidden : next.input) != Place::host) continue;
        next.input = Place::disk;
        if (hidden) next.hidden = Place::disk;
        choices.push_back(next);
      }
  }
  return choices;
}

// Savings undone, the costliest first; more than one step at a time where there are several.
std::vector<std::function<void(Places&)>> undone(const RunSizes& run) {
  using Undo = std::function<void(Places&)>;
  const auto twice_the_wave = [](Places& p) { p.groups_at_once *= 2; };
  const auto solvers = [&run](int at_least) {
    return [&run, at_least](Places& p) {
      p.solvers = std::max(p.solvers, std::min(run.most_solvers, at_least));
    };
  };
  std::vector<Undo> all{[](Places& p) { p.hessian_on_host = false; },
                        [](Places& p) {
                          p.weights_by_step = false;
                          p.experts_at_once = 0;
                        },
                        [](Places& p) { p.experts_at_once = 0; },
                        [](Places& p) { p.hessian_panel_columns = 0; }};
  // Waves that a few experts fill, then experts side by side, then fewer waves.
  all.insert(all.end(), {twice_the_wave, twice_the_wave, twice_the_wave});
  all.insert(all.end(), {solvers(2), solvers(few_solvers), solvers(run.most_solvers)});
  all.insert(all.end(), {[](Places& p) { p.groups_at_once = 0; }, twice_the_wave, twice_the_wave,
                         twice_the_wave, twice_the_wave});
  all.insert(all.end(), {[](Places& p) { p.hidden = Place::device; },
                         [](Places& p) { p.input = Place::device; },
                         [](Places& p) { p.hidden = std::min(p.hidden, Place::host); }});
  return all;
}

bool any_fits(const RunSizes& run, const Teams& teams, const Budget& budget) {
  const std::int64_t blocks = largest_share(run, teams);
  const std::vector<Places> choices = places_by_cost(run, teams);
  return std::any_of(choices.begin(), choices.end(), [&](const Places& places) {
    return fits(memory_phases(run, teams, blocks, places), budget);
  });
}

std::string by_purpose(const Phase& phase, std::int64_t Use::*bytes) {
  std::vector<Use> uses = phase.uses;
  std::stable_sort(uses.begin(), uses.end(),
                   [&](const Use& a, const Use& b) { return a.*bytes > b.*bytes; });
  std::vector<std::string> texts;
  for (const Use& use : uses)
    if (use.*bytes * 100 >= phase.total().*bytes)
      texts.push_back(fmt::format("{} {}", use.purpose, size_text(use.*bytes)));
  return fmt::format("{}", fmt::join(texts, ", "));
}

// What fits: smaller blocks, or more ranks that share a layer.
std::string advice(const RunSizes& run, const Teams& teams, const Budget& budget) {
  std::vector<std::string> ways;
  if (run.calibrates())
    if (const std::int64_t tokens = largest_micro_batch(run, teams, budget, nullptr); tokens > 0)
      ways.push_back(fmt::format("memory.micro_batch = {} fits", tokens));
  if (!run.casts())
    for (int ranks = 2 * teams.ranks_of_team; ranks <= 128; ranks *= 2)
      if (any_fits(run, {std::max(ranks, teams.ranks()) / ranks, ranks}, budget)) {
        ways.push_back(fmt::format("{} ranks for each layer fit{}", ranks,
                                   ranks <= teams.ranks() ? " (parallel.teams)" : ""));
        break;
      }
  ways.emplace_back("or give more memory");
  return fmt::format("{}", fmt::join(ways, "; "));
}

}  // namespace

Teams teams_of_run(int ranks, std::int64_t wanted, const RunSizes& run) {
  try {
    return choose_teams(ranks, run.layers, !run.calibrates() || !run.quantized_propagation,
                        static_cast<int>(wanted));
  } catch (const std::invalid_argument&) {
    throw UserError(
        ExitCode::config,
        fmt::format("parallel.teams = {} does not divide the {} rank{}; use a divisor, or 0",
                    wanted, ranks, ranks == 1 ? "" : "s"));
  }
}

const Phase& MemoryPlan::device_peak() const { return most(phases, &Use::device); }
const Phase& MemoryPlan::host_peak() const { return most(phases, &Use::host); }
std::int64_t MemoryPlan::disk_bytes() const { return most(phases, &Use::disk).total().disk; }

MemoryPlan plan_memory(const RunSizes& run, const Teams& teams, const Budget& budget) {
  const std::int64_t blocks = largest_share(run, teams);
  const auto phases = [&](const Places& places) {
    return memory_phases(run, teams, blocks, places);
  };
  const std::vector<Places> choices = places_by_cost(run, teams);
  MemoryPlan plan;
  plan.least_device = INT64_MAX;
  for (const Places& places : choices)
    plan.least_device =
        std::min(plan.least_device, most(phases(places), &Use::device).total().device);
  for (const Places& places : choices) {
    plan.places = places;
    plan.phases = phases(places);
    plan.fits = fits(plan.phases, budget);
    if (plan.fits) break;
  }
  if (!plan.fits) {
    // The one that is nearest to fit: least on the device where that is too small for all, else
    // least on the host.
    std::int64_t nearest = INT64_MAX;
    for (const Places& places : choices) {
      const std::vector<Phase> other = phases(places);
      const std::int64_t device = most(other, &Use::device).total().device;
      const std::int64_t lacking = plan.least_device > budget.device ? device
                                   : device > budget.device          ? INT64_MAX
                                                                     : host_need(other, budget);
      if (lacking >= nearest) continue;
      nearest = lacking;
      plan.places = places;
      plan.phases = other;
    }
    return plan;
  }
  for (const auto& undo : undone(run)) {
    Places places = plan.places;
    undo(places);
    if (!fits(phases(places), budget)) continue;
    plan.places = places;
    plan.phases = phases(places);
  }
  return plan;
}

std::int64_t largest_micro_batch(const RunSizes& run, const Teams& teams, const Budget& budget,
                                 const Places* places) {
  const auto holds = [&](std::int64_t block_samples) {
    RunSizes other = run;
    other.micro_batch = block_samples * run.seqlen;
    return places != nullptr
               ? fits(memory_phases(other, teams, largest_share(other, teams), *places), budget)
               : any_fits(other, teams, budget);
  };
  std::int64_t good = 0;
  std::int64_t bad = run.samples + 1;
  while (bad - good > 1) {
    const std::int64_t middle = (good + bad) / 2;
    (holds(middle) ? good : bad) = middle;
  }
  return good * run.seqlen;
}

std::string does_not_fit(const RunSizes& run, const Teams& teams, const Budget& budget,
                         const MemoryPlan& plan) {
  if (plan.least_device > budget.device) {
    const Phase& peak = plan.device_peak();
    return fmt::format(
        "the run needs {} of {} memory on a rank at \"{}\" with all else on the host, and "
        "memory.gpu is {}: {}; {}",
        size_text(peak.total().device), run.backend == Backend::cuda ? "GPU" : "device", peak.name,
        size_text(budget.device), by_purpose(peak, &Use::device), advice(run, teams, budget));
  }
  const Phase& peak = plan.host_peak();
  const Use total = peak.total();
  return fmt::format(
      "the run needs {} of host memory on a rank at \"{}\"{}, and memory.host is {}: {}; {}",
      size_text(total.host), peak.name,
      budget.one_memory ? " beside " + size_text(plan.device_peak().total().device) + " to work in"
                        : "",
      size_text(budget.host), by_purpose(peak, &Use::host), advice(run, teams, budget));
}

std::string describe(const Places& places) {
  const auto at = [](Place place) { return place == Place::host ? "on the host" : "on disk"; };
  std::vector<std::string> texts;
  if (places.inputs_kept)
    texts.emplace_back("all on the device, inputs of all steps of a layer at once");
  if (places.input != Place::device)
    texts.push_back(fmt::format("step inputs {}", at(places.input)));
  if (places.hidden != Place::device)
    texts.push_back(fmt::format("hidden states {}", at(places.hidden)));
  if (places.groups_at_once > 0)
    texts.push_back(fmt::format("experts in waves of {}", places.groups_at_once));
  if (places.hessian_panel_columns > 0)
    texts.push_back(fmt::format("Hessians summed by {} columns", places.hessian_panel_columns));
  if (places.experts_at_once > 0)
    texts.push_back(fmt::format("weights of one step, of {} expert{}, at a time",
                                places.experts_at_once, places.experts_at_once == 1 ? "" : "s"));
  else if (places.weights_by_step)
    texts.emplace_back("weights of one step at a time");
  if (places.hessian_on_host) texts.emplace_back("finished Hessians on the host");
  if (places.cast_workers > 0)
    texts.push_back(fmt::format("at most {} worker{}", places.cast_workers,
                                places.cast_workers == 1 ? "" : "s"));
  return texts.empty() ? "all on the device" : fmt::format("{}", fmt::join(texts, ", "));
}

}  // namespace qpipe
