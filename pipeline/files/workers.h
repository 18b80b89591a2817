// A few threads for work that waits in a queue, in its order.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <mutex>
#include <thread>
#include <vector>

namespace qpipe {

class Workers {
 public:
  explicit Workers(int threads) : most_(static_cast<std::size_t>(threads)) {}
  ~Workers();  // all that waits is done first
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  // From any thread. A thread is started when none waits for work, as long as there are fewer than
  // `threads`. What the work throws comes with the future.
  std::future<void> run(std::function<void()> work);

 private:
  void work_off();

  std::size_t most_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable more_;
  std::deque<std::packaged_task<void()>> waiting_;
  std::size_t idle_ = 0;
  bool ends_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace qpipe
