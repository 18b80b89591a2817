#include "launch/signals.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>

namespace qpipe {

namespace {

constexpr std::array stop_signals{SIGUSR1, SIGTERM, SIGINT, SIGHUP, SIGXCPU};

std::atomic<int> received{0};
std::atomic<int> last{0};
std::atomic<bool> out_of_time{false};
static_assert(std::atomic<int>::is_always_lock_free);  // as a signal handler needs it

extern "C" void count_signal(int signal) {
  // The kernel repeats it every second.
  if (signal == SIGXCPU && out_of_time.exchange(true)) return;
  last = signal;
  if (received.fetch_add(1) < 2) return;
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

sigset_t set_of_stop_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : stop_signals) sigaddset(&set, signal);
  return set;
}

}  // namespace

void hold_stop_signals() {
  const sigset_t set = set_of_stop_signals();
  syscall(SYS_rt_sigprocmask, SIG_BLOCK, &set, nullptr, _NSIG / 8);
}

void count_stop_signals() {
  for (const int signal : stop_signals) {
    struct sigaction before {};
    sigaction(signal, nullptr, &before);
    if (signal == SIGHUP && before.sa_handler == SIG_IGN) continue;
    struct sigaction action {};
    action.sa_handler = count_signal;
    action.sa_flags = SA_RESTART;
    sigaction(signal, &action, nullptr);
  }
  const sigset_t set = set_of_stop_signals();
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

void end_at_stop_signals() {
  for (const int signal : stop_signals) {
    struct sigaction now {};
    sigaction(signal, nullptr, &now);
    if (now.sa_handler == count_signal) std::signal(signal, SIG_DFL);
  }
  if (received.load() > 0) std::raise(last.load());
}

int signals_received() { return received.load(); }

}  // namespace qpipe
