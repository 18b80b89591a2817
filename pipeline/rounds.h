// A round of the loop: what is around the quantization of its layers.
#pragma once

#include <optional>

#include "pipeline/prepare.h"
#include "pipeline/quantize_layer.h"

namespace qpipe {

Loop loop_of(Run& run, Opened& open);

// This team's layer.
Layer load_layer(Run& run, Opened& open, const Task& task);

// Travel::stream: brings the layer its input, and the layers after it theirs.
void stream_round(Run& run, Opened& open, const Round& round, const Task& task, Layer& layer);

// The output of a layer that an earlier run has finished, for the layers that are still to do.
void run_finished_layer(Run& run, Opened& open, Layer& layer);

void commit(Run& run, Opened& open, std::int64_t layer, const LayerFindings& found);

// What the layers of a round found, into every rank's report, in the layers' order. mine: of this
// team's layer, if it was quantized now. Collective.
void share_findings(Run& run, Opened& open, const Round& round,
                    const std::optional<LayerFindings>& mine);

// All ranks stop here together, if one has a fault, a signal asks for it, or the calibration
// failed.
void stop_if_asked(Run& run, Opened& open, const Round& round);

// The round's output becomes the next round's input.
void pass_hidden_on(Run& run, Opened& open, const Round& round);

}  // namespace qpipe
