// CUDA loads a kernel when it is launched first: 0.1 s for each kind of product, out of cuBLAS's
// libraries. Runs every kernel once on zeros, in the background, so that the first layer does not
// wait.
#pragma once

#include "stages/activations.h"

namespace qpipe {

// Runs a layer of this architecture and its Hessians' products on a block of zeros, on a stream of
// its own that takes at most `limit` bytes (0: any number). Returns when all is loaded.
void load_kernels(const Architecture& architecture, const Blocking& blocking, Backend backend,
                  int device, std::size_t limit);

// Memory that it takes meanwhile on CUDA.
std::int64_t load_kernels_bytes(const Architecture& architecture, const Blocking& blocking);

}  // namespace qpipe
