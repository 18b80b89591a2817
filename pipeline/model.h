// config.json and the table of families → the generic decoder's options (stages/architecture.h).
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "pipeline/checkpoint.h"
#include "stages/architecture.h"

namespace qpipe {

// Reads config.json as older and newer transformers write it. `where` ("DIR/config.json") goes into messages.
// Throws UserError: unknown model_type (lists what is supported), missing or contradictory keys, options this build cannot compute.
Architecture read_architecture(const nlohmann::json& config, const std::string& where);

// The model_types of the table, sorted.
std::vector<std::string> supported_families();

// Throws UserError when sequences of this length need other rotary positions than the architecture has (dynamic scaling beyond its
// context).
void check_sequence_length(const Architecture& architecture, std::int64_t seqlen);

// Checks that every tensor the architecture needs is in the checkpoint with the right shape and a float dtype (packed linears of a GPTQ
// checkpoint: qweight, qzeros, scales, g_idx of consistent shapes), and that no weight of a decoder layer is left over.
// Throws UserError naming the first tensor that is missing, of the wrong shape, or unknown.
void check_tensors(const Architecture& architecture, const Checkpoint& checkpoint);

// A linear of a checkpoint is packed when NAME.qweight is there instead of NAME.weight.
bool is_packed(const Checkpoint& checkpoint, const std::string& module);

}  // namespace qpipe
