#include "kernels/library_versions.h"

#include <cblas.h>

namespace qpipe {

std::map<std::string, std::string> library_versions(Backend backend) {
  if constexpr (has_cuda)
    if (backend == Backend::cuda) return cuda::library_versions();
  return {{"BLAS", std::string(openblas_get_config()) + " " + openblas_get_corename()}};
}

}  // namespace qpipe
