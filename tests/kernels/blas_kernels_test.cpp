// OpenBLAS runs with kernels that fit the processor.
#include "kernels/blas_kernels.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

extern "C" char* openblas_get_corename();  // cblas.h

namespace qpipe {
namespace {

TEST(BlasKernels, AreThoseAskedFor) {
  if (const char* asked = std::getenv("OPENBLAS_CORETYPE")) {
    EXPECT_STRCASEEQ(openblas_get_corename(), asked);
  }
}

TEST(BlasKernels, OldOnesOnANewProcessorAreReplaced) {
  const bool old = std::string(openblas_get_corename()) == "Prescott" &&
                   std::getenv("OPENBLAS_CORETYPE") == nullptr;
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    std::string program = "blas_kernels_test";
    std::string only = "--gtest_filter=BlasKernels.AreThoseAskedFor";
    char* argv[] = {program.data(), only.data(), nullptr};
    restart_with_better_blas_kernels(argv);
    _exit(77);  // nothing to mend
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
#if defined(__x86_64__)
  EXPECT_EQ(WEXITSTATUS(status), old && __builtin_cpu_supports("avx2") ? 0 : 77);
#else
  EXPECT_EQ(WEXITSTATUS(status), 77);
#endif
}

}  // namespace
}  // namespace qpipe
