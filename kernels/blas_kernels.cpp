#include "kernels/blas_kernels.h"

#include <cblas.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string_view>
#include <system_error>

namespace qpipe {

namespace {

constexpr const char* variable = "OPENBLAS_CORETYPE";

// The newest of OpenBLAS's names whose instructions the processor has; null for an old processor,
// or another kind.
const char* kernels_of_processor() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return "SkylakeX";
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "Haswell";
#endif
  return nullptr;
}

}  // namespace

void restart_with_better_blas_kernels(char** argv) {
  const char* better = kernels_of_processor();
  if (better == nullptr || std::getenv(variable) != nullptr ||
      std::string_view(openblas_get_corename()) != "Prescott")
    return;
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return;
  setenv(variable, better, 1);
  execv(program.c_str(), argv);
}

}  // namespace qpipe
