#include "launch/mpi_calls.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/poll_until.h"
#include "kernels/system_fault.h"

namespace qpipe {

void check(int status, std::source_location where) {
  if (status == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "unknown error";
  int length = 0;
  MPI_Error_string(status, text, &length);
  throw SystemFault(this_rank() + ": MPI: " + text + " (" + where.file_name() + ":" +
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

Requests::~Requests() {
  // After a fault: never freed, see the class.
  if (std::any_of(held_->requests.begin(), held_->requests.end(),
                  [](MPI_Request request) { return request != MPI_REQUEST_NULL; }))
    static_cast<void>(held_.release());
}

MPI_Request* Requests::add() { return &held_->requests.emplace_back(MPI_REQUEST_NULL); }

void* Requests::copy_of(void* data, std::size_t bytes, bool back) {
  Copy& copy = held_->copies.emplace_back();
  copy.memory = std::make_unique<unsigned char[]>(bytes);
  copy.original = back ? data : nullptr;
  copy.bytes = bytes;
  if (bytes > 0) std::memcpy(copy.memory.get(), data, bytes);
  bytes_ += bytes;
  return copy.memory.get();
}

const void* Requests::copy_of(const void* data, std::size_t bytes) {
  return copy_of(const_cast<void*>(data), bytes, false);
}

bool Requests::done() {
  int flag = 0;
  check(MPI_Testall(static_cast<int>(size()), held_->requests.data(), &flag, MPI_STATUSES_IGNORE));
  return flag != 0;
}

void Requests::finish(const std::string& operation, std::chrono::seconds timeout) {
  if (!poll_until([this] { return done(); }, timeout))
    throw SystemFault(this_rank() + ": " + operation + " was not finished after " +
                      std::to_string(timeout.count()) +
                      " s: another rank failed, hangs or is late (parallel.timeout raises the "
                      "limit)");
  for (const Copy& copy : held_->copies)
    if (copy.original != nullptr) std::memcpy(copy.original, copy.memory.get(), copy.bytes);
  *held_ = {};
  bytes_ = 0;
}

void broadcast(const std::vector<Piece>& pieces, const MpiOperation& operation) {
  Requests requests;
  int rank = 0;
  check(MPI_Comm_rank(operation.comm, &rank));
  for (const Piece& piece : pieces)
    for (std::size_t begin = 0; begin < piece.bytes; begin += operation.chunk_bytes) {
      const std::size_t bytes = std::min(operation.chunk_bytes, piece.bytes - begin);
      if (requests.size() > 0 && requests.bytes() + bytes > operation.chunk_bytes)
        requests.finish(operation.name, operation.timeout);
      void* copy =
          requests.copy_of(static_cast<char*>(piece.data) + begin, bytes, piece.from != rank);
      check(MPI_Ibcast(copy, static_cast<int>(bytes), MPI_BYTE, piece.from, operation.comm,
                       requests.add()));
    }
  requests.finish(operation.name, operation.timeout);
}

void all_reduce(void* x, std::size_t count, std::size_t element_bytes, MPI_Datatype type, MPI_Op op,
                const MpiOperation& operation) {
  const std::size_t chunk = std::max<std::size_t>(operation.chunk_bytes / element_bytes, 1);
  for (std::size_t begin = 0; begin < count; begin += chunk) {
    const std::size_t elements = std::min(chunk, count - begin);
    Requests requests;
    void* copy = requests.copy_of(static_cast<char*>(x) + begin * element_bytes,
                                  elements * element_bytes, true);
    check(MPI_Iallreduce(MPI_IN_PLACE, copy, static_cast<int>(elements), type, op, operation.comm,
                         requests.add()));
    requests.finish(operation.name, operation.timeout);
  }
}

void reduce_sum(std::int64_t* x, std::size_t count, int to, const MpiOperation& operation) {
  int rank = 0;
  check(MPI_Comm_rank(operation.comm, &rank));
  const std::size_t chunk = std::max<std::size_t>(operation.chunk_bytes / sizeof(std::int64_t), 1);
  for (std::size_t begin = 0; begin < count; begin += chunk) {
    const std::size_t elements = std::min(chunk, count - begin);
    Requests requests;
    void* copy = requests.copy_of(x + begin, elements * sizeof(std::int64_t), rank == to);
    check(MPI_Ireduce(rank == to ? MPI_IN_PLACE : copy, rank == to ? copy : nullptr,
                      static_cast<int>(elements), MPI_INT64_T, MPI_SUM, to, operation.comm,
                      requests.add()));
    requests.finish(operation.name, operation.timeout);
  }
}

std::vector<std::string> all_gather_bytes(const std::string& bytes, const MpiOperation& operation) {
  int rank = 0;
  int size = 0;
  check(MPI_Comm_rank(operation.comm, &rank));
  check(MPI_Comm_size(operation.comm, &size));
  std::vector<std::int64_t> lengths(static_cast<std::size_t>(size));
  lengths[static_cast<std::size_t>(rank)] = static_cast<std::int64_t>(bytes.size());
  all_reduce(lengths.data(), lengths.size(), sizeof(std::int64_t), MPI_INT64_T, MPI_MAX, operation);

  std::vector<std::string> all(static_cast<std::size_t>(size));
  std::vector<Piece> pieces;
  for (int owner = 0; owner < size; ++owner) {
    std::string& text = all[static_cast<std::size_t>(owner)];
    if (owner == rank)
      text = bytes;
    else
      text.resize(static_cast<std::size_t>(lengths[static_cast<std::size_t>(owner)]));
    pieces.push_back({text.data(), text.size(), owner});
  }
  broadcast(pieces, operation);
  return all;
}

}  // namespace qpipe
