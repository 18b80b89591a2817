#pragma once

namespace qpipe {

// What the work on a block of activations does to it. scratch: device memory, the contents neither
// needed nor kept. none: no memory.
enum class Access { none, scratch, read, write, update };

}  // namespace qpipe
