#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "kernels/poll_until.h"
#include "kernels/system_fault.h"
#include "launch/nccl_calls.h"

namespace qpipe {

namespace {

// Connecting takes seconds on any machine, however short the limit for a collective is.
constexpr std::chrono::seconds connect_timeout{30};

std::string describe(ncclResult_t status, ncclComm_t comm) {
  const char* detail = ncclGetLastError(comm);
  return std::string(ncclGetErrorString(status)) +
         (detail != nullptr && *detail != '\0' ? std::string(", ") + detail : "");
}

}  // namespace

namespace nccl {

void throw_fault(const std::string& who, const std::string& operation, const std::string& reason,
                 std::source_location where) {
  throw SystemFault(who + ": NCCL " + operation + ": " + reason + " (" + where.file_name() + ":" +
                    std::to_string(where.line()) + ")");
}

void fail(NcclComm& comm, const std::string& operation, const std::string& reason,
          std::source_location where) {
  if (comm.comm != nullptr) ncclCommAbort(comm.comm);  // ends kernels that wait for a peer
  comm.comm = nullptr;
  throw_fault(comm.waits->who, operation, reason, where);
}

std::string too_late(std::chrono::seconds timeout) {
  return "not finished after " + std::to_string(timeout.count()) +
         " s: another rank failed, hangs or is late (parallel.timeout raises the limit)";
}

bool is_settled(NcclComm& comm, const std::string& operation, std::source_location where) {
  ncclResult_t state = ncclSuccess;
  const ncclResult_t status = ncclCommGetAsyncError(comm.comm, &state);
  if (status != ncclSuccess) fail(comm, operation, describe(status, comm.comm), where);
  if (state != ncclSuccess && state != ncclInProgress)
    fail(comm, operation, describe(state, comm.comm), where);
  return state == ncclSuccess;
}

void settle(NcclComm& comm, ncclResult_t status, const std::string& operation,
            std::chrono::seconds timeout, std::source_location where) {
  if (status != ncclSuccess && status != ncclInProgress)
    fail(comm, operation, describe(status, comm.comm), where);
  if (!poll_until([&] { return is_settled(comm, operation, where); }, timeout))
    fail(comm, operation, too_late(timeout), where);
}

void check_usable(NcclComm& comm, const std::string& operation) {
  if (comm.comm == nullptr) fail(comm, operation, "the communicator was aborted earlier");
  if (comm.starting)
    settle(comm, ncclInProgress, "start", std::max(comm.waits->timeout, connect_timeout));
  comm.starting = false;
}

NcclComm* create(const std::string& unique_id, int rank, int size, bool over_sockets,
                 std::shared_ptr<NcclWaits> waits, cudaStream_t stream) {
  ncclUniqueId id{};
  if (unique_id.size() != sizeof(id.internal))
    throw std::invalid_argument("create_nccl_comm: not an NCCL id");
  std::memcpy(id.internal, unique_id.data(), sizeof(id.internal));
  auto* comm = new NcclComm;
  try {
    comm->waits = std::move(waits);
    comm->waits->comms.push_back(comm);
    comm->stream = stream;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    if (over_sockets) config.netName = "Socket";
    const ncclResult_t status = ncclCommInitRankConfig(&comm->comm, size, id, rank, &config);
    if (status != ncclSuccess && status != ncclInProgress)
      fail(*comm, "start", describe(status, comm->comm));
  } catch (...) {
    cuda::destroy_nccl_comm(comm);
    throw;
  }
  return comm;
}

}  // namespace nccl

using nccl::check_usable;
using nccl::fail;
using nccl::is_settled;
using nccl::settle;

namespace cuda {

std::string nccl_unique_id() {
  ncclUniqueId id{};
  const ncclResult_t status = ncclGetUniqueId(&id);
  if (status != ncclSuccess)
    throw std::runtime_error("NCCL does not start: " + describe(status, nullptr));
  return {id.internal, sizeof(id.internal)};
}

NcclComm* create_nccl_comm(const std::string& unique_id, int rank, int size, bool over_sockets,
                           std::shared_ptr<NcclWaits> waits, Stream& stream) {
  check(cudaSetDevice(stream.device()));
  return nccl::create(unique_id, rank, size, over_sockets, std::move(waits), stream.cuda().stream);
}

void destroy_nccl_comm(NcclComm* comm) noexcept {
  if (comm == nullptr) return;
  if (comm->comm != nullptr) {
    try {
      if (std::uncaught_exceptions() > comm->exceptions)
        fail(*comm, "end", "another exception is on its way");
      const auto where = std::source_location::current();
      const auto idle = [&] {
        return is_settled(*comm, "end", where) &&
               cudaStreamQuery(comm->stream) != cudaErrorNotReady;
      };
      if (!poll_until(idle, comm->waits->timeout)) fail(*comm, "end", "the stream does not end");
      settle(*comm, ncclCommFinalize(comm->comm), "end", comm->waits->timeout);
      ncclCommDestroy(comm->comm);
    } catch (...) {
      if (comm->comm != nullptr) ncclCommAbort(comm->comm);
    }
    cudaGetLastError();  // cudaStreamQuery leaves cudaErrorNotReady behind
  }
  if (comm->waits) std::erase(comm->waits->comms, comm);
  delete comm;
}

namespace {

// Around a call of NCCL's: it is queued when this returns.
template <class Call>
void queue(NcclComm& comm, const std::string& operation, Call call) {
  check_usable(comm, operation);
  comm.queued = operation;
  settle(comm, call(), operation, comm.waits->timeout);
}

}  // namespace

namespace {

// call() for each of them, together.
template <class Items, class Call>
ncclResult_t grouped(const Items& items, const Call& call) {
  ncclResult_t status = ncclGroupStart();
  for (const auto& item : items) {
    const ncclResult_t queued = call(item);
    if (status == ncclSuccess && queued != ncclInProgress) status = queued;
  }
  const ncclResult_t ended = ncclGroupEnd();  // closes the group also after a refused call
  return status == ncclSuccess ? ended : status;
}

}  // namespace

void broadcast(NcclComm& comm, const std::vector<Piece>& pieces, const std::string& operation,
               Stream& stream) {
  queue(comm, operation, [&] {
    return grouped(pieces, [&](const Piece& piece) {
      if (piece.bytes == 0) return ncclSuccess;
      return ncclBroadcast(piece.data, piece.data, piece.bytes, ncclUint8, piece.from, comm.comm,
                           stream.cuda().stream);
    });
  });
}

void all_reduce_sum(NcclComm& comm, std::int64_t* x, std::size_t count,
                    const std::string& operation, Stream& stream) {
  queue(comm, operation, [&] {
    return ncclAllReduce(x, x, count, ncclInt64, ncclSum, comm.comm, stream.cuda().stream);
  });
}

void reduce_sums(NcclComm& comm, const std::vector<SumTo>& sums, const std::string& operation,
                 Stream& stream) {
  queue(comm, operation, [&] {
    return grouped(sums, [&](const SumTo& sum) {
      if (sum.x.size() == 0) return ncclSuccess;
      return ncclReduce(sum.x.data, sum.x.data, static_cast<std::size_t>(sum.x.size()), ncclInt64,
                        ncclSum, sum.to, comm.comm, stream.cuda().stream);
    });
  });
}

void all_reduce_max(NcclComm& comm, float* x, std::size_t count, const std::string& operation,
                    Stream& stream) {
  // Floats ≥ +0 are ordered as their bits are, and a NaN has greater bits than any of them; ncclMax
  // on floats may drop a NaN.
  queue(comm, operation, [&] {
    return ncclAllReduce(x, x, count, ncclUint32, ncclMax, comm.comm, stream.cuda().stream);
  });
}

void wait(NcclComm& comm, Stream& stream) {
  check_usable(comm, "wait for the GPU");
  const Waiter waiter = [&](const std::function<bool()>& done) {
    wait(*comm.waits, done, "wait for the GPU");
  };
  wait_for_device(
      waiter, [&] { return cudaStreamQuery(stream.cuda().stream); },
      [&] { return cudaStreamSynchronize(stream.cuda().stream); });
  comm.queued.clear();
}

}  // namespace cuda
}  // namespace qpipe
