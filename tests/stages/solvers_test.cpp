// Groups that are solved side by side come in their order and are what solve() gives of each alone;
// not more are in work than may be, their memory counts, and faults come to who waits.
#include "stages/solvers.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <new>
#include <thread>

#include "tests/kernels/backends.h"
#include "tests/stages/solver_tasks.h"

namespace qpipe {
namespace {

class SolversTest : public testing::TestWithParam<Backend> {
 protected:
  Stream stream{GetParam(), 0};
  Comm comm{stream, {std::chrono::seconds(60), true}};
};

TEST_P(SolversTest, GroupsAreThoseOfEachAloneInTheirOrder) {
  for (const int threads : {1, 2, 5, 40}) expect_those_of_each_alone(23, threads, comm, stream);
}

// Queues beside one another count together; nothing of theirs is left.
TEST_P(SolversTest, MemoryIsThatOfAllQueuesAndComesBack) {
  const auto experts = make_experts(9, stream);
  const std::size_t before = stream.bytes_in_use();
  Solvers solvers(stream, 3);
  {
    SolvedGroups solved(tasks_of(experts, 1), CodesFor::all_ranks, solvers, comm, stream);
    for (std::size_t i = 0; i < experts.size(); ++i) solved.next();
  }
  EXPECT_EQ(stream.bytes_in_use(), before);
  EXPECT_GE(stream.bytes_peak(), before + in * in * sizeof(float));
}

TEST_P(SolversTest, NotMoreThanAllowedAreInWork) {
  constexpr int threads = 3;
  const auto experts = make_experts(30, stream);
  std::atomic<int> at_work = 0;
  std::atomic<int> most = 0;
  std::atomic<int> begun = 0;
  std::vector<GroupToSolve> counted;
  for (const auto& expert : experts) {
    GroupToSolve task = task_of(*expert);
    task.solve = [&, inner = task.solve](Comm& alone, Stream& own) {
      ++begun;
      const int now = ++at_work;
      int seen = most;
      while (now > seen && !most.compare_exchange_weak(seen, now)) {
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      auto linears = inner(alone, own);
      --at_work;
      return linears;
    };
    counted.push_back(std::move(task));
  }
  Solvers solvers(stream, threads);
  {
    SolvedGroups solved(std::move(counted), CodesFor::all_ranks, solvers, comm, stream);
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    EXPECT_LE(begun, groups_in_work(threads));
    for (int i = 0; i < 4; ++i) solved.next();
  }  // the rest is not begun
  EXPECT_LE(most, threads);
  EXPECT_LE(begun, groups_in_work(threads) + 4);
}

TEST_P(SolversTest, FaultsOfDataComeInOrder) {
  for (const int threads : {1, 4}) expect_first_fault(threads, comm, stream);
}

TEST_P(SolversTest, AnyOtherFaultIsThrownWhereItWas) {
  const auto experts = make_experts(4, stream);
  std::vector<GroupToSolve> all = tasks_of(experts, 1);
  all[2].solve = [](Comm&, Stream&) -> std::vector<QuantizedLinear> { throw std::bad_alloc(); };
  Solvers solvers(stream, 2);
  SolvedGroups solved(std::move(all), CodesFor::all_ranks, solvers, comm, stream);
  solved.next();
  solved.next();
  EXPECT_THROW(solved.next(), std::bad_alloc);
}

INSTANTIATE_TEST_SUITE_P(Backends, SolversTest, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace qpipe
