// Methods without calibration: the weights are read, quantized and stored, nothing else.
#pragma once

#include <functional>

#include "launch/comm.h"
#include "pipeline/journal/store.h"
#include "pipeline/model/checkpoint.h"
#include "pipeline/output/report.h"
#include "pipeline/plan/plan.h"
#include "stages/architecture.h"

namespace qpipe {

// Quantizes the layers l with l mod ranks = rank and commits each, without communication. Several
// workers take one linear after another (for NVFP4 the linears of one step, which share a scale):
// each reads, quantizes, hashes and writes on its own, so that disk, bus, GPU and CPU work at the
// same time. progress(l) is called when layer l is committed, one call at a time. Stops after the
// begun layers when a signal asks for it, or on store.fault().
//
// Adds the workers' mean seconds to read, solve and write. Returns the device memory that they held
// at most, in bytes: for each worker the weights and the codes of what it works on. There are fewer
// workers where linears are so large that this would pass 4 GiB.
std::size_t cast_layers(const Checkpoint& checkpoint, const Architecture& architecture,
                        const QuantizePlan& plan, Store& store, const Comm& comm,
                        const Stream& stream, const std::function<void(std::int64_t)>& progress,
                        PhaseSeconds& seconds);

// How many workers share `cores` cores when each holds so many bytes on the device: 4 to 8, fewer
// (at least 1) for the sake of memory.
std::size_t cast_workers(int cores, std::size_t bytes_of_a_worker);

}  // namespace qpipe
