// What a run sends and how long it takes, from sizes and the rates of the machine.
#pragma once

#include <string>
#include <vector>

#include "pipeline/memory_phases.h"

namespace qpipe {

// Measured on an H100 80GB HBM3 (docs/performance.md), but for the network, which is that of its link's specification.
struct Rates {
  double forward = 610e12;  // FLOP/s of linears and attention
  double hessian = 415e12;  // FLOP/s, half of XᵀX by symmetry
  double solve = 14e12;     // FLOP/s of factors d³/3 and sweeps n·d², grids included
  double gram = 130e12;     // FLOP/s of AWQ's losses 2·n·d² for each candidate, clipping included
  double offload = 25e9;    // bytes/s between device and host
  double read = 3e9;        // bytes/s of a machine's disk
  double write = 1.3e9;
  double network = 25e9;  // bytes/s of each rank
};

// The one list of the rates: visit(name, rate, unit of one, help).
template <class Tree, class Visit>
void visit_rates(Tree& rates, Visit&& visit) {
  visit("forward", rates.forward, 1e12, "TFLOP/s of linears and attention");
  visit("hessian", rates.hessian, 1e12, "TFLOP/s of Hessians, half by symmetry");
  visit("solve", rates.solve, 1e12, "TFLOP/s of factors and sweeps");
  visit("gram", rates.gram, 1e12, "TFLOP/s of AWQ's losses and clipping");
  visit("offload", rates.offload, 1e9, "GB/s between device and host");
  visit("read", rates.read, 1e9, "GB/s from a machine's disk");
  visit("write", rates.write, 1e9, "GB/s to a machine's disk");
  visit("network", rates.network, 1e9, "GB/s of each rank");
}

// Rates of a card of this many dense bfloat16 TFLOP/s: the H100's computing scaled.
Rates scaled_to(double tflops, Rates rates);

// Of one rank in the whole run; it sends as much as it receives, but for the ends of the ring of teams.
struct Traffic {
  std::string purpose;
  std::int64_t bytes = 0;
};

// One team: NCCL's rings move (D − 1)/D of a broadcast or gathered array and twice that of an all-reduced one through each rank.
std::vector<Traffic> traffic(const RunSizes& run, const Teams& teams);

struct PhaseTime {
  std::string name;
  double seconds = 0.0;
};

struct RunTime {
  std::vector<PhaseTime> phases;  // one after another
  double read = 0.0;              // in the background
  double total = 0.0;
};

// machines: how many share the reading and writing, each with a disk of its own or a part of a common one.
RunTime run_time(const RunSizes& run, const Teams& teams, const Places& places, int machines, const Rates& rates);

}  // namespace qpipe
