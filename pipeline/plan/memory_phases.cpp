#include "pipeline/plan/memory_phases.h"

#include <algorithm>
#include <numeric>

#include "kernels/alignment.h"
#include "kernels/gptq_sweep.h"
#include "kernels/hessian.h"
#include "kernels/scaled_rounding_loss.h"
#include "kernels/split_multiply.h"
#include "launch/share.h"
#include "stages/calibrate.h"
#include "stages/factor_team.h"
#include "stages/original_target.h"
#include "stages/rescale.h"
#include "stages/solve.h"
#include "stages/solvers.h"

namespace qpipe {

namespace {

constexpr std::int64_t f32 = 4;
constexpr std::int64_t f64 = 8;
constexpr std::int64_t i64 = 8;
constexpr std::int64_t i32 = 4;

using Uses = std::vector<Use>;

Uses operator+(Uses a, const Uses& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

Use on_device(const std::string& purpose, std::int64_t bytes) { return {purpose, bytes, 0, 0}; }
Use on_host(const std::string& purpose, std::int64_t bytes) { return {purpose, 0, bytes, 0}; }

std::int64_t ceiling(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// What a phase does to the blocks of the two stores.
struct Passes {
  Access hidden = Access::none;
  Access input = Access::none;
  std::int64_t input_columns = 0;  // that are read, where nothing is written
  bool both = false;               // those of the original model at the same time
};

// All of a rank's blocks where they are kept; elsewhere than on the device with windows there while
// they pass by: one to work on, one that comes, one that goes. A file has as much staging memory on
// the host.
Use blocks_at(const std::string& purpose, Place place, Access pass, std::int64_t blocks,
              std::int64_t block_bytes, std::int64_t read_bytes, std::int64_t copies = 1) {
  const std::int64_t all = blocks * block_bytes * copies;
  if (place == Place::device) return {purpose, all, 0, 0};
  constexpr std::int64_t most_windows = 3;
  const std::int64_t window = pass == Access::read ? read_bytes : block_bytes;
  const std::int64_t windows = pass == Access::none      ? 0
                               : pass == Access::scratch ? 1
                               : pass == Access::update  ? most_windows
                                                         : 2;
  const std::int64_t device = std::min(blocks, windows) * window;
  if (place == Place::host) return {purpose, device, all, 0};
  return {purpose, device, std::min(blocks, most_windows) * block_bytes, all};
}

// hidden, inputs, scratch (stages/activations.cpp). copies: 2 where the layer's input is kept for a
// second pass.
Uses activations(const RunSizes& r, const Blocking& blocking, std::int64_t blocks,
                 const Places& places, const Passes& passes, std::int64_t copies) {
  const std::int64_t tokens = blocking.block_samples * blocking.seqlen;
  const auto bytes = [&](std::int64_t width) { return tokens * width * r.compute_element; };
  const Use hidden = blocks_at("hidden states", places.hidden, passes.hidden, blocks,
                               aligned(bytes(r.stream_width)), bytes(r.stream_width), copies);
  // With the routers' scores.
  const Use scratch = on_device("forward scratch of a block",
                                bytes(r.scratch_width) + f32 * tokens * r.routed_experts);
  const Use routes = on_device("routes", blocks * tokens * r.route_bytes);
  const auto inputs = [&](const std::string& purpose, Access pass) {
    Use input = blocks_at(purpose, places.input, pass, blocks, aligned(bytes(r.widest_input)),
                          bytes(passes.input_columns));
    input.device += f32 * r.widest_input;
    return input;
  };
  if (r.original_target) {  // one of the two models passes at a time, or both inputs are read
    const Use other = blocks_at("hidden states of the original model", places.hidden, Access::none,
                                blocks, aligned(bytes(r.stream_width)), 0);
    const Access pass = passes.both ? passes.input : Access::none;
    return {hidden,
            inputs("step inputs", passes.input),
            scratch,
            other,
            inputs("step inputs of the original model", pass),
            on_device("routes", 2 * routes.device)};
  }
  if (!places.inputs_kept) return {hidden, inputs("step inputs", passes.input), scratch, routes};
  std::int64_t kept = 0;
  for (const std::int64_t width : r.input_widths)
    kept += blocks * aligned(bytes(width)) + f32 * width;
  return {hidden, on_device("step inputs", kept), scratch, routes};
}

// As advance() of stages/activations.cpp visits them.
Passes forward_passes(const StepSizes& step) { return {step.hidden, step.input, step.width}; }

// Groups whose linears are in use.
struct InUse {
  const StepSizes* step = nullptr;
  std::int64_t groups = 1;
};

// Those that the forward pass of a step has on the device together.
std::vector<InUse> all_of_step(const LayerSizes& layer, std::size_t step, const Places& places) {
  std::vector<InUse> in_use;
  for (const StepSizes& group : layer.steps) {
    if (group.step != step) continue;
    const bool in_waves = group.share < 1.0 && places.experts_at_once > 0;
    in_use.push_back(
        {&group, in_waves ? std::min(places.experts_at_once, group.groups) : group.groups});
  }
  return in_use;
}

// A layer on the device, or with weights_by_step the linears of `in_use` alone
// (pipeline/layers/layer_source.cpp, stages/waiting_weights.cpp).
Use weights(const LayerSizes& layer, const std::vector<InUse>& in_use, const Places& places) {
  if (!places.weights_by_step)
    return on_device("layer's weights",
                     layer.stored_bytes() + layer.copy_bytes() + layer.small_copy_bytes);
  std::int64_t used = layer.small_bytes + layer.small_copy_bytes;
  for (const auto& [step, groups] : in_use)
    for (const LinearSizes& linear : step->linears)
      used += groups * (linear.stored_bytes + linear.copy_bytes);
  return {"layer's weights", used, layer.stored_bytes() + layer.copy_bytes(), 0};
}

// ---- Hessians (stages/calibrate.cpp, kernels/hessian).

std::int64_t hessian_bytes(std::int64_t d) { return f32 * d * d; }

// Panels of the lower triangle on the host (HessianPanel).
std::int64_t host_hessian_bytes(const RunSizes& r, std::int64_t d) {
  const std::int64_t panel = hessian_panel(r.backend);
  std::int64_t elements = 0;
  for (std::int64_t begin = 0; begin < d; begin += panel)
    elements += (d - begin) * std::min(panel, d - begin);
  return f32 * elements;
}

// A float32 panel: the product of a block of tokens on CUDA, or what goes to the host and comes
// back.
std::int64_t panel_bytes(const RunSizes& r, std::int64_t d) {
  return f32 * d * std::min(d, hessian_panel(r.backend));
}

// Groups whose Hessians are summed together.
std::int64_t wave_of(const StepSizes& step, const Places& places) {
  return places.groups_at_once > 0 ? std::min(places.groups_at_once, step.groups) : step.groups;
}

// Rows that are copied together for the sums: all that a block has for an expert, where they can't
// be read where they are, and those that a starved expert gets on top.
std::int64_t copied_rows(const RunSizes& r, const StepSizes& step) {
  const std::int64_t block = r.blocking().block_tokens();
  const bool all = step.gathers && (step.weighted || r.backend == Backend::cpu);
  return (all ? block : 0) + (step.share < 1.0 ? std::min(block, r.expert_tokens) : 0);
}

// While a wave's are summed: the 64-bit sums of a range of columns, or of all, and an expert's
// rows.
Use hessian_sum(const RunSizes& r, const StepSizes& step, const Places& places) {
  const std::int64_t d = step.columns;
  const std::int64_t columns =
      places.hessian_panel_columns > 0 ? std::min(d, places.hessian_panel_columns) : d;
  const bool panel = (r.backend == Backend::cuda && step.share == 1.0) || places.hessian_on_host;
  return on_device("64-bit sum of the Hessian",
                   wave_of(step, places) * i64 * hessian_sum_elements(d, columns) +
                       (panel ? panel_bytes(r, d) : 0) + f32 * d +
                       copied_rows(r, step) * d * r.compute_element);
}

// ---- What GPTQ aims at (stages/cross_moments.cpp, stages/original_target.cpp).

// While the halves of a group's cross moments are summed: their 64-bit sums, the product of a block
// on CUDA, the difference of its inputs, and exponents.
Use cross_sum(const RunSizes& r, const StepSizes& step, const Places& places) {
  const std::int64_t d = step.columns;
  const std::int64_t columns =
      places.hessian_panel_columns > 0 ? std::min(d, places.hessian_panel_columns) : d;
  const std::int64_t product =
      r.backend == Backend::cuda ? f32 * d * std::min(columns, hessian_panel(r.backend)) : 0;
  return on_device("64-bit sums of cross moments",
                   2 * i64 * d * columns + product +
                       r.blocking().block_tokens() * d * r.compute_element + 2 * i32 * d);
}

std::int64_t cross_bytes(const StepSizes& step, std::int64_t halves) {
  return step.to_original ? halves * step.groups * hessian_bytes(step.columns) : 0;
}

// While α of the group's linears is found.
std::int64_t target_search_bytes(const RunSizes& r, const StepSizes& step) {
  std::vector<std::int64_t> rows;
  for (const LinearSizes& linear : step.linears)
    if (linear.gptq) rows.push_back(linear.rows);
  return target_workspace_bytes(r.backend, rows, step.columns) + 3 * f32 * step.columns;
}

// Finished Hessians, and those of them that are on the device as a whole although they wait on the
// host otherwise.
struct Held {
  std::int64_t full = 0;  // bytes of all
  std::int64_t host = 0;  // the same on the host
  Held operator+(const Held& other) const { return {full + other.full, host + other.host}; }
  Held operator-(const Held& other) const { return {full - other.full, host - other.host}; }
};

Use hessians(const Held& held, std::int64_t in_use_bytes, const Places& places) {
  if (!places.hessian_on_host) return on_device("Hessians", held.full);
  return {"Hessians", in_use_bytes, held.host, 0};
}

// Of so many groups of a step, wave by wave: a rank has those that it solves, or all.
std::int64_t hessians_of_rank(const RunSizes& r, const StepSizes& step, std::int64_t groups,
                              const Places& places, int ranks) {
  if (!sums_go_to_owners(r, step, places, ranks)) return groups;
  const std::int64_t wave = wave_of(step, places);
  return groups / wave * ceiling(wave, ranks) + ceiling(groups % wave, ranks);
}

// ---- GPTQ (stages/solve.cpp).

// Beside h, n and the pivots (kernels/factor.cpp, factor.cu), and what a Hessian comes from the
// host through.
std::int64_t factor_work_bytes(const RunSizes& r, const StepSizes& step, int ranks,
                               const Places& places) {
  const std::int64_t d = step.columns;
  const int at_work = factors_in_team(step.factors, d, ranks) ? ranks : 1;
  const std::int64_t work =
      r.backend == Backend::cpu ? f64 * d * d : factor_workspace_bytes(d, at_work);
  return places.hessian_on_host ? std::max(work, panel_bytes(r, d)) + f32 * d : work;
}

// kernels/gptq_sweep.cu: the values of the rows of a turn, w − q of a panel, their pieces and N's,
// and a unit whose grids are found apart.
std::int64_t sweep_workspace_bytes(const RunSizes& r, const LinearSizes& linear,
                                   std::int64_t rows) {
  if (r.backend == Backend::cpu) return 0;  // on the threads' own stacks and heaps
  const std::int64_t d = linear.columns;
  const auto [given, fused, unit, panel, turn] =
      cuda::plan_sweep(rows, d, linear.group_columns, linear.static_groups);
  const std::int64_t pieces =
      d > panel ? cuda::SplitMultiply::workspace_bytes(turn, panel, d - panel) : 0;
  return f32 * turn * (d + panel + (given || fused ? 0 : unit)) + pieces;
}

// Codes, scales and zeros of a solved linear, on every rank.
std::int64_t solved_bytes(const LinearSizes& linear) {
  return linear.quantized ? linear.elements() + linear.rows * linear.groups() * (f32 + 1) : 0;
}

std::int64_t solved_bytes(const StepSizes& step) {
  std::int64_t bytes = 0;
  for (const LinearSizes& linear : step.linears) bytes += solved_bytes(linear);
  return bytes;
}

// The step's codes and the rows in work: neighbours of equal settings are swept together, on the
// rank where that is most.
std::int64_t sweep_bytes(const RunSizes& r, const StepSizes& step, int ranks) {
  std::vector<LinearSizes> linears;
  std::vector<std::int64_t> rows;
  for (const LinearSizes& linear : step.linears)
    if (linear.quantized) {
      linears.push_back(linear);
      rows.push_back(linear.rows);
    }
  const std::int64_t d = step.columns;
  const std::int64_t most_rows = rows_solved_at_once(d);
  const auto together = [](const LinearSizes& a, const LinearSizes& b) {
    return a.gptq && b.gptq && a.group_columns == b.group_columns &&
           a.static_groups == b.static_groups;
  };
  const auto shares = share_rows(rows, solved_row_block, ranks);
  std::int64_t most = 0;
  for (std::size_t rank = 0; rank < static_cast<std::size_t>(ranks); ++rank) {
    std::int64_t mine = 0;  // of a run of neighbours
    for (std::size_t i = 0; i < linears.size(); ++i) {
      const LinearSizes& linear = linears[i];
      mine = shares[i][rank].count + (i > 0 && together(linears[i - 1], linear) ? mine : 0);
      const std::int64_t at_once = std::min(mine, most_rows);
      const std::int64_t piece = std::min(shares[i][rank].count, most_rows);
      // Scaled and clipped, or moved to their target.
      const std::int64_t given = (r.awq() || step.to_original ? f32 * piece * d : 0) +
                                 (step.to_original ? move_workspace_bytes(r.backend, piece, d) : 0);
      const std::int64_t codes = linear.gptq ? at_once * (d + linear.groups() * (f32 + 1)) +
                                                   sweep_workspace_bytes(r, linear, at_once)
                                             : 0;
      most = std::max(most,
                      f32 * at_once * d + std::max(given, codes));  // in the order of the columns
    }
  }
  return solved_bytes(step) + f32 * std::accumulate(rows.begin(), rows.end(), std::int64_t{0}) +
         3 * f32 * d + most;
}

std::int64_t factor_bytes(const StepSizes& step) {
  const std::int64_t d = step.columns;
  return step.factors * (f32 * d * d + 2 * f32 * d);
}

Use targets(const StepSizes& step) {
  return on_device("targets", step.to_original ? step.factors * target_bytes(step.columns) : 0);
}

// One linear at a time, on the rank that writes it (pack_gptq and its like).
std::int64_t largest_packed(const StepSizes& step) {
  std::int64_t most = 0;
  for (const LinearSizes& linear : step.linears) most = std::max(most, linear.packed_bytes);
  return most;
}

// ---- AWQ.

bool searches_by_hessian(const RunSizes& r, const StepSizes& step) {
  return !r.exact_search || *step.search == Inspected::linears;
}

// Rows of a linear that stages/rescale.cpp and stages/fold.cpp compare at once.
std::int64_t gram_rows(const StepSizes& step) {
  std::int64_t most = 0;
  for (const LinearSizes& linear : step.linears)
    most = std::max(most, linear.quantized ? linear.rows : 0);
  return std::min(gram_row_block, most);
}

// kernels/gram_loss: on CUDA half of H, and differences and products of some weights' rows in
// bfloat16 with a loss of each in float64; on the CPU those of one weight in float32.
std::int64_t gram_bytes(const RunSizes& r, const StepSizes& step, std::int64_t weights) {
  constexpr std::int64_t bf16 = 2;
  const std::int64_t d = step.columns;
  return r.backend == Backend::cpu
             ? 2 * f32 * gram_rows(step) * d
             : bf16 * d * d + (2 * bf16 * d + f64) * gram_rows(step) * weights;
}

// stages/rescale.cpp, beside the step's Hessian.
std::int64_t search_bytes(const RunSizes& r, const LayerSizes& layer, const StepSizes& step) {
  const std::int64_t candidates = f32 * r.grid * step.columns;
  const std::int64_t rounded = r.backend == Backend::cpu ? f32 * gram_rows(step) * step.columns : 0;
  if (searches_by_hessian(r, step))
    return candidates + rounded + gram_bytes(r, step, std::min(r.grid, candidates_at_once));
  const std::int64_t tokens = r.blocking().block_samples * r.seqlen;
  std::int64_t trial = 0;
  for (const StepSizes& group : layer.steps)
    for (const LinearSizes& linear : group.linears)
      if (group.step == step.step && linear.quantized)
        trial += group.groups * linear.elements() * r.compute_element;
  return candidates + trial + tokens * r.widest_input * r.compute_element +
         2 * f32 * tokens * r.hidden;
}

// The linears whose compute copies the search runs.
std::vector<InUse> searched_steps(const RunSizes& r, const LayerSizes& layer,
                                  const StepSizes& step) {
  if (searches_by_hessian(r, step)) return {{&step}};
  std::vector<InUse> steps;
  for (const StepSizes& other : layer.steps)
    if (is_inspected(*step.search, other.part)) steps.push_back({&other, other.groups});
  return steps;
}

// output_error of stages/fold.cpp; unscaled weights take less.
std::int64_t error_bytes(const RunSizes& r, const StepSizes& step) {
  return 2 * f32 * gram_rows(step) * step.columns + gram_bytes(r, step, 1);
}

// ---- Phases.

struct Rank {
  const RunSizes& run;
  const Teams& teams;
  const Places& places;
  Uses always;  // in every phase
};

// copies: of the residual stream.
Phase stream_phase(const Rank& rank, const LayerSizes& layer, std::int64_t blocks,
                   std::int64_t copies) {
  // One block is received, one is computed and one is sent; as many for the next round.
  constexpr std::int64_t slots = 3;
  const RunSizes& r = rank.run;
  const std::int64_t tokens = r.blocking().block_samples * r.seqlen;
  Places whole = rank.places;
  whole.weights_by_step = false;
  return {"blocks from team to team",
          rank.always + activations(r, r.blocking(), blocks, rank.places, {}, copies) +
              Uses{weights(layer, {}, whole),
                   on_device("blocks on their way",
                             tokens * (copies * slots * r.stream_width + r.widest_input) *
                                 r.compute_element)}};
}

void add_layer(const Rank& rank, const LayerSizes& layer, std::int64_t blocks,
               std::vector<Phase>& phases) {
  const RunSizes& r = rank.run;
  const Places& places = rank.places;
  // A second residual stream: the input of a layer that runs again for those after it, or that of
  // the first team's next layer.
  const bool second =
      (r.runs_again() && r.layers > 1) || (streams(r, rank.teams) && r.layers > rank.teams.teams);
  const std::int64_t copies = second ? 2 : 1;
  const auto add = [&](const StepSizes& step, const char* work, const Passes& passes,
                       const std::vector<InUse>& in_use, const Uses& uses) {
    const Uses own =
        r.calibrates() ? activations(r, r.blocking(), blocks, places, passes, copies) : Uses{};
    phases.push_back(
        {step.name + ": " + work, rank.always + own + Uses{weights(layer, in_use, places)} + uses});
  };

  // The cross moments of a step's groups are there together, as its Hessians are then.
  const auto of_step = [&](const StepSizes& step, const auto& bytes) {
    std::int64_t sum = 0;
    for (const StepSizes& other : layer.steps)
      if (other.step == step.step && other.solves()) sum += bytes(other);
    return sum;
  };
  // But for some of the group's own halves.
  const auto crosses = [&](const StepSizes& step, std::int64_t missing_halves) {
    const std::int64_t all = of_step(step, [](const StepSizes& s) { return cross_bytes(s, 2); });
    return on_device("cross moments", all - cross_bytes(step, missing_halves));
  };

  // The way forward: Hessians gather, or one comes and goes.
  Held held;
  const auto held_of = [&](const StepSizes& step, std::int64_t groups) {
    if (!r.calibrates() || !step.solves()) return Held{};
    const std::int64_t mine = hessians_of_rank(r, step, groups, places, rank.teams.ranks_of_team);
    return Held{mine * hessian_bytes(step.columns), mine * host_hessian_bytes(r, step.columns)};
  };
  const auto held_of_all = [&](const StepSizes& step) {
    return Held{of_step(step, [&](const StepSizes& s) { return held_of(s, s.groups).full; }),
                of_step(step, [&](const StepSizes& s) { return held_of(s, s.groups).host; })};
  };
  if (streams(r, rank.teams)) phases.push_back(stream_phase(rank, layer, blocks, copies));
  const bool goes_forward =
      r.calibrates() &&
      !places.inputs_kept;  // else the blocks' way from team to team was all of it
  if (goes_forward && !layer.steps.empty())
    add(layer.steps.front(), "its input", {Access::read, Access::write}, {}, {});
  for (std::size_t i = 0; i < layer.steps.size(); ++i) {
    const StepSizes& step = layer.steps[i];
    if (!r.calibrates()) break;
    // A wave's are there together; all of the layer's where it is solved at once.
    const Held own = held_of(step, 1);
    const Held wave = held_of(step, wave_of(step, places));
    const Held summed = r.at_once() ? held + wave : wave;
    held = r.at_once() ? held + held_of(step, step.groups) : wave;
    if (step.to_original) held = held_of_all(step);
    const Passes read{Access::none, Access::read, step.width, step.to_original};
    if (step.solves())
      add(step, "Hessian", read, {},
          {hessians(step.to_original ? held : summed, 0, places), crosses(step, 2),
           hessian_sum(r, step, places)});
    if (step.to_original && step.solves())
      add(step, "cross moments", read, {},
          {hessians(held, 0, places), crosses(step, 0), cross_sum(r, step, places)});
    if (step.search) {
      const bool by_hessian = searches_by_hessian(r, step);
      const Use kept = hessians(held, by_hessian ? own.full : 0, places);
      const std::vector<InUse> in_use = searched_steps(r, layer, step);
      if (by_hessian) add(step, "means of the input", read, in_use, {kept});
      add(step, "search of factors", by_hessian ? Passes{} : read, in_use,
          {kept, on_device("search of factors", search_bytes(r, layer, step))});
    }
    const bool last_of_step = i + 1 == layer.steps.size() || layer.begins_step(i + 1);
    if (goes_forward && last_of_step)
      add(step, "forward", forward_passes(step), all_of_step(layer, step.step, places),
          {hessians(r.at_once() || step.to_original ? held : Held{}, 0, places), crosses(step, 0)});
  }
  // The way through the solutions. AWQ has the Hessians in work on the device.
  for (const StepSizes& step : layer.steps) {
    if (!step.solves()) continue;
    const Held own = held_of(step, 1);
    const Held wave = held_of(step, wave_of(step, places));
    const std::int64_t dealt = groups_side_by_side(step, places, rank.teams.ranks_of_team);
    const std::int64_t at_once = std::max<std::int64_t>(dealt, 1);
    const int ranks = dealt > 0 ? 1 : rank.teams.ranks_of_team;  // at work on a group
    const Held there = step.to_original ? held_of_all(step) : r.at_once() ? held : wave;
    const Use kept = hessians(there, r.awq() ? at_once * own.full : 0, places);
    const Use factors = on_device("Cholesky factors", at_once * factor_bytes(step));
    // Solved ones that wait for other ranks' use, beside those in work.
    const bool codes_travel = rank.teams.ranks_of_team > 1 && dealt > 0 && r.quantized_propagation;
    const std::int64_t exchanged = static_cast<std::int64_t>(
        groups_exchanged(rank.teams.ranks_of_team, dealt > 0 ? places.solvers : 1));
    const std::int64_t solved =
        codes_travel ? (at_once == 1 ? 0 : groups_in_work(static_cast<int>(dealt)) - dealt) +
                           std::min(exchanged, wave_of(step, places))
                     : 0;
    const Use waiting = on_device(
        "codes that wait", solved * solved_bytes(step) + (solved > 0 ? largest_packed(step) : 0));
    const std::vector<InUse> in_use{{&step, at_once + (solved > 0 ? 1 : 0)}};
    if (step.factors > 0)
      add(step, "factor", {}, in_use,
          {kept, crosses(step, 0), factors, waiting,
           on_device("factor workspace", at_once * factor_work_bytes(r, step, ranks, places))});
    if (step.to_original && step.factors > 0)
      add(step, "target", {}, in_use,
          {kept, crosses(step, 0), factors, targets(step),
           on_device("search of the target", target_search_bytes(r, step))});
    add(step, "codes", {}, in_use,
        {kept, crosses(step, 1), factors, targets(step), waiting,
         on_device("rows in work and codes", at_once * sweep_bytes(r, step, ranks))});
    const Use codes = on_device("codes", at_once * solved_bytes(step));
    add(step, "packing", {}, {{&step}},
        {kept, on_device("codes", solved_bytes(step)),
         on_device("packed tensors", largest_packed(step))});
    if (r.awq())
      add(step, "errors", {}, in_use,
          {kept, codes, waiting, on_device("errors", at_once * error_bytes(r, step))});
    if (r.at_once()) held = held - held_of(step, step.groups);
  }
}

// pipeline/layers/cast.cpp: several workers, each with a linear, or with the linears of a step.
Phase cast_phase(const Rank& rank) {
  constexpr std::int64_t most_workers = 8;
  constexpr std::int64_t most_device_bytes = std::int64_t{4} << 30;
  constexpr std::int64_t piece_bytes = std::int64_t{8} << 20;
  const RunSizes& r = rank.run;
  std::int64_t unit = 1;
  std::int64_t codes = 0;
  for (const LayerSizes& layer : r.layer_kinds)
    for (const StepSizes& step : layer.steps) {
      std::int64_t stored = 0;
      std::int64_t packed = 0;
      for (const LinearSizes& linear : step.linears) {
        if (!linear.quantized) continue;
        stored = (r.casts_steps ? stored : 0) + linear.stored_bytes;
        packed = (r.casts_steps ? packed : 0) + linear.packed_bytes;
        unit = std::max(unit, stored);
        codes = std::max(codes, packed);
      }
    }
  const std::int64_t allowed = rank.places.cast_workers > 0 ? rank.places.cast_workers : INT64_MAX;
  const std::int64_t workers =
      std::min(allowed, std::clamp<std::int64_t>(most_device_bytes / (2 * unit), 1, most_workers));
  return {"quantizing",
          rank.always + Uses{{"weights in work", workers * unit, workers * piece_bytes, 0},
                             {"codes in work", workers * codes, workers * codes, 0}}};
}

// forward_layer of stages/activations.cpp: a layer as a whole, its inputs in a window.
void add_evaluation(const Rank& rank, std::vector<Phase>& phases) {
  constexpr std::int64_t logit_rows = 512;
  const RunSizes& r = rank.run;
  const Blocking blocking = cut_samples(r.evaluate_samples, r.evaluate_seqlen, r.micro_batch);
  const std::int64_t blocks = contiguous_share(blocking.blocks(), 0, rank.teams.ranks()).count;
  const Places places = without_inputs(rank.places);
  const auto kept = [&](const Passes& passes) {
    Uses uses = activations(r, blocking, blocks, places, passes, 1);
    uses[1].host = 0;  // inputs are never written
    return rank.always + uses;
  };
  for (const LayerSizes& layer : r.layer_kinds)
    phases.push_back({"evaluation: layers",
                      kept({Access::update, Access::scratch}) + Uses{weights(layer, {}, places)}});
  const std::int64_t logits = f32 * logit_rows * r.vocab;
  const std::int64_t head =
      r.head_compute_bytes == 0
          ? r.head_bytes + logits
          : std::max(r.head_bytes + r.head_compute_bytes, r.head_compute_bytes + logits);
  phases.push_back(
      {"evaluation: logits", kept({Access::update, Access::none}) +
                                 Uses{{"output head and logits", head, r.head_bytes, 0}}});
}

// What the libraries hold for queues of their own.
std::int64_t of_solvers(const RunSizes& r, const Teams& teams, const Places& places) {
  std::int64_t most = 0;
  for (const LayerSizes& layer : r.layer_kinds)
    for (const StepSizes& step : layer.steps)
      if (step.solves())
        most = std::max(most, groups_side_by_side(step, places, teams.ranks_of_team));
  return most < 2 ? 0 : most * Solvers::library_device_bytes;
}

Uses in_every_phase(const RunSizes& r, const Teams& teams, const Places& places) {
  std::int64_t kept =
      0;  // tensors outside of the layers are copied in the background, divided over the ranks
  for (const std::int64_t bytes : r.kept_host_bytes)
    kept = teams.ranks() == 1 ? kept + bytes : std::max(kept, bytes);
  std::int64_t layer = 0;
  std::int64_t packed = 0;
  for (const LayerSizes& kind : r.layer_kinds) {
    layer = std::max(layer, kind.stored_bytes());
    packed = std::max(packed, kind.packed_bytes());
  }
  return {
      {"libraries",
       r.backend == Backend::cuda ? library_device_bytes + of_solvers(r, teams, places) : 0,
       library_host_bytes, 0},
      on_device("tables and vectors", r.table_bytes + 8 * f32 * r.widest_input),
      on_host("token ids", r.samples * r.seqlen * 4 + r.evaluate_samples * r.evaluate_seqlen * 4),
      on_host("a layer read ahead", r.casts() ? 0 : layer),
      on_host(
          "tensors on the way to the output",
          kept + r.passed_host_bytes + (r.casts() ? 0 : 2 * ceiling(packed, teams.ranks_of_team))),
      {"zeros kept back", 0, ceiling(r.kept_back_bytes, teams.ranks()),
       ceiling(r.kept_back_bytes, teams.ranks())}};
}

}  // namespace

bool sums_go_to_owners(const RunSizes& run, const StepSizes& step, const Places& places,
                       int ranks_of_team) {
  return !run.awq() && groups_side_by_side(step, places, ranks_of_team) > 0;
}

std::int64_t groups_side_by_side(const StepSizes& step, const Places& places, int ranks_of_team) {
  const std::int64_t wave = wave_of(step, places);
  if (wave < 2) return 0;
  return std::min<std::int64_t>(places.solvers, ceiling(wave, ranks_of_team));
}

std::int64_t largest_share(const RunSizes& run, const Teams& teams) {
  return contiguous_share(run.blocking().blocks(), 0, teams.ranks_of_team).count;
}

bool streams(const RunSizes& r, const Teams& teams) {
  return r.calibrates() && !r.quantized_propagation && teams.teams > 1;
}

Use Phase::total() const {
  Use sum{name};
  for (const Use& use : uses) {
    sum.device += use.device;
    sum.host += use.host;
    sum.disk += use.disk;
  }
  return sum;
}

std::vector<Phase> memory_phases(const RunSizes& r, const Teams& teams, std::int64_t blocks,
                                 const Places& places) {
  const Rank rank{r, teams, places, in_every_phase(r, teams, places)};
  std::vector<Phase> phases;
  if (r.evaluate_samples > 0) add_evaluation(rank, phases);
  if (r.casts()) {
    phases.push_back(cast_phase(rank));
    return phases;
  }
  if (r.calibrates())
    phases.push_back(
        {"embedding",
         rank.always +
             activations(r, r.blocking(), blocks, places, {Access::write, Access::none}, 1) +
             Uses{{"embedding table", r.embedding_bytes, r.embedding_bytes, 0},
                  on_device("embeddings of a block",
                            r.blocking().block_samples * r.seqlen *
                                (i32 + r.embedding_columns * r.compute_element))}});
  for (const LayerSizes& layer : r.layer_kinds) add_layer(rank, layer, blocks, phases);
  return phases;
}

}  // namespace qpipe
