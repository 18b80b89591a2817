// What a run decides before any layer is read, and what it opens to work with.
#pragma once

#include <future>
#include <memory>
#include <optional>

#include "launch/clock.h"
#include "launch/comm.h"
#include "launch/device.h"
#include "launch/ring.h"
#include "pipeline/data/dataset.h"
#include "pipeline/journal/journal.h"
#include "pipeline/journal/store.h"
#include "pipeline/layers/layer_source.h"
#include "pipeline/output/folder.h"
#include "pipeline/output/progress.h"
#include "pipeline/output/report.h"
#include "pipeline/plan/run_sizes.h"
#include "pipeline/schedule.h"
#include "stages/activations.h"
#include "stages/solvers.h"

namespace qpipe {

// The checkpoint's, checked; one that is quantized presents its weights
// (pipeline/model/dequantized.h). Throws UserError when it cannot be quantized.
Architecture read_original(Checkpoint& source);

// What is decided and who takes part. The members are made in this order.
struct Run {
  // Collective. Checks and plans everything but memory, takes this rank's device, meets the other
  // ranks and tells the user. begin: what the reported times count from.
  Run(const Options& options, Clock::Time begin);
  void wait_for_kernels();  // if they are being loaded

  const Options& options;
  Clock clock;
  std::future<void> opening;  // of the device, ahead of time
  Checkpoint source;
  Architecture architecture;
  QuantizePlan plan;
  Placement placement;
  Stream stream;
  Comm comm;
  RunSizes sizes;
  Teams teams;
  Progress progress;
  OutputFiles output;  // rank 0
  RunReport report;
  std::int64_t room = 0;          // on the device, beyond what is planned
  std::size_t layers_judged = 0;  // whose activations fit the output's type, or the user knows
  Tokens calibration;
  Tokens evaluation;
  std::future<void> kernels;  // are loaded in the background
};

// Every path that will be written, and every file that will be copied, is looked at. Collective.
// Throws UserError, so that no work is lost to them.
void check_paths(Run& run);

// Where everything lies, so that it fits; `places` as they are, if given. Collective.
void choose_places(Run& run, const std::optional<Places>& places);

// Tokens of calibration and evaluation, on every rank. Collective. Loads kernels beside it.
void read_tokens(Run& run, const std::optional<Places>& places);

// Collective.
Journal open_journal(Run& run);

// The report that a complete run wrote, as far as it can be read.
void take_up_report(Run& run);

// Of the run's JSON report: run.report, or beside the output folder.
std::string report_path(const Options& options);

// none when the options do not ask for it. Collective.
std::optional<double> perplexity_of_original(Run& run, Journal& journal);

// What the layers are quantized with: the output, this rank's team, and the first layer's input.
struct Opened {
  // Collective. `run` and `journal` outlive it.
  Opened(Run& run, Journal& journal);

  Journal& journal;
  ShardSet shards;
  Store store;
  Schedule schedule;
  std::unique_ptr<Comm> part;  // of the ranks, where there are several teams
  Comm& team;
  Solvers solvers;
  std::unique_ptr<Ring> ring;           // where hidden states travel
  std::unique_ptr<LayerSource> layers;  // not for casts, which read for themselves
  Activations activations;
  std::optional<Activations> original;  // of the original model, where its outputs are aimed at
  DecoderTables tables;
  Comm::Traffic traffic_before;      // of the team, on other work
  std::size_t bytes_of_workers = 0;  // on the device, of casts
};

}  // namespace qpipe
