// Groups that are dealt to ranks come to all of them, in their order, as solve() gives each alone;
// and so do faults of the data.
#include <gtest/gtest.h>

#include <chrono>

#include "tests/kernels/backends.h"
#include "tests/stages/solver_tasks.h"

namespace qpipe {
namespace {

// Each rank on a GPU of its own, as far as there are.
class SolversOfRanks : public testing::TestWithParam<Backend> {
 protected:
  int device() { return GetParam() == Backend::cuda ? world.rank() % cuda_device_count() : 0; }

  Stream host{Backend::cpu, 0};
  Comm world{host, {std::chrono::seconds(60), true}};
  Stream stream{GetParam(), device()};
  Comm comm{stream, {std::chrono::seconds(60), true}};
};

TEST_P(SolversOfRanks, EveryRankHasAllGroups) {
  for (const int groups : {2, 17})
    for (const int threads : {1, 3}) expect_those_of_each_alone(groups, threads, comm, stream);
}

TEST_P(SolversOfRanks, FaultsOfDataAreEveryRanks) {
  for (const int threads : {1, 4}) expect_first_fault(threads, comm, stream);
}

INSTANTIATE_TEST_SUITE_P(Backends, SolversOfRanks, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace qpipe
