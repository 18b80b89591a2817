#include "pipeline/memory_phases.h"

#include <algorithm>

#include "kernels/gptq_sweep.h"
#include "launch/share.h"

namespace qpipe {

namespace {

constexpr std::int64_t f32 = 4;
constexpr std::int64_t f64 = 8;
constexpr std::int64_t i64 = 8;

using Uses = std::vector<Use>;

Uses operator+(Uses a, const Uses& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

Use on_device(const std::string& purpose, std::int64_t bytes) { return {purpose, bytes, 0, 0}; }
Use on_host(const std::string& purpose, std::int64_t bytes) { return {purpose, 0, bytes, 0}; }

// Blocks begin at 256-byte boundaries (stages/activations.cpp).
std::int64_t padded(std::int64_t bytes) { return (bytes + 255) / 256 * 256; }

std::int64_t ceiling(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// All of a rank's blocks where they are kept; elsewhere than on the device with a window of blocks there.
Use blocks_at(const std::string& purpose, Place place, std::int64_t blocks, std::int64_t block_bytes, std::int64_t copies = 1) {
  const std::int64_t all = blocks * block_bytes * copies;
  const std::int64_t window = std::min(blocks, window_blocks) * block_bytes;
  switch (place) {
    case Place::device: return {purpose, all, 0, 0};
    case Place::host: return {purpose, window, all, 0};
    case Place::disk: return {purpose, window, window, all};
  }
  return {};
}

// hidden, input, scratch (stages/activations.cpp). copies: 2 where the layer's input is kept for a second pass.
Uses activations(const RunSizes& r, const Blocking& blocking, std::int64_t blocks, const Places& places, std::int64_t copies) {
  const std::int64_t tokens = blocking.block_samples * blocking.seqlen;
  const auto block = [&](std::int64_t width) { return padded(tokens * width * r.compute_element); };
  return {blocks_at("hidden states", places.hidden, blocks, block(r.hidden), copies),
          blocks_at("step inputs", places.input, blocks, block(r.widest_input)),
          on_device("forward scratch of a block", tokens * r.scratch_width * r.compute_element)};
}

// A layer on the device, or with weights_by_step the linears of `in_use` alone (pipeline/layer_source.cpp).
Use weights(const LayerSizes& layer, const std::vector<const StepSizes*>& in_use, const Places& places) {
  const std::int64_t all = layer.stored_bytes() + layer.compute_bytes();
  if (!places.weights_by_step) return on_device("layer's weights", all + layer.small_compute_bytes);
  std::int64_t used = layer.small_bytes + layer.small_compute_bytes;
  for (const StepSizes* step : in_use)
    for (const LinearSizes& linear : step->linears) used += linear.stored_bytes + linear.compute_bytes;
  return {"layer's weights", used, all, 0};
}

// ---- Hessians (stages/calibrate.cpp, kernels/hessian).

std::int64_t hessian_bytes(std::int64_t d) { return f32 * d * d; }

// While the step's is summed: the 64-bit sum, of a panel of columns or of all, and the float32 product of a block of tokens, which is H's
// own memory when the sum is whole.
Use hessian_sum(std::int64_t d, const Places& places) {
  const std::int64_t panel = places.hessian_panel_columns;
  const std::int64_t vectors = 2 * f32 * d;  // units and maxima
  if (panel == 0 || panel >= d) {
    const std::int64_t scratch = places.hessian_on_host ? hessian_bytes(d) : 0;
    return on_device("64-bit sum of the Hessian", i64 * d * d + scratch + vectors);
  }
  return on_device("64-bit sum of the Hessian", (i64 + f32) * d * panel + vectors);
}

// Finished ones, and whether the one in use lies on the device as a whole.
Use hessians(std::int64_t bytes, std::int64_t in_use_bytes, const Places& places) {
  if (!places.hessian_on_host) return on_device("Hessians", bytes);
  return {"Hessians", in_use_bytes, bytes, 0};
}

// ---- GPTQ (stages/solve.cpp).

// Beside h, n and the pivots (kernels/factor.cpp, factor.cu).
std::int64_t factor_workspace_bytes(const RunSizes& r, std::int64_t d) {
  if (r.backend == Backend::cpu) return f64 * d * d;
  constexpr std::int64_t columns = 512;  // of potrf's panel
  return f32 * d * columns;
}

// kernels/gptq_sweep.cu: w − q of the rows of a turn, the values of a panel, and a unit whose grids are found apart.
std::int64_t sweep_workspace_bytes(const RunSizes& r, const LinearSizes& linear, std::int64_t rows) {
  if (r.backend == Backend::cpu) return 0;  // on the threads' own stacks and heaps
  constexpr std::int64_t panel_columns = 512;
  constexpr std::int64_t error_floats = std::int64_t{1} << 27;
  const std::int64_t d = linear.columns;
  const std::int64_t group = linear.group_columns;
  const bool given = linear.static_groups || group == d;
  const bool fused = !given && (group == 32 || group == 64 || group == 128);
  const std::int64_t unit = given ? 128 : std::min(d, grid_unit(group));
  const std::int64_t panel = std::min(d, unit > panel_columns ? unit : panel_columns / unit * unit);
  const std::int64_t turn = std::min(rows, std::max<std::int64_t>(2048, error_floats / d / 128 * 128));
  return f32 * turn * (d + panel + (given || fused ? 0 : unit));
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

// The most that codes so far and the rows in work take, over the step's linears in order, on the rank where that is most.
std::int64_t sweep_bytes(const RunSizes& r, const StepSizes& step, int ranks) {
  constexpr std::int64_t row_block = 32;
  std::vector<std::int64_t> rows;
  for (const LinearSizes& linear : step.linears)
    if (linear.quantized) rows.push_back(linear.rows);
  const auto shares = share_rows(rows, row_block, ranks);
  std::int64_t most = 0;
  std::int64_t solved = 0;
  std::size_t i = 0;
  for (const LinearSizes& linear : step.linears) {
    if (!linear.quantized) continue;
    std::int64_t mine = 0;
    for (const RowRange& share : shares[i]) mine = std::max(mine, share.count);
    ++i;
    solved += solved_bytes(linear);
    const std::int64_t d = linear.columns;
    const std::int64_t values = f32 * mine * d + f32 * linear.rows + 3 * f32 * d;  // w, the rows' losses, orders
    const std::int64_t codes = linear.gptq ? mine * d + sweep_workspace_bytes(r, linear, mine) : 0;
    most = std::max(most, solved + values + codes);
  }
  return most;
}

std::int64_t factor_bytes(const StepSizes& step) {
  const std::int64_t d = step.columns;
  return step.factors * (f32 * d * d + 2 * f32 * d);
}

// One linear at a time, on the rank that writes it (pack_gptq and its like).
std::int64_t largest_packed(const StepSizes& step) {
  std::int64_t most = 0;
  for (const LinearSizes& linear : step.linears) most = std::max(most, linear.packed_bytes);
  return most;
}

// ---- AWQ.

// stages/rescale.cpp, beside the step's Hessian.
std::int64_t search_bytes(const RunSizes& r, const StepSizes& step) {
  const std::int64_t candidates = f32 * r.grid * step.columns;
  if (!r.exact_search || *step.search == Inspected::linears) {
    constexpr std::int64_t row_block = 512;
    return candidates + 3 * f32 * row_block * step.columns;
  }
  const std::int64_t tokens = r.blocking().block_samples * r.seqlen;
  std::int64_t trial = 0;
  for (const LinearSizes& linear : step.linears) trial += linear.quantized ? linear.compute_bytes : 0;
  return candidates + trial + tokens * r.widest_input * r.compute_element + 2 * f32 * tokens * r.hidden;
}

// The linears whose compute copies the search runs.
std::vector<const StepSizes*> searched_steps(const LayerSizes& layer, const StepSizes& step) {
  const auto runs = [&](const StepSizes& other) {
    const bool attention = other.kind == StepKind::attention_in || other.kind == StepKind::attention_out;
    switch (*step.search) {
      case Inspected::attention: return attention;
      case Inspected::mlp: return !attention;
      case Inspected::attention_and_mlp: return true;
      case Inspected::linears: return other.kind == step.kind;
    }
    return false;
  };
  std::vector<const StepSizes*> steps;
  for (const StepSizes& other : layer.steps)
    if (runs(other)) steps.push_back(&other);
  return steps;
}

// The scaled weights of the step's linears in float32 (stages/fold.cpp).
std::int64_t scaled_bytes(const StepSizes& step) {
  std::int64_t bytes = 0;
  for (const LinearSizes& linear : step.linears) bytes += linear.quantized ? f32 * linear.elements() : 0;
  return bytes;
}

// output_error of stages/fold.cpp, or the unscaled weight of one linear.
std::int64_t error_bytes(const RunSizes& r, const StepSizes& step) {
  constexpr std::int64_t row_block = 512;
  std::int64_t unscaled = 0;
  for (const LinearSizes& linear : step.linears) unscaled = std::max(unscaled, linear.quantized ? f32 * linear.elements() : 0);
  return std::max(4 * f32 * row_block * step.columns, r.quantized_propagation ? unscaled : 0);
}

// ---- Phases.

struct Rank {
  const RunSizes& run;
  const Layout& layout;
  const Places& places;
  Uses always;  // in every phase
};

void add_layer(const Rank& rank, const LayerSizes& layer, const Uses& blocks, std::vector<Phase>& phases) {
  const RunSizes& r = rank.run;
  const Places& places = rank.places;
  const int team = rank.layout.team_ranks();
  const auto add = [&](const StepSizes& step, const char* work, const std::vector<const StepSizes*>& in_use, const Uses& uses) {
    phases.push_back({step.name + ": " + work, rank.always + blocks + Uses{weights(layer, in_use, places)} + uses});
  };

  // The way forward: Hessians gather, or one comes and goes.
  std::int64_t held = 0;
  for (const StepSizes& step : layer.steps) {
    const std::int64_t own = r.calibrated && step.solves() ? hessian_bytes(step.columns) : 0;
    if (r.calibrated) {
      held = (r.at_once ? held : 0) + own;
      if (own > 0) add(step, "Hessian", {&step}, {hessians(held, 0, places), hessian_sum(step.columns, places)});
      if (step.search)
        add(step, "search of factors", searched_steps(layer, step),
            {hessians(held, own, places), on_device("search of factors", search_bytes(r, step))});
      add(step, "forward", {&step}, {hessians(r.at_once ? held : 0, 0, places)});
    }
  }
  // The way through the solutions.
  for (const StepSizes& step : layer.steps) {
    if (!step.solves()) continue;
    const std::int64_t own = r.calibrated ? hessian_bytes(step.columns) : 0;
    const std::int64_t kept = r.at_once ? held : own;
    const Uses scaled = r.awq ? Uses{on_device("scaled weights", scaled_bytes(step))} : Uses{};
    const Use factors = on_device("Cholesky factors", factor_bytes(step));
    if (step.factors > 0)
      add(step, "factor", {&step},
          scaled + Uses{hessians(kept, 0, places), factors, on_device("factor workspace", factor_workspace_bytes(r, step.columns))});
    add(step, "codes", {&step},
        scaled + Uses{hessians(kept, 0, places), factors, on_device("rows in work and codes", sweep_bytes(r, step, team))});
    add(step, "packing", {&step},
        scaled +
            Uses{hessians(kept, 0, places), on_device("codes", solved_bytes(step)), on_device("packed tensors", largest_packed(step))});
    if (r.awq)
      add(step, "clipping and errors", {&step},
          scaled + Uses{hessians(kept, own, places), on_device("codes", solved_bytes(step)), on_device("errors", error_bytes(r, step))});
    if (r.at_once) held -= own;
  }
}

// pipeline/cast.cpp: several workers, each with the linears of a step.
Phase cast_phase(const Rank& rank) {
  constexpr std::int64_t most_workers = 4;
  const RunSizes& r = rank.run;
  const std::int64_t workers = std::min(most_workers, ceiling(r.layers, rank.layout.ranks));
  std::int64_t group = 0;
  std::int64_t largest = 0;
  std::int64_t codes = 0;
  for (const LayerSizes& layer : r.layer_kinds)
    for (const StepSizes& step : layer.steps) {
      std::int64_t bytes = 0;
      for (const LinearSizes& linear : step.linears) {
        if (!linear.quantized) continue;
        bytes += linear.stored_bytes;
        largest = std::max(largest, linear.stored_bytes);
        codes = std::max(codes, linear.packed_bytes);
      }
      group = std::max(group, bytes);
    }
  return {"quantizing", rank.always + Uses{{"weights in work", workers * group, workers * largest, 0}, on_device("codes", codes)}};
}

void add_evaluation(const Rank& rank, std::vector<Phase>& phases) {
  constexpr std::int64_t logit_rows = 512;
  const RunSizes& r = rank.run;
  const Blocking blocking = cut_samples(r.evaluate_samples, r.evaluate_seqlen, r.micro_batch);
  const Uses blocks = activations(r, blocking, contiguous_share(blocking.blocks(), 0, rank.layout.ranks).count, rank.places, 1);
  for (const LayerSizes& layer : r.layer_kinds)
    for (const StepSizes& step : layer.steps)
      phases.push_back({"evaluation: " + step.name, rank.always + blocks + Uses{weights(layer, {&step}, rank.places)}});
  const std::int64_t logits = f32 * logit_rows * r.vocab;
  const std::int64_t head =
      r.head_compute_bytes == 0 ? r.head_bytes + logits : std::max(r.head_bytes + r.head_compute_bytes, r.head_compute_bytes + logits);
  phases.push_back({"evaluation: logits", rank.always + blocks + Uses{{"output head and logits", head, r.head_bytes, 0}}});
}

Uses in_every_phase(const RunSizes& r, const Layout& layout) {
  std::int64_t kept = 0;  // tensors outside of the layers are copied in the background, divided over the ranks
  for (const std::int64_t bytes : r.kept_host_bytes) kept = layout.ranks == 1 ? kept + bytes : std::max(kept, bytes);
  std::int64_t layer = 0;
  std::int64_t packed = 0;
  for (const LayerSizes& kind : r.layer_kinds) {
    layer = std::max(layer, kind.stored_bytes());
    packed = std::max(packed, kind.packed_bytes());
  }
  return {{"libraries", r.backend == Backend::cuda ? library_device_bytes : 0, library_host_bytes, 0},
          on_device("tables", r.table_bytes),
          on_host("token ids", r.samples * r.seqlen * 4 + r.evaluate_samples * r.evaluate_seqlen * 4),
          on_host("a layer read ahead", r.casts ? 0 : layer),
          on_host("tensors on the way to the output", kept + 2 * ceiling(packed, layout.team_ranks())),
          {"zeros kept back", 0, ceiling(r.kept_back_bytes, layout.ranks), ceiling(r.kept_back_bytes, layout.ranks)}};
}

}  // namespace

std::int64_t largest_share(const RunSizes& run, const Layout& layout) {
  return contiguous_share(run.blocking().blocks(), 0, layout.team_ranks()).count;
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

std::vector<Phase> memory_phases(const RunSizes& r, const Layout& layout, std::int64_t blocks, const Places& places) {
  const Rank rank{r, layout, places, in_every_phase(r, layout)};
  std::vector<Phase> phases;
  if (r.evaluate_samples > 0) add_evaluation(rank, phases);
  if (r.casts) {
    phases.push_back(cast_phase(rank));
    return phases;
  }
  if (r.calibrated)
    phases.push_back({"embedding", rank.always + activations(r, r.blocking(), blocks, places, 1) +
                                       Uses{{"embedding table", r.embedding_bytes, r.embedding_bytes, 0}}});
  const Uses own = r.calibrated ? activations(r, r.blocking(), blocks, places, r.runs_again ? 2 : 1) : Uses{};
  for (const LayerSizes& layer : r.layer_kinds) add_layer(rank, layer, own, phases);
  return phases;
}

}  // namespace qpipe
