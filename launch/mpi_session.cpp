#include <sysexits.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <thread>

#include "kernels/system_fault.h"
#include "launch/comm.h"
#include "launch/launcher.h"
#include "launch/mpi_calls.h"

namespace qpipe {

namespace {

// Watches MPI_Init from a thread of its own.
class StartWatch {
 public:
  StartWatch(std::chrono::seconds timeout, std::chrono::seconds patience)
      : thread_([=, this] { watch(timeout, patience); }) {}
  ~StartWatch() {
    {
      const std::lock_guard lock(mutex_);
      started_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  StartWatch(const StartWatch&) = delete;
  StartWatch& operator=(const StartWatch&) = delete;

 private:
  void watch(std::chrono::seconds timeout, std::chrono::seconds patience) {
    std::unique_lock lock(mutex_);
    const auto started = [this] { return started_; };
    if (changed_.wait_for(lock, std::min(patience, timeout), started)) return;
    const Launcher launcher = launcher_in_environment();
    const std::string who = "rank " + std::to_string(launcher.rank) + " on host " + host_name();
    dprintf(STDERR_FILENO,
            "qpipe: %s has waited %lld s in MPI_Init for the other ranks; it ends after %lld s\n",
            who.c_str(), static_cast<long long>(std::min(patience, timeout).count()),
            static_cast<long long>(timeout.count()));
    if (changed_.wait_for(lock, timeout - std::min(patience, timeout), started)) return;
    dprintf(STDERR_FILENO,
            "qpipe: error: %s: MPI_Init was not finished after %lld s: another rank did not start, "
            "or %s is left over from another program (unset it)\n",
            who.c_str(), static_cast<long long>(timeout.count()), launcher.variable.c_str());
    _exit(EX_OSERR);
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool started_ = false;
  std::thread thread_;
};

}  // namespace

MpiSession::MpiSession(int& argc, char**& argv, std::chrono::seconds timeout,
                       std::chrono::seconds patience) {
  // A loaded machine takes seconds to start its ranks, however short the limit of a collective is.
  timeout = std::max(timeout, std::chrono::seconds(30));
  int provided = MPI_THREAD_SINGLE;
  {
    const StartWatch watch(timeout, patience);
    check(MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided));
  }
  check(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
  if (provided < MPI_THREAD_SERIALIZED)
    throw SystemFault(
        "this MPI library does not allow calls from several threads (MPI_THREAD_SERIALIZED)");
}

MpiSession::~MpiSession() {
  // MPI_Finalize waits for all ranks. One that fails while the others are inside a collective would
  // wait forever, so it leaves without; mpirun then ends the others.
  if (mpi_is_active() && std::uncaught_exceptions() == 0) MPI_Finalize();
}

void abort_all_ranks(int exit_code) {
  std::fflush(nullptr);
  if (mpi_is_active()) {
    int size = 0;
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (size > 1) MPI_Abort(MPI_COMM_WORLD, exit_code);
    MPI_Finalize();  // nobody to abort: end without MPI_Abort's banner
  }
  std::_Exit(exit_code);
}

}  // namespace qpipe
