// What a run sends and how long it takes, from sizes and the rates of the machine.
#pragma once

#include <string>
#include <vector>

#include "pipeline/plan/memory_phases.h"

namespace qpipe {

// Measured on H100 80GB HBM3 (docs/performance.md), but for the network between machines, which is
// that of its link's specification.
struct Rates {
  double forward = 640e12;  // FLOP/s of linears and attention
  double hessian = 425e12;  // FLOP/s, half of XᵀX by symmetry
  double factor = 125e12;   // FLOP/s of d³/3
  double factor_column =
      0.51e-6;           // seconds of each column besides: they are factored one after another
  double sweep = 54e12;  // FLOP/s of n·d², grids included
  double sweep_column =
      1.7e-6;             // seconds of each column besides, as their codes wait for one another
  double target = 20e12;  // FLOP/s of 4·n·d²: weights moved to the original's target (on an H200)
  double gram = 130e12;   // FLOP/s of AWQ's losses 2·n·d² for each candidate, clipping included
  double offload = 25e9;   // bytes/s between device and host
  double page_lock = 7e9;  // bytes/s at the start, of host memory that the device copies from
  double read =
      5.3e9;  // bytes/s of a machine's files, in the page cache; the host's disk gave 1.2e9
  double write = 1.8e9;    // bytes/s to a machine's disk
  double network = 120e9;  // bytes/s of each rank to those of its machine, late ranks included
  double fabric = 25e9;    // bytes/s of each rank to other machines
  double start = 0.55;     // seconds until the first layer
};

// The one list of the rates: visit(name, rate, unit of one, help).
template <class Tree, class Visit>
void visit_rates(Tree& rates, Visit&& visit) {
  visit("forward", rates.forward, 1e12, "TFLOP/s of linears and attention");
  visit("hessian", rates.hessian, 1e12, "TFLOP/s of Hessians, half by symmetry");
  visit("factor", rates.factor, 1e12, "TFLOP/s of factors");
  visit("factor-column", rates.factor_column, 1e-6, "us of each of their columns besides");
  visit("sweep", rates.sweep, 1e12, "TFLOP/s of sweeps");
  visit("target", rates.target, 1e12, "TFLOP/s of weights that are moved to the original's target");
  visit("sweep-column", rates.sweep_column, 1e-6, "us of each of their columns besides");
  visit("gram", rates.gram, 1e12, "TFLOP/s of AWQ's losses and clipping");
  visit("offload", rates.offload, 1e9, "GB/s between device and host");
  visit("page-lock", rates.page_lock, 1e9, "GB/s of host memory that is locked for the device");
  visit("read", rates.read, 1e9, "GB/s from a machine's disk");
  visit("write", rates.write, 1e9, "GB/s to a machine's disk");
  visit("network", rates.network, 1e9, "GB/s of each rank inside of a machine");
  visit("fabric", rates.fabric, 1e9, "GB/s of each rank between machines");
  visit("start", rates.start, 1.0, "s until the first layer");
}

// Rates of a card of this many dense bfloat16 TFLOP/s: the H100's computing scaled.
Rates scaled_to(double tflops, Rates rates);

// Of one rank in the whole run; it sends as much as it receives, but for the ends of the ring of
// teams.
struct Traffic {
  std::string purpose;
  std::int64_t bytes = 0;
};

// One team: NCCL's rings move (D − 1)/D of a broadcast or gathered array and twice that of an
// all-reduced one through each rank.
std::vector<Traffic> traffic(const RunSizes& run, const Teams& teams, const Places& places);

struct PhaseTime {
  std::string name;
  double seconds = 0.0;
};

struct RunTime {
  std::vector<PhaseTime> phases;  // one after another
  double read = 0.0;              // in the background
  double write = 0.0;             // in the background, but for what the last layers leave to write
  double total = 0.0;
};

// What divides among ranks: the forward pass and the Hessians by blocks of samples in a team,
// layers by rounds of one for each team. What does not: factors of few columns
// (stages/factor_team.h), the columns of a sweep and of a factor, the start. With original
// propagation a round begins with a forward pass through all of its layers as a pipeline of B
// blocks, which takes B + 2 (P − 1) blocks' time; where the inputs of a layer's steps cannot be
// kept, each layer runs once more. The last round may leave teams without a layer. machines: how
// many share the reading and writing, each with a disk of its own or a part of a common one.
RunTime run_time(const RunSizes& run, const Teams& teams, const Places& places, int machines,
                 const Rates& rates);

}  // namespace qpipe
