#include "launch/signals.h"

#include <atomic>
#include <csignal>
#include <initializer_list>

namespace qpipe {

namespace {

std::atomic<int> received{0};
static_assert(std::atomic<int>::is_always_lock_free);  // as a signal handler needs it

extern "C" void count_signal(int signal) {
  if (received.fetch_add(1) < 2) return;
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

}  // namespace

void count_stop_signals() {
  for (const int signal : {SIGUSR1, SIGTERM, SIGINT}) {
    struct sigaction action {};
    action.sa_handler = count_signal;
    action.sa_flags = SA_RESTART;
    sigaction(signal, &action, nullptr);
  }
}

int signals_received() { return received.load(); }

}  // namespace qpipe
