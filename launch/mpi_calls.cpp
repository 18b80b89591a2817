#include "launch/mpi_calls.h"

#include <unistd.h>

#include <algorithm>
#include <stdexcept>

#include "launch/bounded_wait.h"

namespace qpipe {

void check(int status, std::source_location where) {
  if (status == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "unknown error";
  int length = 0;
  MPI_Error_string(status, text, &length);
  throw std::runtime_error(this_rank() + ": MPI: " + text + " (" + where.file_name() + ":" +
                           std::to_string(where.line()) + ")");
}

bool mpi_is_active() {
  int initialized = 0;
  int finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  return initialized != 0 && finalized == 0;
}

std::string host_name() {
  char name[256] = "";
  return gethostname(name, sizeof(name) - 1) == 0 ? name : "?";
}

std::string this_rank() {
  int rank = 0;
  if (mpi_is_active()) MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return "rank " + std::to_string(rank) + " on host " + host_name();
}

void finish(std::vector<MPI_Request>& requests, const std::string& operation,
            std::chrono::seconds timeout) {
  const auto done = [&] {
    int flag = 0;
    check(MPI_Testall(static_cast<int>(requests.size()), requests.data(), &flag,
                      MPI_STATUSES_IGNORE));
    return flag != 0;
  };
  if (!poll_until(done, timeout))
    throw std::runtime_error(
        this_rank() + ": " + operation + " was not finished after " +
        std::to_string(timeout.count()) +
        " s: another rank failed, hangs or is late (parallel.timeout raises the limit)");
  requests.clear();
}

void start_broadcast(void* data, std::size_t bytes, int from, MPI_Comm comm,
                     std::vector<MPI_Request>& requests, std::size_t chunk_bytes) {
  for (std::size_t begin = 0; begin < bytes; begin += chunk_bytes) {
    const int count = static_cast<int>(std::min(chunk_bytes, bytes - begin));
    check(MPI_Ibcast(static_cast<char*>(data) + begin, count, MPI_BYTE, from, comm,
                     &requests.emplace_back(MPI_REQUEST_NULL)));
  }
}

void start_all_reduce(void* x, std::size_t count, std::size_t element_bytes, MPI_Datatype type,
                      MPI_Op op, MPI_Comm comm, std::vector<MPI_Request>& requests,
                      std::size_t chunk_bytes) {
  const std::size_t chunk = chunk_bytes / element_bytes;
  for (std::size_t begin = 0; begin < count; begin += chunk) {
    const int elements = static_cast<int>(std::min(chunk, count - begin));
    check(MPI_Iallreduce(MPI_IN_PLACE, static_cast<char*>(x) + begin * element_bytes, elements,
                         type, op, comm, &requests.emplace_back(MPI_REQUEST_NULL)));
  }
}

std::vector<std::string> all_gather_bytes(const std::string& bytes, MPI_Comm comm,
                                          const std::string& operation,
                                          std::chrono::seconds timeout) {
  int rank = 0;
  int size = 0;
  check(MPI_Comm_rank(comm, &rank));
  check(MPI_Comm_size(comm, &size));
  std::vector<MPI_Request> requests(1, MPI_REQUEST_NULL);
  const auto mine = static_cast<std::int64_t>(bytes.size());
  std::vector<std::int64_t> lengths(static_cast<std::size_t>(size));
  check(
      MPI_Iallgather(&mine, 1, MPI_INT64_T, lengths.data(), 1, MPI_INT64_T, comm, requests.data()));
  finish(requests, operation, timeout);

  std::vector<std::string> all(static_cast<std::size_t>(size));
  for (int owner = 0; owner < size; ++owner) {
    std::string& text = all[static_cast<std::size_t>(owner)];
    if (owner == rank)
      text = bytes;
    else
      text.resize(static_cast<std::size_t>(lengths[static_cast<std::size_t>(owner)]));
    start_broadcast(text.data(), text.size(), owner, comm, requests);
  }
  finish(requests, operation, timeout);
  return all;
}

}  // namespace qpipe
