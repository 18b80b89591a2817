// Hidden states on their way through the ring of teams, block by block, beside the computation.
//
// propagate = original: the layers of a round, one on each team, do not wait for each other's
// solution. Block b of the residual stream goes through them one after another like through a
// pipeline, while the blocks behind it are on their way. Every team keeps the inputs of its layer's
// steps and works on them afterwards; where they do not fit on the GPU (Places::inputs_kept), it
// keeps the layer's input and runs the layer again. What leaves the round's last team is the first
// team's input of the next round. With quantized propagation the input arrives after the previous
// layer is solved.
#pragma once

#include "launch/ring.h"
#include "stages/activations.h"

namespace qpipe {

struct StreamTask {
  int stage = 0;   // of the round's pipeline: the layer's index in the round
  int stages = 1;  // of a whole round: the teams of the ring
  bool from_previous =
      false;  // the layer's input comes from the stage before; else it is in `activations`
  bool to_next = false;              // its output is needed
  bool keep_inputs = false;          // those of its steps
  BlockStore* next_input = nullptr;  // on the first stage: the next round's input, from the last
                                     // one, is put here; null: there is none
};

// How a rank's time went: busy computing, or waiting for blocks.
struct StreamSeconds {
  double busy = 0.0;
  double wait = 0.0;
};

// Collective over the teams that have a layer in the round. layer: this team's, with original
// weights. Afterwards `activations` holds the inputs of its steps, or its input in
// activations.hidden.
StreamSeconds stream_hidden(const Architecture& architecture, const DecoderTables& tables,
                            Layer& layer, const StreamTask& task, Activations& activations,
                            Ring& ring, Stream& stream);

// All blocks of activations' residual stream to the next team, or from the previous one.
void send_hidden(const Activations& activations, Ring& ring, Stream& stream);
void receive_hidden(Activations& activations, Ring& ring, Stream& stream);

}  // namespace qpipe
