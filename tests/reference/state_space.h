// State spaces in double precision, one token after the other, written from their contracts
// (kernels/state_space.h, selective_scan.h). Matrices are contiguous, row-major.
#pragma once

#include "kernels/state_space.h"
#include "tests/reference/forward.h"

namespace qpipe::reference {

struct ScanResult {
  Exact out;
  Exact magnitude;  // the same sums of absolute values: what rounding errors are relative to
};

struct StateSpaceCase {
  StateSpaceLayout layout;
  std::int64_t sequences = 1;
  std::int64_t seqlen = 1;
  Values a_log, dt_bias, d;  // [heads]
  double shortest = 0.0;
  double longest = std::numeric_limits<double>::infinity();
};
ScanResult state_space(const Values& xbc, const Values& dt, const StateSpaceCase& c);

struct SelectiveScanCase {
  std::int64_t channels = 1;
  std::int64_t state = 1;
  std::int64_t sequences = 1;
  std::int64_t seqlen = 1;
  Values a_log;  // [channels, state]
  Values d;      // [channels]
};
// b and c [tokens, state], the others [tokens, channels].
ScanResult selective_scan(const Values& x, const Values& dt, const Values& b, const Values& c,
                          const Values& z, const SelectiveScanCase& s);

}  // namespace qpipe::reference
