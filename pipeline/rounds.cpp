#include "pipeline/rounds.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "launch/signals.h"
#include "pipeline/files/error.h"
#include "pipeline/layers/fast_forward.h"
#include "pipeline/layers/hidden_stream.h"

namespace qpipe {

namespace {

void show_progress(Run& run, std::int64_t layer, const LayerFindings& found, bool earlier) {
  std::string text = fmt::format("layer {}", layer);
  if (earlier) {
    text += "  finished by an earlier run";
  } else if (!found.modules.empty()) {
    const ModuleReport& last = found.modules.back();
    text += fmt::format("  {} mse {:.3e}", last.name.substr(last.name.rfind('.') + 1),
                        last.mean_squared_error);
  }
  run.progress.update(layer + 1, text);
}

// Rounding to nearest in more than 2% of the modules is a calibration that failed.
void check_fallbacks(const Run& run) {
  if (run.options.quantize.allow_fallback) return;
  const auto fell_back = std::count_if(run.report.modules.begin(), run.report.modules.end(),
                                       [](const auto& m) { return m.fell_back; });
  const std::size_t modules = run.plan.modules.size() - run.plan.skipped().size();
  if (static_cast<std::size_t>(fell_back) * 50 > modules)
    throw UserError(ExitCode::data,
                    fmt::format("the Hessians of {} of {} modules are not positive definite at any "
                                "damping, so that they are rounded to "
                                "nearest; use more calibration samples, or set "
                                "quantize.allow_fallback = true and run again to go on",
                                fell_back, modules));
}

}  // namespace

Loop loop_of(Run& run, Opened& open) {
  return {run.options, run.architecture, open.tables, run.plan,     open.team,
          run.stream,  open.solvers,     open.store,  run.progress, run.report.seconds};
}

Layer load_layer(Run& run, Opened& open, const Task& task) {
  Timed timed(run.report.seconds.read, open.team, run.stream);
  return open.layers->load_layer(task.layer, run.plan.places.weights_by_step);
}

void stream_round(Run& run, Opened& open, const Round& round, const Task& task, Layer& layer) {
  const Schedule& schedule = open.schedule;
  StreamTask stream;
  stream.from_previous = layer.index > round.first;
  stream.to_next = task.output_needed;
  stream.keep_inputs = open.activations.keeps_inputs() && task.duty == Duty::quantize;
  stream.stage = static_cast<int>(layer.index - round.first);
  stream.stages = schedule.teams.teams;
  if (!stream.from_previous && round.first + schedule.teams.teams < schedule.end()) {
    make_spare(open.activations, run.plan.places, run.stream);
    stream.next_input = &open.activations.spare;
  }
  const StreamSeconds seconds = stream_hidden(run.architecture, open.tables, layer, stream,
                                              open.activations, *open.ring, run.stream);
  run.report.seconds.forward += seconds.busy;
  run.report.seconds.wait += seconds.wait;
}

void run_finished_layer(Run& run, Opened& open, Layer& layer) {
  if (open.original) {
    std::swap(open.original->scratch, open.activations.scratch);
    run_layer(loop_of(run, open), layer, *open.original);
    std::swap(open.original->scratch, open.activations.scratch);
  }
  if (run.plan.quantized_propagation)
    restore_propagated_weights(run.plan, open.store.finished().at(layer.index), open.journal,
                               open.shards, layer, open.team, run.stream);
  run_layer(loop_of(run, open), layer, open.activations);
}

void commit(Run& run, Opened& open, std::int64_t layer, const LayerFindings& found) {
  Timed writing(run.report.seconds.write, open.team, run.stream);
  Timed committing(run.report.seconds.commit);
  open.store.commit(layer, open.team.rank(), open.team.size(), found);
}

void share_findings(Run& run, Opened& open, const Round& round,
                    const std::optional<LayerFindings>& mine) {
  Timed waiting(run.report.seconds.wait);
  std::string text;
  if (mine && open.team.root()) {
    LayerFindings told = *mine;
    told.factors.clear();  // for a run that goes on later, from the journal
    text = nlohmann::json(told).dump();
  }
  const std::vector<std::string> by_rank = run.comm.all_gather_texts(text);
  for (std::int64_t layer = round.first; layer < round.first + round.count; ++layer) {
    const bool earlier = open.schedule.is_finished(layer);
    const int speaker = run.teams.rank_at(run.teams.team_of_layer(layer), 0);
    const LayerFindings found =
        earlier ? open.store.finished().at(layer).findings()
                : nlohmann::json::parse(by_rank.at(static_cast<std::size_t>(speaker)))
                      .get<LayerFindings>();
    take_up(found, run.report);
    show_progress(run, layer, found, earlier);
  }
}

void stop_if_asked(Run& run, Opened& open, const Round& round) {
  const std::int64_t done = round.first + round.count;
  // A first signal only counts once a new layer is committed, so that repeated stops still make
  // progress.
  bool new_work = false;
  for (std::int64_t layer = round.first; layer < done; ++layer)
    new_work = new_work || !open.schedule.is_finished(layer);
  if (signals_received() > 0) open.store.wait_for_commits();
  check_in(run.comm, open.store.fault(), new_work ? 1 : 2,
           fmt::format("after layer {} of {}", done, run.architecture.layers));
  check_fallbacks(run);
}

void pass_hidden_on(Run& run, Opened& open, const Round& round) {
  const Schedule& schedule = open.schedule;
  const std::int64_t next = round.first + round.count;
  if (next >= schedule.end()) return;
  switch (schedule.travel()) {
    case Travel::stay: return;
    case Travel::stream:
      if (schedule.works_on(next)) std::swap(open.activations.hidden, open.activations.spare);
      return;
    case Travel::hand_over:
      Timed waiting(run.report.seconds.wait);
      if (schedule.works_on(round.first)) {
        send_hidden(open.activations, *open.ring, run.stream);
        if (open.original) send_hidden(*open.original, *open.ring, run.stream);
      } else if (schedule.works_on(next)) {
        receive_hidden(open.activations, *open.ring, run.stream);
        if (open.original) receive_hidden(*open.original, *open.ring, run.stream);
      }
  }
}

}  // namespace qpipe
