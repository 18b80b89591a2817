// Where this rank computes: the backend all ranks agree on, its GPU, its CPU threads.
#pragma once

#include <cstdint>
#include <future>
#include <string>
#include <vector>

#include "kernels/stream.h"

namespace qpipe {

struct Placement {
  Backend backend = Backend::cpu;
  int device =
      0;  // CUDA device of this rank: local_rank % devices that this process sees; 0 on the CPU
  int local_rank = 0;   // among the ranks of this host
  int local_ranks = 1;  // ranks on this host
  std::string host;
  int device_ranks = 1;  // ranks that use this GPU
  std::int64_t device_free_bytes =
      0;  // of the GPU, before any rank takes memory for its work; 0 on the CPU
};

// Begins to open the CUDA device that place_rank will choose, on a thread of its own: it takes a
// third of a second, while the caller reads its input. Nothing for "cpu", without a device, or
// where the launcher's environment does not tell the rank on this host. Faults are left to
// place_rank. After MpiSession, if there is one, because MPI changes the environment while CUDA
// reads it.
std::future<void> open_device_early(const std::string& backend);

// Collective over MPI_COMM_WORLD, after MpiSession and before the first Stream; NCCL is not used.
// backend: "cpu", "cuda", or "auto": cuda when every rank sees a device, else cpu. Throws
// std::runtime_error, the same on all ranks, when a rank sees no device for "cuda", or when two
// ranks get one GPU and share_gpu is false; std::invalid_argument for another name.
Placement place_rank(const std::string& backend, bool share_gpu);

// What programs can take on this machine without swapping (Linux: MemAvailable), within the limits
// of this one's control groups; 0 where it is not known.
std::int64_t available_host_bytes();

// gpus[rank], hosts[rank]: one line that names the first two ranks with the same GPU and says what
// to do, or "".
std::string gpu_conflict(const std::vector<std::string>& gpus,
                         const std::vector<std::string>& hosts);

// Sets the OpenMP threads of this rank: `threads` when positive, else OMP_NUM_THREADS when set,
// else cpu_threads of this machine.
void set_cpu_threads(std::int64_t threads, int local_ranks);

// The cores that a rank may run on (fewer than the launcher's when mpirun binds ranks to cores or
// sockets), but no more than its part of the launcher's cores, because bound ranks may share a
// socket. At least 1.
std::int64_t cpu_threads(std::int64_t rank_cores, std::int64_t launcher_cores, int local_ranks);

}  // namespace qpipe
