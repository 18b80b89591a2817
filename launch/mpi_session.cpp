#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>

#include "launch/comm.h"
#include "launch/mpi_calls.h"

namespace qpipe {

MpiSession::MpiSession(int& argc, char**& argv) {
  int provided = MPI_THREAD_SINGLE;
  check(MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided));
  check(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
  if (provided < MPI_THREAD_SERIALIZED)
    throw std::runtime_error(
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
