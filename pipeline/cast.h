// Methods without calibration: the weights are read, quantized and stored, nothing else.
#pragma once

#include <functional>

#include "launch/comm.h"
#include "pipeline/checkpoint.h"
#include "pipeline/plan.h"
#include "pipeline/store.h"
#include "stages/architecture.h"

namespace qpipe {

// Quantizes the layers l with l mod ranks = rank, several at a time, and commits each. Without communication. progress(l) is called after
// each of this rank's layers, one call at a time. Memory of up to four workers, each: the largest weight on the host, the weights of one
// step on the device.
void cast_layers(const Checkpoint& checkpoint, const Architecture& architecture, const QuantizePlan& plan, Store& store, const Comm& comm,
                 Stream& stream, const std::function<void(std::int64_t)>& progress);

}  // namespace qpipe
