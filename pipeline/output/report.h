// What a run measured, as JSON for programs; the card for people is model_card.h.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "launch/comm.h"
#include "pipeline/plan/plan.h"
#include "stages/fold.h"

namespace qpipe {

struct ModuleReport {
  std::string name;
  int bits = 0;
  std::int64_t group_size = 0;
  double mean_squared_error = 0.0;
  double damp = 0.0;
  bool fell_back = false;
  bool skipped = false;
  std::int64_t tokens = -1;  // that an expert was calibrated with; −1 for what reads every token
  double agreement = -1.0;   // QuantizedLinear's
};

// AWQ's factors for the linears of one input.
struct ScaleReport {
  std::string source;  // the norm or linear that takes them out of the input
  std::vector<std::string> linears;
  double ratio = 0.0;
  double loss = 0.0;
};

// What the quantization of a layer found.
struct LayerFindings {
  std::vector<ModuleReport> modules;
  std::vector<ScaleReport> scales;
  bool zero_of_zero = false;           // some zero of an asymmetric grid is 0
  double largest_activation = 0.0;     // |x| of the layer's output and of what its linears read
  std::vector<LinearFactors> factors;  // AWQ's of each linear, where the layers after it need them
};

void to_json(nlohmann::json& json, const LayerFindings& findings);
void from_json(const nlohmann::json& json, LayerFindings& findings);

// Seconds of wall clock on one rank. Where several workers do different phases at once
// (pipeline/layers/cast.h), their mean.
struct PhaseSeconds {
  double start = 0.0;  // until the first layer: checks, devices, folders, calibration tokens
  double read = 0.0;
  double hessian = 0.0;
  double search = 0.0;
  double solve = 0.0;
  double forward = 0.0;
  double write = 0.0;
  double commit = 0.0;  // of `write`: until layers and their records are on the disk
  double wait = 0.0;    // for other ranks: hidden states on their way, and the end of a round
  double evaluate = 0.0;
  double total = 0.0;
};

// What rank 0 exchanged with others while it worked on layers.
struct Communication {
  std::int64_t team_bytes = 0;  // weights, Hessians, factors and codes in its team
  double team_seconds = 0.0;
  std::int64_t hidden_bytes = 0;  // hidden states sent to and received from other teams
};

struct RunReport {
  std::string version;
  nlohmann::json builds = nlohmann::json::array();  // that worked on it, one after the other
  std::string model;
  std::string method;
  std::string format;
  std::string dtype;  // of what is not quantized
  nlohmann::json options;
  std::string calibration;  // what the calibration tokens were
  std::string calibration_hash;
  std::int64_t calibration_tokens = 0;
  std::string evaluation;
  std::optional<double> perplexity_before;
  std::optional<double> perplexity_after;
  double bits_per_weight = 0.0;  // of the quantized linears, scales and zeros included
  std::int64_t bytes = 0;        // of all tensors written
  std::vector<ModuleReport> modules;
  std::vector<ScaleReport> scales;
  std::vector<double> largest_activations;     // of each layer that was calibrated, in order
  bool zero_of_zero = false;                   // as in LayerFindings, of any layer
  PhaseSeconds seconds;                        // of rank 0
  std::vector<PhaseSeconds> seconds_of_ranks;  // of each
  Communication communication;
  std::int64_t device_peak_bytes =
      0;  // taken through Buffer, on the rank that took most; the CPU backend counts, too
  int ranks = 1;
  std::string device;
};

void take_up(const LayerFindings& findings, RunReport& report);

// Collective; empty but on rank 0.
std::vector<PhaseSeconds> gather_seconds(const PhaseSeconds& seconds, Comm& comm);

nlohmann::json report_json(const RunReport& report);

// The original's perplexity in percent of the quantized model's, where both were measured.
std::optional<double> recovery_percent(const RunReport& report);

}  // namespace qpipe
