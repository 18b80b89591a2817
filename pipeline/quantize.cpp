// The method, in order: load, calibrate, solve, forward, store, commit.
#include "pipeline/quantize.h"

#include <fmt/format.h>

#include <optional>

#include "launch/signals.h"
#include "pipeline/finish.h"
#include "pipeline/layers/cast.h"
#include "pipeline/prepare.h"
#include "pipeline/quantize_layer.h"
#include "pipeline/rounds.h"

namespace qpipe {

namespace {

// The loop. quantize_layer calibrates, solves, runs and stores the layer's linears, step by step.
void quantize_layers(Run& run, Opened& open) {
  const bool streams = open.schedule.travel() == Travel::stream;
  for (const Round& round : open.schedule.rounds()) {
    const Task task = open.schedule.task(round);
    std::optional<LayerFindings> found;
    if (task.duty != Duty::none) {
      Layer layer = load_layer(run, open, task);
      if (streams) stream_round(run, open, round, task, layer);
      if (task.duty == Duty::quantize) {
        found = quantize_layer(loop_of(run, open), layer, task.output_needed && !streams,
                               open.activations);
        commit(run, open, task.layer, *found);
      } else if (!streams) {
        run_finished_layer(run, open, layer);
      }
    }
    share_findings(run, open, round, found);
    stop_if_asked(run, open, round);
    pass_hidden_on(run, open, round);
  }
}

// The same where codes follow from the weights alone: nothing orders the layers.
void cast_layers(Run& run, Opened& open) {
  open.bytes_of_workers = cast_layers(
      run.source, run.architecture, run.plan, open.store, run.comm, run.stream,
      [&](std::int64_t layer) { run.progress.update(layer + 1, fmt::format("layer {}", layer)); },
      run.report.seconds);
  check_in(run.comm, open.store.fault(), 1, "between two layers");
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

  read_tokens(run, places);
  Journal journal = open_journal(run);
  if (journal.complete()) {
    take_up_report(run);
    if (at_end) at_end();
    return std::move(run.report);
  }
  run.report.perplexity_before =
      perplexity_before ? perplexity_before : perplexity_of_original(run, journal);
  Opened open(run, journal);

  run.plan.casts() ? cast_layers(run, open) : quantize_layers(run, open);

  finish_output(run, open);
  evaluate_output(run, open);
  finish_report(run, open);
  if (at_end) {
    run.stream.synchronize();
    at_end();
  }
  return std::move(run.report);
}

}  // namespace qpipe
