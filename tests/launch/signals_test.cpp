#include "launch/signals.h"

#include <gtest/gtest.h>

#include <csignal>

namespace qpipe {
namespace {

// In children: a process does not forget its signals.
TEST(SignalsDeathTest, TwoAreCountedTheThirdEnds) {
  EXPECT_EQ(signals_received(), 0);
  for (const int signal : {SIGUSR1, SIGTERM, SIGINT}) {
    EXPECT_EXIT(
        {
          count_stop_signals();
          std::raise(signal);
          std::raise(SIGUSR1);
          std::exit(signals_received());
        },
        testing::ExitedWithCode(2), "");
    EXPECT_EXIT(
        {
          count_stop_signals();
          std::raise(SIGTERM);
          std::raise(SIGTERM);
          std::raise(signal);
        },
        testing::KilledBySignal(signal), "");
  }
}

}  // namespace
}  // namespace qpipe
