// The weights that a finished layer passed on, read back from what it wrote: the same bits, so that
// the activations computed again with them are those of the run that wrote it.
#pragma once

#include "pipeline/journal/finished_layers.h"
#include "pipeline/plan/plan.h"
#include "stages/layer.h"

namespace qpipe {

// Puts into layer.linears[…].weight of every quantized linear what quantized propagation used.
// layer: as the checkpoint has it. Collective: rank (layer mod ranks) reads, the others receive.
// Throws UserError(io) on all ranks.
void restore_propagated_weights(const QuantizePlan& plan, const FinishedLayer& finished,
                                const Journal& journal, const ShardSet& shards, Layer& layer,
                                Comm& comm, Stream& stream);

}  // namespace qpipe
