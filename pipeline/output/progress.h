// What rank 0 shows while a run goes on: a bar on a terminal, plain lines otherwise.
#pragma once

#include <cstdint>
#include <string>

#include "launch/clock.h"

namespace qpipe {

class Progress {
 public:
  // mode: auto | bar | plain | none; `total` units of work. Silent unless `active` (rank 0).
  Progress(const std::string& mode, bool active, std::int64_t total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // The work begins: what went before does not count for the time that is left.
  void start() { clock_ = Clock(); }
  // `done` units of `total` are finished; `what` says where the run is ("layer 3/32 down_proj
  // mse 1.2e-04").
  void update(std::int64_t done, const std::string& what);
  // A line that stays.
  void say(const std::string& line);

 private:
  bool bar_ = false;
  bool active_ = false;
  bool drawn_ = false;
  std::int64_t total_ = 1;
  Clock clock_;
};

}  // namespace qpipe
