#include "launch/link.h"

#include <algorithm>

#include "launch/comm_state.h"
#include "launch/nccl_link.h"

namespace qpipe {

namespace {
constexpr int tag = 1;  // Comm::gather uses 0
}

struct Link::Operation {
  std::size_t bytes = 0;
  std::vector<MPI_Request> requests;  // empty on CUDA
};

void Link::Destroy::operator()(NcclLink* link) const {
  if constexpr (has_cuda) cuda::destroy_nccl_link(link);
}

Link::Link(Comm& comm, int from, int to, Stream& stream) : comm_(comm), from_(from), to_(to) {
  require(comm.state_->rank_exists(from) && comm.state_->rank_exists(to) && from != to, "Link: no such pair of ranks");
  require(comm.rank() == from || comm.rank() == to, "Link: made by another rank than its two");
  if constexpr (has_cuda) {
    if (!stream.on_cuda()) return;
    Comm::State& s = *comm.state_;
    Comm::State::Attempt attempt(s);
    const bool sends = comm.rank() == from;
    // An id of length 0 tells that there is none.
    std::string id(sends ? 0 : 128, '\0');
    std::string fault;
    if (sends) try {
        id = cuda::nccl_unique_id();
      } catch (const std::exception& error) {
        fault = error.what();
      }
    std::vector<MPI_Request> requests(1, MPI_REQUEST_NULL);
    const int size = static_cast<int>(id.size());
    check(sends ? MPI_Isend(id.data(), size, MPI_BYTE, to, tag, s.mpi, requests.data())
                : MPI_Irecv(id.data(), size, MPI_BYTE, from, tag, s.mpi, requests.data()));
    finish(requests, "start of a link", s.options.timeout);
    if (!fault.empty()) throw std::runtime_error(fault);
    nccl_.reset(cuda::create_nccl_link(id, sends ? 0 : 1, s.shared_gpu, this_rank(), s.options.timeout, stream));
  }
}

Link::~Link() = default;

void Link::send(const void* data, std::size_t bytes, Stream& stream) {
  require(comm_.rank() == from_, "Link::send: this rank receives");
  Operation& operation = operations_.emplace_back();
  operation.bytes = bytes;
  bytes_ += static_cast<std::int64_t>(bytes);
  if constexpr (has_cuda)
    if (nccl_) return cuda::link_send(*nccl_, data, bytes, stream);
  for (std::size_t begin = 0; begin < bytes; begin += mpi_chunk_bytes)
    check(MPI_Isend(static_cast<const char*>(data) + begin, static_cast<int>(std::min(mpi_chunk_bytes, bytes - begin)), MPI_BYTE, to_, tag,
                    comm_.state_->mpi, &operation.requests.emplace_back(MPI_REQUEST_NULL)));
}

void Link::receive(void* data, std::size_t bytes, Stream& stream) {
  require(comm_.rank() == to_, "Link::receive: this rank sends");
  Operation& operation = operations_.emplace_back();
  operation.bytes = bytes;
  bytes_ += static_cast<std::int64_t>(bytes);
  if constexpr (has_cuda)
    if (nccl_) return cuda::link_receive(*nccl_, data, bytes, stream);
  for (std::size_t begin = 0; begin < bytes; begin += mpi_chunk_bytes)
    check(MPI_Irecv(static_cast<char*>(data) + begin, static_cast<int>(std::min(mpi_chunk_bytes, bytes - begin)), MPI_BYTE, from_, tag,
                    comm_.state_->mpi, &operation.requests.emplace_back(MPI_REQUEST_NULL)));
}

bool Link::oldest_is_done() {
  require(!operations_.empty(), "Link: nothing is under way");
  if constexpr (has_cuda)
    if (nccl_) return cuda::link_oldest_is_done(*nccl_);
  int done = 0;
  std::vector<MPI_Request>& requests = operations_.front().requests;
  check(MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE));
  return done != 0;
}

std::string Link::describe(const Operation& operation) const {
  return (comm_.rank() == from_ ? "send of " : "receipt of ") + std::to_string(operation.bytes) + " bytes " +
         (comm_.rank() == from_ ? "to rank " + std::to_string(to_) : "from rank " + std::to_string(from_));
}

void Link::wait_oldest() {
  require(!operations_.empty(), "Link: nothing is under way");
  const std::string what = describe(operations_.front());
  if constexpr (has_cuda)
    if (nccl_) {
      cuda::link_wait_oldest(*nccl_, what);
      return operations_.pop_front();
    }
  finish(operations_.front().requests, what, comm_.state_->options.timeout);
  operations_.pop_front();
}

}  // namespace qpipe
