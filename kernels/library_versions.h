// Versions of the libraries that do a backend's arithmetic.
#pragma once

#include <map>
#include <string>

#include "kernels/stream.h"

namespace qpipe {

// cpu: "BLAS" → its version, options and the kernels it has chosen. cuda: "CUDA runtime", "CUDA
// driver" and "cuBLAS".
std::map<std::string, std::string> library_versions(Backend backend);

namespace cuda {
std::map<std::string, std::string> library_versions();
}

}  // namespace qpipe
