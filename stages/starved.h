// Experts to which few or no calibration tokens come. Their Hessians get evenly spaced tokens of
// every block on top: the layer itself runs as it does, and sends them nothing.
#pragma once

#include <vector>

#include "launch/comm.h"
#include "stages/activations.h"

namespace qpipe {

// How many tokens of all blocks that hold about `sampled` tokens (is_sampled) come to each expert
// of the layer that the activations are in. Collective.
std::vector<std::int64_t> tokens_of_experts(const Activations& activations, std::int64_t experts,
                                            std::int64_t sampled, Comm& comm);

// What an expert with `tokens` lacks of `wanted`, of at most all sampled tokens.
std::int64_t missing_tokens(const Blocking& blocking, std::int64_t tokens, std::int64_t wanted,
                            std::int64_t sampled);

// The tokens of a block that such an expert gets: as many of all blocks together as are missing,
// evenly spaced. Empty for a block that is not sampled.
std::vector<std::int32_t> extra_tokens(const Blocking& blocking, std::int64_t block,
                                       std::int64_t missing, std::int64_t sampled);

// Behind the experts' first step, whose linears' weights are on the device: keeps the second step's
// input of every starved expert for its extra tokens in activations.extra_rows, and forgets those
// of the layer before. expert_tokens: wanted of each, 0: none. Collective.
void keep_extra_rows(const Layer& layer, std::int64_t expert_tokens, std::int64_t sampled,
                     Activations& activations, Comm& comm, Stream& stream);

// Those of one block, on the device in `memory`; empty without any.
ConstTensor kept_rows(const Activations& activations, std::int64_t expert, std::size_t local,
                      Buffer& memory, Stream& stream);

}  // namespace qpipe
