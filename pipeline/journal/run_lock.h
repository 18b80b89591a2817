// One run at a time in a folder, on one host or several.
#pragma once

#include <atomic>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <thread>

namespace qpipe {

// Holds the lock from construction to destruction: flock() against runs that the kernel can see,
// and a line "HOST PID COUNT" that is written anew every 5 s against runs on other hosts where
// flock() does not reach. A run that was killed leaves a line that stands still: on another host
// this costs a wait of 5 s.
class RunLock {
 public:
  // Throws UserError(cannot_create): another run has the lock (names host and process), the file
  // cannot be made, or something else has its name. whose: whether a text that is no lock's is
  // somebody else's file, or can only be a damaged lock.
  enum class Name { of_anybody, of_qpipe };
  explicit RunLock(const std::filesystem::path& path, Name whose = Name::of_anybody);
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  void beat();

  std::filesystem::path path_;
  int descriptor_ = -1;
  std::mutex mutex_;
  std::condition_variable stopping_;
  bool stop_ = false;
  std::thread heart_;
};

}  // namespace qpipe
