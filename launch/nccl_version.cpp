#include "launch/nccl_version.h"

#include "kernels/stream.h"

namespace qpipe {

std::string nccl_version() {
  if constexpr (has_cuda) return cuda::nccl_version();
  return {};
}

}  // namespace qpipe
