// What computes: the program and the libraries whose arithmetic is in the results.
#pragma once

#include <nlohmann/json.hpp>

#include "kernels/stream.h"

namespace qpipe {

// "version", "program" (a hash of the executable, so that no two builds are taken for one) and, of
// what the backend computes with, "BLAS" (with its kernels) or "CUDA runtime", "CUDA driver",
// "cuBLAS" and "NCCL" → text.
nlohmann::json build_identity(Backend backend);

}  // namespace qpipe
