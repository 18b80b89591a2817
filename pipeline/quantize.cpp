// The method, in order: load, calibrate, solve, forward, store, commit.
#include "pipeline/quantize.h"

#include <fmt/format.h>

#include <memory>
#include <optional>

#include "launch/signals.h"
#include "pipeline/files/agree.h"
#include "pipeline/finish.h"
#include "pipeline/layers/cast.h"
#include "pipeline/model_type.h"
#include "pipeline/prepare.h"
#include "pipeline/quantize_layer.h"
#include "pipeline/rounds.h"

namespace qpipe {

namespace {

Output output_of(const Task& task, bool streams, const Opened& open) {
  if (streams && (task.output_needed || open.activations.keeps_inputs())) return Output::ahead;
  return task.output_needed ? Output::needed : Output::measured;
}

// The loop. quantize_layer calibrates, solves, runs and stores the layer's linears, step by step.
// Returns false where it has to begin again (pipeline/model_type.h).
bool quantize_layers(Run& run, Opened& open) {
  const bool streams = open.schedule.travel() == Travel::stream;
  for (const Round& round : open.schedule.rounds()) {
    const Task task = open.schedule.task(round);
    std::optional<LayerFindings> found;
    if (task.duty != Duty::none) {
      Layer layer = load_layer(run, open, task);
      if (streams) stream_round(run, open, round, task, layer);
      if (task.duty == Duty::quantize) {
        found = quantize_layer(loop_of(run, open), layer, output_of(task, streams, open),
                               open.activations, open.original ? &*open.original : nullptr);
        commit(run, open, task.layer, *found);
      } else if (!streams) {
        run_finished_layer(run, open, layer);
      }
    }
    share_findings(run, open, round, found);
    stop_if_asked(run, open, round);
    if (needs_bfloat16(run)) return false;
    pass_hidden_on(run, open, round);
  }
  return true;
}

// The same where codes follow from the weights alone: nothing orders the layers.
bool cast_layers(Run& run, Opened& open) {
  const std::optional<UserError> fault = fault_of([&] {
    open.bytes_of_workers = cast_layers(
        run.source, run.architecture, run.plan, open.store, run.comm, run.stream,
        [&](std::int64_t layer) { run.progress.update(layer + 1, fmt::format("layer {}", layer)); },
        run.report.seconds);
  });
  check_in(run.comm, fault ? fault : open.store.fault(), 1, "between two layers");
  return true;
}

}  // namespace

RunReport quantize(const Options& options, bool dry_run, std::optional<double> perplexity_before,
                   const std::optional<Places>& places, std::chrono::steady_clock::time_point begin,
                   const std::function<void()>& at_end) {
  count_stop_signals();
  Run run(options, begin);
  choose_places(run, places);
  check_paths(run);
  if (dry_run) return std::move(run.report);

  check_model_type(run);
  read_tokens(run, places);
  Journal journal = open_journal(run);
  if (journal.complete()) {
    take_up_report(run);
    if (at_end) at_end();
    return std::move(run.report);
  }
  run.report.perplexity_before =
      perplexity_before ? perplexity_before : perplexity_of_original(run, journal);
  take_up_model_type(run, journal);
  auto open = std::make_unique<Opened>(run, journal);

  while (!(run.plan.casts() ? cast_layers(run, *open) : quantize_layers(run, *open))) {
    open.reset();
    begin_again_in_bfloat16(run, journal);
    open = std::make_unique<Opened>(run, journal);
  }

  finish_output(run, *open);
  evaluate_output(run, *open);
  finish_report(run, *open);
  if (at_end) {
    run.stream.synchronize();
    at_end();
  }
  return std::move(run.report);
}

}  // namespace qpipe
