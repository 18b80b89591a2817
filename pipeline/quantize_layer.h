// One layer of the loop: its Hessians, factors, codes and output, by the method of the plan.
#pragma once

#include <chrono>
#include <optional>
#include <string>

#include "launch/comm.h"
#include "pipeline/journal/journal.h"
#include "pipeline/journal/store.h"
#include "pipeline/output/progress.h"
#include "pipeline/output/report.h"
#include "pipeline/plan/plan.h"
#include "stages/activations.h"

namespace qpipe {

// Adds the seconds between construction and destruction to `total`, counting the device's work.
class Timed {
 public:
  Timed(double& total, Comm& comm, Stream& stream)
      : total_(total), comm_(comm), stream_(stream), start_(std::chrono::steady_clock::now()) {}
  ~Timed() noexcept(false) {
    if (std::uncaught_exceptions() == 0) comm_.wait(stream_);
    total_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  double& total_;
  Comm& comm_;
  Stream& stream_;
  std::chrono::steady_clock::time_point start_;
};

// What the loop carries from layer to layer.
struct Loop {
  const Options& options;
  const Architecture& architecture;
  const QuantizePlan& plan;
  Comm& comm;  // the ranks that work on one layer: a team
  Stream& stream;
  const ShardSet& shards;
  const Journal& journal;
  Store& store;
  Progress& progress;
  RunReport& report;
  bool zero_of_zero = false;
  bool output_needed = true;     // of the current layer, by the layer after it
  nlohmann::json factors = {};   // of the current layer, where the layers after it need them
  BlockStore saved_hidden = {};  // the current layer's input, where the layer runs twice
};

// Between two pieces of work: all ranks stop together when one has a fault, or when one got so many
// signals. Collective.
void check_in(Comm& comm, const std::optional<UserError>& fault, int signals,
              const std::string& where);

// The layer with the weights that it has now.
void run_layer(Loop& loop, const DecoderTables& tables, Layer& layer, Activations& activations);

// Solves the layer's linears and stores them. activations: the layer's input, on return the input
// of the next layer (unchanged when the method does not calibrate).
void quantize_layer(Loop& loop, const DecoderTables& tables, Layer& layer,
                    Activations& activations);

}  // namespace qpipe
