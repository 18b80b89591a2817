// An embedding that is the head, too: whether it is, and under which of both names it is stored.
#pragma once

#include <optional>

#include "pipeline/model/checkpoint.h"
#include "stages/architecture.h"

namespace qpipe {

// Embedding and head are one tensor, and the checkpoint has it under the head's name alone, as
// transformers loads it: that name, and the embedding's.
std::optional<RenamedTensor> embedding_stored_as_head(const Checkpoint& checkpoint);

// The checkpoint has both, with other values: transformers then runs both, whatever config.json
// says. A checkpoint without weights has equal ones. Reads both.
bool head_differs_from_embedding(const Architecture& architecture, const Checkpoint& checkpoint);

}  // namespace qpipe
