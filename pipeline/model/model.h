// config.json and the table of families → the generic decoder's options (stages/architecture.h).
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "pipeline/model/checkpoint.h"
#include "stages/architecture.h"

namespace qpipe {

// Reads config.json as older and newer transformers write it. `where` ("DIR/config.json") goes into
// messages. Throws UserError: unknown model_type (lists what is supported), missing or
// contradictory keys, options this build cannot compute.
Architecture read_architecture(const nlohmann::json& config, const std::string& where);

// The same with the names that the checkpoint has: the decoder may lie behind another beginning
// ("model.language_model.", "language_model.model.", none). Where head and embedding are stored
// with other values they are not tied, whatever config.json says: so transformers has it.
Architecture read_architecture(const Checkpoint& checkpoint);

// That case: config.json says that they are tied, and they are not.
bool is_untied(const Architecture& architecture, const nlohmann::json& config);

// The model_types of the table, sorted.
std::vector<std::string> supported_families();

// Throws UserError when sequences of this length need other rotary positions than the architecture
// has (dynamic scaling beyond its context).
void check_sequence_length(const Architecture& architecture, std::int64_t seqlen);

// The tensors that an unquantized checkpoint of the architecture has, all of one type.
std::vector<TensorInfo> expected_tensors(const Architecture& architecture, DType dtype);

// Checks that every tensor the architecture needs is in the checkpoint with the right shape and a
// float dtype (packed linears of a quantized checkpoint: the parts of its format and no others,
// pipeline/model/read_back.h). What the decoder doesn't need is no fault
// (pipeline/model/passed_through.h). Throws UserError naming the first tensor that is missing, of
// the wrong shape, or a part too many.
void check_tensors(const Architecture& architecture, const Checkpoint& checkpoint);

// The same, one line for each tensor, or linear, at fault; at most `most`. Throws only for a
// quantization that cannot be read here.
std::vector<std::string> tensor_faults(const Architecture& architecture,
                                       const Checkpoint& checkpoint, std::size_t most);

}  // namespace qpipe
