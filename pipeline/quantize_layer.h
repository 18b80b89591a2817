// One layer of the loop: its Hessians, factors, codes and output, by the method of the plan.
#pragma once

#include <optional>
#include <string>

#include "launch/clock.h"
#include "launch/comm.h"
#include "pipeline/journal/store.h"
#include "pipeline/output/progress.h"
#include "pipeline/output/report.h"
#include "pipeline/plan/plan.h"
#include "stages/activations.h"
#include "stages/solvers.h"

namespace qpipe {

// What a team works on its layers with.
struct Loop {
  const Options& options;
  const Architecture& architecture;
  const DecoderTables& tables;
  const QuantizePlan& plan;
  Comm& comm;  // the ranks of the team
  Stream& stream;
  Solvers& solvers;
  Store& store;
  Progress& progress;
  PhaseSeconds& seconds;
};

// Between two pieces of work: all ranks stop together when one has a fault, or when one got so many
// signals. Collective.
void check_in(Comm& comm, const std::optional<UserError>& fault, int signals,
              const std::string& where);

// The layer with the weights that it has now. activations.scratch is in use.
void run_layer(const Loop& loop, Layer& layer, Activations& activations);

// A layer's output.
enum class Output {
  needed,    // by the next layer
  measured,  // for its magnitude alone
  ahead,     // has been computed and measured already
};

// Solves the layer's linears and stores them. activations: the layer's input, on return the input
// of the next layer, if it is needed (unchanged when the method does not calibrate). original: the
// same of the original model, where its outputs are aimed at (QuantizePlan::original_target).
LayerFindings quantize_layer(const Loop& loop, Layer& layer, Output output,
                             Activations& activations, Activations* original);

}  // namespace qpipe
