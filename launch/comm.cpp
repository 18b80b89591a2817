#include "launch/comm.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "launch/comm_state.h"
#include "launch/device.h"
#include "launch/device_cuda.h"

namespace qpipe {

namespace {

// NCCL refuses two ranks on one GPU of one host. With a host id of its own each rank counts as a
// machine, and they talk through sockets. NCCL reads these once, at its first use in the process.
[[maybe_unused]] void pretend_own_host(int rank, bool one_host) {
  setenv("NCCL_HOSTID", ("qpipe-" + std::to_string(rank) + "-" + std::to_string(getpid())).c_str(),
         1);
  if (one_host) setenv("NCCL_SOCKET_IFNAME", "lo", 0);
}

// What is queued on the stream may be behind a collective.
[[maybe_unused]] void bound_waits(Stream& stream, const std::shared_ptr<NcclWaits>& waits) {
  if constexpr (has_cuda)
    stream.set_waiter([waits](const std::function<bool()>& done) {
      cuda::wait(*waits, done, "wait for the GPU");
    });
}

}  // namespace

void Comm::State::learn_rank_and_size() {
  check(MPI_Comm_set_errhandler(mpi, MPI_ERRORS_RETURN));
  check(MPI_Comm_rank(mpi, &rank));
  check(MPI_Comm_size(mpi, &size));
}

Comm::Comm(Stream& stream, const Options& options) : state_(std::make_unique<State>(stream)) {
  State& s = *state_;
  s.options = options;
  if (!mpi_is_active()) return;
  {
    State::Attempt attempt(s);
    Requests requests;
    check(MPI_Comm_idup(MPI_COMM_WORLD, &s.mpi, requests.add()));
    requests.finish("start of a communicator", options.timeout);
    s.learn_rank_and_size();
  }
  if (s.size == 1) return;

  const std::vector<std::string> hosts = s.all_gather(host_name(), "start of a communicator");
  const std::vector<std::string> backends =
      s.all_gather(stream.on_cuda() ? "cuda" : "cpu", "start of a communicator");
  for (std::size_t other = 1; other < backends.size(); ++other)
    if (backends[other] != backends[0])
      throw std::runtime_error("rank 0 on host " + hosts[0] + " uses " + backends[0] +
                               ", but rank " + std::to_string(other) + " on host " + hosts[other] +
                               " uses " + backends[other] +
                               "; set parallel.backend to one of them");
  if constexpr (has_cuda) {
    if (!stream.on_cuda()) return;
    const std::string conflict =
        gpu_conflict(s.all_gather(cuda::gpu_uuid(stream.device()), "start of NCCL"), hosts);
    if (!conflict.empty() && !options.share_gpu) throw std::runtime_error(conflict);
    s.shared_gpu = !conflict.empty();  // the same on all ranks
    s.waits = cuda::create_nccl_waits(this_rank(), options.timeout);
    s.waiter_before = *stream.waiter();
    bound_waits(stream, s.waits);
    if (s.shared_gpu)
      pretend_own_host(s.rank, std::equal(hosts.begin() + 1, hosts.end(), hosts.begin()));
  }
}

Comm::Comm(Comm& parent, int team, Stream& stream) : state_(std::make_unique<State>(stream)) {
  State& s = *state_;
  s.options = parent.state_->options;
  s.shared_gpu = parent.state_->shared_gpu;
  s.waits = parent.state_->waits;
  if (parent.size() == 1) return;
  parent.barrier();  // bounded, which MPI_Comm_split is not
  {
    State::Attempt attempt(s);
    check(MPI_Comm_split(parent.state_->mpi, team, parent.rank(), &s.mpi));
    s.learn_rank_and_size();
  }
}

Comm::Comm(Stream& stream) : state_(std::make_unique<State>(stream)) {}

void Comm::connect_ahead(Stream& stream) {
  if (size() == 1 || !stream.on_cuda() || state_->nccl) return;
  if constexpr (has_cuda) {
    std::string id;
    std::optional<Fault> fault;
    if (root()) try {
        id = cuda::nccl_unique_id();
      } catch (const std::exception& error) {
        fault = Fault{0, error.what()};
      }
    fault = agree(fault);
    if (fault) throw std::runtime_error(fault->message);
    id = broadcast(id, 0);
    State& s = *state_;
    State::Attempt attempt(s);
    s.nccl.reset(cuda::create_nccl_comm(id, s.rank, s.size, s.shared_gpu, s.waits, stream));
  }
}

Comm::~Comm() = default;

int Comm::rank() const { return state_->rank; }
int Comm::size() const { return state_->size; }

template <class WithNccl, class WithMpi>
void Comm::transfer(std::size_t bytes, const std::string& operation, WithNccl with_nccl,
                    WithMpi with_mpi, Stream& stream) {
  if (size() == 1 || bytes == 0) return;
  connect_ahead(stream);
  State::Transfer transfer(*state_, bytes, stream);
  if constexpr (has_cuda)
    if (stream.on_cuda()) {
      if (!*stream.waiter()) bound_waits(stream, state_->waits);
      return with_nccl(*state_->nccl, operation);
    }
  with_mpi(state_->operation(operation));
}

void Comm::broadcast(void* data, std::size_t bytes, int from, Stream& stream) {
  broadcast({{data, bytes, from}}, stream);
}

void Comm::broadcast(const std::vector<Piece>& pieces, Stream& stream) {
  std::size_t bytes = 0;
  for (const Piece& piece : pieces) {
    require(state_->rank_exists(piece.from), "Comm::broadcast: no such rank");
    bytes += piece.bytes;
  }
  const std::string from =
      pieces.size() == 1 ? " from rank " + std::to_string(pieces.front().from) : "";
  transfer(
      bytes, "broadcast of " + std::to_string(bytes) + " bytes" + from,
      [&](auto& nccl, const std::string& operation) {
        cuda::broadcast(nccl, pieces, operation, stream);
      },
      [&](const MpiOperation& operation) { qpipe::broadcast(pieces, operation); }, stream);
}

void Comm::all_reduce_sum(Matrix<std::int64_t> x, Stream& stream) {
  require(x.contiguous(), "Comm::all_reduce_sum: the matrix is not contiguous");
  const auto count = static_cast<std::size_t>(x.size());
  transfer(
      count * sizeof(std::int64_t), "all_reduce_sum of " + std::to_string(count) + " integers",
      [&](auto& nccl, const std::string& operation) {
        cuda::all_reduce_sum(nccl, x.data, count, operation, stream);
      },
      [&](const MpiOperation& operation) {
        all_reduce(x.data, count, sizeof(std::int64_t), MPI_INT64_T, MPI_SUM, operation);
      },
      stream);
}

void Comm::reduce_sums(const std::vector<SumTo>& sums, Stream& stream) {
  std::int64_t count = 0;
  for (const SumTo& sum : sums) {
    require(sum.x.contiguous(), "Comm::reduce_sums: a matrix is not contiguous");
    require(state_->rank_exists(sum.to), "Comm::reduce_sums: no such rank");
    count += sum.x.size();
  }
  std::string to;
  if (sums.size() == 1) to = " to rank " + std::to_string(sums.front().to);
  transfer(
      static_cast<std::size_t>(count) * sizeof(std::int64_t),
      "reduce_sum of " + std::to_string(count) + " integers" + to,
      [&](NcclComm& nccl, const std::string& operation) {
        cuda::reduce_sums(nccl, sums, operation, stream);
      },
      [&](const MpiOperation& operation) {
        for (const SumTo& sum : sums)
          reduce_sum(sum.x.data, static_cast<std::size_t>(sum.x.size()), sum.to, operation);
      },
      stream);
}

void Comm::all_reduce_max(Matrix<float> x, Stream& stream) {
  require(x.contiguous(), "Comm::all_reduce_max: the matrix is not contiguous");
  const auto count = static_cast<std::size_t>(x.size());
  // Floats ≥ +0 are ordered as their bits are, and a NaN has greater bits than any of them; MPI_MAX
  // on floats may drop a NaN.
  static_assert(sizeof(float) == sizeof(std::uint32_t));
  transfer(
      count * sizeof(float), "all_reduce_max of " + std::to_string(count) + " floats",
      [&](auto& nccl, const std::string& operation) {
        cuda::all_reduce_max(nccl, x.data, count, operation, stream);
      },
      [&](const MpiOperation& operation) {
        all_reduce(x.data, count, sizeof(float), MPI_UINT32_T, MPI_MAX, operation);
      },
      stream);
}

void Comm::all_gather_rows(void* data, std::size_t row_bytes, const std::vector<RowRange>& rows,
                           Stream& stream) {
  require(rows.size() == static_cast<std::size_t>(size()),
          "Comm::all_gather_rows: one range for each rank is needed");
  std::vector<Piece> pieces;
  for (const RowRange& range : rows) {
    require(range.begin >= 0 && range.count >= 0, "Comm::all_gather_rows: a range is negative");
    pieces.push_back({static_cast<char*>(data) + static_cast<std::size_t>(range.begin) * row_bytes,
                      static_cast<std::size_t>(range.count) * row_bytes,
                      static_cast<int>(pieces.size())});
  }
  broadcast(pieces, stream);
}

void Comm::wait(Stream& stream) {
  if (!stream.on_cuda()) return;
  if (!state_->nccl) return stream.synchronize();
  State::Attempt attempt(*state_);
  if constexpr (has_cuda) cuda::wait(*state_->nccl, stream);
}

Comm::Traffic Comm::traffic() { return {state_->moved_bytes, state_->watch.seconds()}; }

void Comm::barrier() {
  if (size() == 1) return;
  State::Attempt attempt(*state_);
  Requests requests;
  check(MPI_Ibarrier(state_->mpi, requests.add()));
  requests.finish("barrier", state_->options.timeout);
}

std::string Comm::broadcast(const std::string& text, int from) {
  require(state_->rank_exists(from), "Comm::broadcast: no such rank");
  if (size() == 1) return text;
  State::Attempt attempt(*state_);
  const MpiOperation operation =
      state_->operation("broadcast of a text from rank " + std::to_string(from));
  auto length = static_cast<std::int64_t>(text.size());
  qpipe::broadcast({{&length, sizeof(length), from}}, operation);
  std::string result = rank() == from ? text : std::string(static_cast<std::size_t>(length), '\0');
  qpipe::broadcast({{result.data(), result.size(), from}}, operation);
  return result;
}

std::vector<std::string> Comm::gather(const std::string& text) {
  std::vector<std::string> all = state_->all_gather(text, "gather");
  if (!root()) all.clear();
  return all;
}

std::vector<double> Comm::all_gather(const std::vector<double>& values) {
  const std::string bytes(reinterpret_cast<const char*>(values.data()),
                          values.size() * sizeof(double));
  std::vector<double> all;
  for (const std::string& part : state_->all_gather(bytes, "all_gather")) {
    const std::size_t before = all.size();
    all.resize(before + part.size() / sizeof(double));
    if (!part.empty()) std::memcpy(all.data() + before, part.data(), part.size());
  }
  return all;
}

std::vector<std::string> Comm::all_gather_texts(const std::string& text) {
  return state_->all_gather(text, "all_gather_texts");
}

std::optional<Comm::Fault> Comm::agree(const std::optional<Fault>& mine) {
  constexpr std::int64_t codes = 256;
  const std::int64_t first = state_->all_reduce_min(
      mine ? rank() * codes + mine->code : size() * codes, "exchange of faults");
  if (first == size() * codes) return std::nullopt;
  const auto from = static_cast<int>(first / codes);
  return Fault{static_cast<int>(first % codes), broadcast(mine ? mine->message : "", from)};
}

}  // namespace qpipe
