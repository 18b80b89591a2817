// Which NCCL the program runs with.
#pragma once

#include <string>

namespace qpipe {

// "2.27.3"; "" without CUDA.
std::string nccl_version();

namespace cuda {
std::string nccl_version();
}

}  // namespace qpipe
