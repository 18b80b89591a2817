#include "launch/leave.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "kernels/poll_until.h"
#include "launch/comm.h"
#include "launch/mpi_calls.h"
#include "launch/sanitized.h"

namespace qpipe {

namespace {

constexpr int arrival_tag = 31001;
constexpr int verdict_tag = 31002;

bool wait_all(std::vector<MPI_Request>& requests, std::chrono::milliseconds patience) {
  return poll_until(
      [&] {
        int done = 0;
        check(MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done,
                          MPI_STATUSES_IGNORE));
        return done != 0;
      },
      patience);
}

}  // namespace

World world() {
  World result;
  if (!mpi_is_active()) return result;
  MPI_Comm_rank(MPI_COMM_WORLD, &result.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &result.size);
  result.host = host_name();
  return result;
}

bool leave_together(int exit_code, std::chrono::milliseconds patience) {
  const World me = world();
  if (me.size == 1) return true;
  // Static: after a timeout they stay in MPI's hands until the abort.
  static std::vector<int> codes;
  static int code;
  static int verdict;
  code = exit_code;
  verdict = 0;
  std::vector<MPI_Request> requests;
  if (me.rank == 0) {
    codes.assign(me.size, 0);
    for (int rank = 1; rank < me.size; ++rank)
      MPI_Irecv(&codes[rank], 1, MPI_INT, rank, arrival_tag, MPI_COMM_WORLD,
                &requests.emplace_back());
    if (!wait_all(requests, patience)) return false;
    codes[0] = exit_code;
    verdict =
        std::all_of(codes.begin(), codes.end(), [&](int c) { return c == exit_code; }) ? 1 : 0;
    requests.clear();
    for (int rank = 1; rank < me.size; ++rank)
      MPI_Isend(&verdict, 1, MPI_INT, rank, verdict_tag, MPI_COMM_WORLD, &requests.emplace_back());
    return wait_all(requests, patience) && verdict == 1;
  }
  MPI_Isend(&code, 1, MPI_INT, 0, arrival_tag, MPI_COMM_WORLD, &requests.emplace_back());
  MPI_Irecv(&verdict, 1, MPI_INT, 0, verdict_tag, MPI_COMM_WORLD, &requests.emplace_back());
  return wait_all(requests, patience) && verdict == 1;
}

void leave_at_once(int exit_code, std::chrono::seconds timeout) {
  if (mpi_is_active() && !leave_together(exit_code, timeout)) {
    dprintf(STDERR_FILENO,
            "qpipe: %s: the work is done, but another rank did not come to the end within %lld s; "
            "it is ended\n",
            this_rank().c_str(), static_cast<long long>(timeout.count()));
    abort_all_ranks(exit_code);
  }
// A sanitizer reports, and its build writes its counts of lines, only at an orderly exit.
#if !defined(QPIPE_SANITIZED)
  if (mpi_is_active()) check(MPI_Finalize());
  std::fflush(nullptr);
  std::_Exit(exit_code);
#endif
}

}  // namespace qpipe
