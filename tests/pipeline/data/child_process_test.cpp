#include "pipeline/data/child_process.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "launch/signals.h"
#include "pipeline/files/error.h"

namespace qpipe {
namespace {

ChildProgram shell(const std::string& script) {
  ChildProgram program;
  program.arguments = {"/bin/sh", "-c", script};
  program.next_input = [] { return std::string_view(); };
  program.most_output = 1 << 20;
  program.timeout = std::chrono::seconds(60);
  return program;
}

ChildResult run(const ChildProgram& program) { return run_child(program, "advice"); }

TEST(RunChild, OutputErrorsAndStatus) {
  const ChildResult result = run(shell("echo out; echo err >&2; exit 7"));
  EXPECT_EQ(result.end, ChildResult::End::exited);
  EXPECT_EQ(result.status, 7);
  EXPECT_EQ(result.output, "out\n");
  EXPECT_EQ(result.errors, "err\n");
  const ChildResult killed = run(shell("kill -9 $$"));
  EXPECT_EQ(killed.end, ChildResult::End::killed);
  EXPECT_EQ(killed.status, SIGKILL);
}

// More than pipes hold in either direction at once: neither side waits for the other for ever.
TEST(RunChild, LargeInputComesBack) {
  ChildProgram program = shell("cat");
  program.most_output = std::size_t{16} << 20;
  const std::string piece(1 << 20, 'x');
  int pieces = 0;
  program.next_input = [&] { return pieces++ < 12 ? std::string_view(piece) : std::string_view(); };
  const ChildResult result = run(program);
  EXPECT_EQ(result.status, 0);
  EXPECT_EQ(result.output, std::string(std::size_t{12} << 20, 'x'));
}

// Not by SIGPIPE, which would end this process.
TEST(RunChild, InputThatNobodyReadsIsNoFault) {
  ChildProgram program = shell("exec 0<&-; sleep 0.1; exit 3");
  const std::string piece(1 << 20, 'x');
  program.next_input = [&] { return std::string_view(piece); };
  EXPECT_EQ(run(program).status, 3);
}

TEST(RunChild, OutputIsBounded) {
  ChildProgram program = shell("yes");
  program.most_output = 1000;
  EXPECT_EQ(run(program).end, ChildResult::End::too_much_output);
  // Of errors the last ones are kept.
  const ChildResult result = run(shell("yes | head -c 1000000 >&2; echo last >&2"));
  EXPECT_LE(result.errors.size(), 1U << 16);
  EXPECT_TRUE(result.errors.ends_with("last\n"));
}

TEST(RunChild, TimeIsBoundedAndNothingOutlivesIt) {
  const auto begin = std::chrono::steady_clock::now();
  ChildProgram program = shell("trap '' TERM INT; sleep 1000 & echo $!; wait");
  program.timeout = std::chrono::seconds(1);
  const ChildResult result = run(program);
  EXPECT_EQ(result.end, ChildResult::End::timeout);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(30));
  const pid_t grandchild = std::atoi(result.output.c_str());
  ASSERT_GT(grandchild, 0);
  // Killed, and waited for by whoever inherits it.
  const auto runs = [&] {
    std::ifstream status("/proc/" + std::to_string(grandchild) + "/stat");
    std::string id, name, state;
    return static_cast<bool>(status >> id >> name >> state) && state != "Z";
  };
  for (int i = 0; i < 100 && runs(); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_FALSE(runs());
}

TEST(RunChild, SeesOnlyTheEnvironmentItIsGiven) {
  setenv("QPIPE_TEST_SECRET", "x", 1);
  setenv("PYTHONPATH", "/nowhere", 1);
  ChildProgram program = shell("env; pwd");
  program.variables = {"GIVEN=1"};
  const std::string output = run(program).output;
  unsetenv("PYTHONPATH");
  EXPECT_EQ(output.find("SECRET"), std::string::npos) << output;
  EXPECT_EQ(output.find("PYTHONPATH"), std::string::npos) << output;
  EXPECT_NE(output.find("GIVEN=1\n"), std::string::npos) << output;
  EXPECT_TRUE(output.ends_with("\n/\n")) << output;
}

TEST(RunChild, WhatCannotBeStartedIsUnavailable) {
  ChildProgram program = shell("");
  program.arguments[0] = "/nonexistent/program";
  try {
    run(program);
    FAIL();
  } catch (const UserError& error) {
    EXPECT_EQ(error.code, ExitCode::unavailable);
    EXPECT_STREQ(error.what(),
                 "cannot run /nonexistent/program: No such file or directory; advice");
  }
}

// In a process of its own: the count of signals never goes back.
TEST(RunChildDeathTest, AStopSignalEndsIt) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  for (const int signal : {SIGUSR1, SIGTERM, SIGINT})
    EXPECT_EXIT(
        {
          count_stop_signals();
          std::thread sender([&] {
            std::this_thread::sleep_for(std::chrono::milliseconds(200));
            kill(getpid(), signal);
          });
          try {
            run(shell("sleep 1000"));
          } catch (const UserError& error) {
            sender.join();
            std::exit(static_cast<int>(error.code));
          }
          std::exit(1);
        },
        testing::ExitedWithCode(75), "");
}

}  // namespace
}  // namespace qpipe
