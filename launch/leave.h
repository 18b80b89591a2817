// How the ranks end after a fault: together, when all of them met the same one.
#pragma once

#include <chrono>
#include <string>

namespace qpipe {

struct World {
  int rank = 0;
  int size = 1;
  std::string host;  // "" without MPI
};

// Of MPI_COMM_WORLD; a single rank when MPI is not initialised.
World world();

// True on every rank when all ranks call this with the same exit code within `patience` of each
// other; each may then finalise MPI and return. False when some rank is elsewhere or has another
// code: the others would wait for this one, so abort_all_ranks must follow. Uses messages of its
// own tag only, so it does not meddle with collectives that other ranks are in.
bool leave_together(int exit_code, std::chrono::milliseconds patience);

// The last call of a process whose work is done, on the disk and told: finalises MPI, flushes the
// streams, and ends without destructors. Gigabytes of page-locked memory are not unlocked one piece
// after the other; the system takes them back at once. Collective. A rank that does not come within
// `timeout` is ended with the others, because MPI_Finalize would wait for it for ever. Without the
// end of the process in builds with a sanitizer, which looks for leaks.
void leave_at_once(int exit_code, std::chrono::seconds timeout);

}  // namespace qpipe
