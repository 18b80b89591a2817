#include "pipeline/files/user_path.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/pipeline/file_faults.h"

namespace qpipe {
namespace {

class Home : public testing::Test {
 protected:
  void SetUp() override { setenv("HOME", "/home/ann", 1); }
};

TEST_F(Home, TildeIsTheHomeFolder) {
  EXPECT_EQ(user_path("~", "x"), "/home/ann");
  EXPECT_EQ(user_path("~/", "x"), "/home/ann");
  EXPECT_EQ(user_path("~/a/b", "x"), "/home/ann/a/b");
  EXPECT_EQ(user_path("a/~/b", "x"), "a/~/b");
  EXPECT_EQ(user_path("./~a", "x"), "./~a");
}

TEST_F(Home, WhatIsNotKnownIsRefused) {
  expect_fault([] { user_path("~bob/out", "output.path"); }, ExitCode::config,
               {"output.path", "~bob/out", "./~bob/out"});
  unsetenv("HOME");
  expect_fault([] { user_path("~/out", "output.path"); }, ExitCode::config,
               {"output.path", "HOME"});
}

TEST_F(Home, WhatSaysNothingIsLeftOut) {
  EXPECT_EQ(user_path("", "x"), "");
  EXPECT_EQ(user_path("/", "x"), "/");
  EXPECT_EQ(user_path("//", "x"), "/");
  EXPECT_EQ(user_path(".", "x"), ".");
  EXPECT_EQ(user_path("./", "x"), ".");
  EXPECT_EQ(user_path("out/", "x"), "out");
  EXPECT_EQ(user_path("out/.", "x"), "out");
  EXPECT_EQ(user_path("out//", "x"), "out");
  EXPECT_EQ(user_path("/a//b/./c/", "x"), "/a/b/c");
  EXPECT_EQ(user_path("a/../b", "x"), "a/../b");  // a may be a link
  EXPECT_EQ(user_path("caf\xe9/.", "x"), "caf\xe9");
}

TEST_F(Home, Beside) {
  EXPECT_EQ(beside("out", ".run"), "out.run");
  EXPECT_EQ(beside("out/.//", ".run"), "out.run");
  EXPECT_EQ(beside("~out", ".run"), "./~out.run");
  const std::string here = std::filesystem::current_path();
  EXPECT_EQ(beside(".", ".run"), here + ".run");
  EXPECT_EQ(beside("nowhere/..", ".run"), here + ".run");
}

}  // namespace
}  // namespace qpipe
