#include "pipeline/files/workers.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <set>
#include <stdexcept>

namespace qpipe {
namespace {

TEST(Workers, DoAllWorkWithAtMostSoManyThreads) {
  std::atomic<int> at_work = 0;
  std::atomic<int> most = 0;
  std::atomic<int> done = 0;
  std::vector<std::future<void>> futures;
  Workers workers(3);
  for (int i = 0; i < 100; ++i)
    futures.push_back(workers.run([&] {
      const int now = ++at_work;
      int highest = most;
      while (now > highest && !most.compare_exchange_weak(highest, now)) {
      }
      std::this_thread::sleep_for(std::chrono::microseconds(200));
      --at_work;
      ++done;
    }));
  for (std::future<void>& future : futures) future.get();
  EXPECT_EQ(done, 100);
  EXPECT_LE(most, 3);
  EXPECT_GE(most, 2);
}

TEST(Workers, BeginInTheOrderOfTheQueue) {
  std::vector<int> order;
  {
    Workers one(1);
    for (int i = 0; i < 50; ++i) one.run([&order, i] { order.push_back(i); });
  }  // its end waits for the work
  ASSERT_EQ(order.size(), 50u);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(order[static_cast<std::size_t>(i)], i);
}

TEST(Workers, FaultsComeWithTheFuture) {
  Workers workers(2);
  std::future<void> fault = workers.run([] { throw std::domain_error("a fault"); });
  std::future<void> fine = workers.run([] {});
  EXPECT_THROW(fault.get(), std::domain_error);
  EXPECT_NO_THROW(fine.get());
}

}  // namespace
}  // namespace qpipe
