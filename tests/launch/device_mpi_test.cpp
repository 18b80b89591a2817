#include <gtest/gtest.h>

#include <stdexcept>

#include "launch/comm.h"
#include "launch/device.h"

namespace qpipe {
namespace {

class Place : public testing::Test {
 protected:
  Stream stream{Backend::cpu, 0};
  Comm comm{stream, {std::chrono::seconds(60), false}};
};

TEST_F(Place, RanksOfOneHost) {
  const Placement placement = place_rank("cpu", false);
  EXPECT_EQ(placement.backend, Backend::cpu);
  EXPECT_FALSE(placement.host.empty());
  // ctest starts all ranks on this machine.
  EXPECT_EQ(placement.local_ranks, comm.size());
  EXPECT_EQ(placement.local_rank, comm.rank());
}

TEST_F(Place, AllRanksAgreeOnTheBackend) {
  const Placement placement = place_rank("auto", true);
  EXPECT_EQ(placement.backend, cuda_device_count() > 0 ? Backend::cuda : Backend::cpu);
  for (const double other : comm.all_gather({placement.backend == Backend::cuda ? 1.0 : 0.0}))
    EXPECT_EQ(other, placement.backend == Backend::cuda ? 1.0 : 0.0);
  if (placement.backend == Backend::cuda) {
    EXPECT_EQ(placement.device, placement.local_rank % cuda_device_count());
  }
}

// All ranks leave with the same message, so that none is left in a collective.
TEST_F(Place, RefusalsAreTheSameOnAllRanks) {
  if (cuda_device_count() >= comm.size()) GTEST_SKIP() << "needs fewer GPUs than ranks";
  std::string message;
  try {
    place_rank("cuda", false);
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  EXPECT_FALSE(message.empty());
  EXPECT_EQ(comm.broadcast(message, 0), message);
  if (cuda_device_count() > 0)
    EXPECT_NE(message.find("parallel.share_gpu = true"), std::string::npos) << message;
  else
    EXPECT_NE(message.find("CUDA"), std::string::npos) << message;
}

TEST_F(Place, UnknownBackend) { EXPECT_THROW(place_rank("gpu", false), std::invalid_argument); }

}  // namespace
}  // namespace qpipe
