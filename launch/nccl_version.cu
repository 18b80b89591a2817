#include <nccl.h>

#include <stdexcept>

#include "launch/nccl_version.h"

namespace qpipe::cuda {

// NCCL counts 22703 for 2.27.3.
std::string nccl_version() {
  int version = 0;
  if (ncclGetVersion(&version) != ncclSuccess) throw std::runtime_error("ncclGetVersion failed");
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

}  // namespace qpipe::cuda
