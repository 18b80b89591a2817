#include "launch/signals.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>

namespace qpipe {
namespace {

constexpr int all[] = {SIGUSR1, SIGTERM, SIGINT, SIGHUP, SIGXCPU};

// In children: a process does not forget its signals.
TEST(SignalsDeathTest, TwoAreCountedTheThirdEnds) {
  EXPECT_EQ(signals_received(), 0);
  for (const int signal : all) {
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

TEST(SignalsDeathTest, WhatIsHeldIsCountedLater) {
  for (const int signal : all)
    EXPECT_EXIT(
        {
          hold_stop_signals();
          std::raise(signal);
          if (signals_received() != 0) std::exit(9);
          count_stop_signals();
          std::exit(signals_received());
        },
        testing::ExitedWithCode(1), "");
}

TEST(SignalsDeathTest, BlockedAndIgnoredOnesCountExceptForNohup) {
  for (const int signal : all)
    EXPECT_EXIT(
        {
          std::signal(signal, SIG_IGN);
          sigset_t set;
          sigfillset(&set);
          pthread_sigmask(SIG_BLOCK, &set, nullptr);
          count_stop_signals();
          std::raise(signal);
          std::exit(signals_received());
        },
        testing::ExitedWithCode(signal == SIGHUP ? 0 : 1), "");
}

TEST(SignalsDeathTest, ProcessorTimeIsToldOnce) {
  EXPECT_EXIT(
      {
        count_stop_signals();
        for (int i = 0; i < 10; ++i) std::raise(SIGXCPU);
        std::exit(signals_received());
      },
      testing::ExitedWithCode(1), "");
  // The kernel's own, every second after the soft limit.
  EXPECT_EXIT(
      {
        count_stop_signals();
        rlimit limit{};
        limit.rlim_cur = 1;
        limit.rlim_max = 30;
        setrlimit(RLIMIT_CPU, &limit);
        while (signals_received() == 0) {
        }
        std::exit(signals_received());
      },
      testing::ExitedWithCode(1), "");
}

TEST(SignalsDeathTest, EndAgainWhereNothingCanGoOn) {
  for (const int signal : all) {
    EXPECT_EXIT(
        {
          count_stop_signals();
          end_at_stop_signals();
          std::raise(signal);
          std::exit(0);
        },
        testing::KilledBySignal(signal), "");
    EXPECT_EXIT(
        {
          count_stop_signals();
          std::raise(signal);
          end_at_stop_signals();
          std::exit(0);
        },
        testing::KilledBySignal(signal), "");
  }
}

}  // namespace
}  // namespace qpipe
