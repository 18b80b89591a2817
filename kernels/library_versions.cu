#include <cublas_v2.h>
#include <cuda_runtime.h>

#include "kernels/cuda_handles.h"
#include "kernels/library_versions.h"

namespace qpipe::cuda {

namespace {

// CUDA counts 13010 for 13.1.
std::string dotted(int version) {
  return std::to_string(version / 1000).append(".").append(std::to_string(version % 1000 / 10));
}

std::string cublas_version() {
  std::string text;
  for (const libraryPropertyType part : {MAJOR_VERSION, MINOR_VERSION, PATCH_LEVEL}) {
    int value = 0;
    check(cublasGetProperty(part, &value));
    if (!text.empty()) text += '.';
    text += std::to_string(value);
  }
  return text;
}

}  // namespace

std::map<std::string, std::string> library_versions() {
  int runtime = 0;
  int driver = 0;
  check(cudaRuntimeGetVersion(&runtime));
  check(cudaDriverGetVersion(&driver));
  return {{"CUDA runtime", dotted(runtime)},
          {"CUDA driver", dotted(driver)},
          {"cuBLAS", cublas_version()}};
}

}  // namespace qpipe::cuda
