// Long tests deal their cases to the numbers of ranks that they run with: each number meets some,
// and each case some number. With QPIPE_EVERY_CASE=1 in the environment they meet all.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>

namespace qpipe {

inline bool every_case() { return std::getenv("QPIPE_EVERY_CASE") != nullptr; }

// Whether the current case, the n-th of its suite, is one of this number's of 1, ..., most ranks.
inline bool dealt_to(int ranks, int most) {
  const testing::UnitTest& tests = *testing::UnitTest::GetInstance();
  int n = 0;
  while (tests.current_test_suite()->GetTestInfo(n) != tests.current_test_info()) ++n;
  return (n + 1) % most + 1 == ranks;
}

}  // namespace qpipe
