#include "launch/device.h"

#include <gtest/gtest.h>
#include <omp.h>

namespace qpipe {
namespace {

TEST(GpuConflict, NamesTheFirstPairAndWhatToDo) {
  EXPECT_EQ(gpu_conflict({}, {}), "");
  EXPECT_EQ(gpu_conflict({"a", "b", "c"}, {"n1", "n1", "n2"}), "");
  const std::string message =
      gpu_conflict({"a", "b", "c", "b", "a"}, {"n1", "n2", "n1", "n2", "n1"});
  EXPECT_NE(message.find("ranks 1 and 3 "), std::string::npos) << message;
  EXPECT_NE(message.find("host n2"), std::string::npos) << message;
  EXPECT_NE(message.find("parallel.share_gpu = true"), std::string::npos) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos);
}

TEST(CpuThreads, DividesTheLauncherCores) {
  EXPECT_EQ(cpu_threads(64, 64, 4), 16);  // not bound
  EXPECT_EQ(cpu_threads(32, 64, 4), 16);  // bound to a socket that another rank shares
  EXPECT_EQ(cpu_threads(1, 64, 4), 1);    // bound to a core
  EXPECT_EQ(cpu_threads(8, 8, 3), 2);     // a container of 8 cores
  EXPECT_EQ(cpu_threads(4, 64, 1), 4);    // taskset
  EXPECT_EQ(cpu_threads(2, 2, 4), 1);     // more ranks than cores
}

TEST(CpuThreads, ExplicitValueWins) {
  const int before = omp_get_max_threads();
  set_cpu_threads(3, 2);
  EXPECT_EQ(omp_get_max_threads(), 3);
  omp_set_num_threads(before);
}

TEST(CpuThreads, EnvironmentWinsOverCores) {
  const int before = omp_get_max_threads();
  setenv("OMP_NUM_THREADS", "7", 0);
  omp_set_num_threads(7);  // as OpenMP has read it at the start of the process
  set_cpu_threads(0, 2);
  EXPECT_EQ(omp_get_max_threads(), 7);
  unsetenv("OMP_NUM_THREADS");
  set_cpu_threads(0, 1 << 20);
  EXPECT_EQ(omp_get_max_threads(), 1);
  omp_set_num_threads(before);
}

}  // namespace
}  // namespace qpipe
