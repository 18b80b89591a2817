#include "launch/device.h"

#include <omp.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <stdexcept>
#include <thread>

#include "launch/device_cuda.h"
#include "launch/launcher.h"
#include "launch/memory_limits.h"
#include "launch/mpi_calls.h"

namespace qpipe {

namespace {

constexpr std::chrono::seconds start_timeout{600};

std::vector<std::string> of_all_ranks(const std::string& text) {
  if (!mpi_is_active()) return {text};
  return all_gather_bytes(text, {MPI_COMM_WORLD, "placing the ranks on devices", start_timeout});
}

// Cores in the affinity mask of a process (0: this one).
std::int64_t cores_of(pid_t process) {
  cpu_set_t mask;
  if (sched_getaffinity(process, sizeof(mask), &mask) == 0) return CPU_COUNT(&mask);
  return std::max(1u, std::thread::hardware_concurrency());
}

// Of this process among those of its host, as the innermost launcher's environment tells it (Open
// MPI; MPICH and Intel MPI; Slurm).
std::optional<int> environment_local_rank() {
  for (const char* name : {"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"})
    if (const char* text = std::getenv(name)) return number_in(text);
  return {};
}

}  // namespace

std::future<void> open_device_early(const std::string& backend) {
  if (!has_cuda || backend == "cpu") return {};
  const std::optional<int> local_rank = mpi_is_active() ? environment_local_rank() : 0;
  if (!local_rank) return {};
  return std::async(std::launch::async, [rank = *local_rank] {
    const int devices = cuda_device_count();
    if constexpr (has_cuda)
      if (devices > 0) cuda::open(rank % devices);
  });
}

Placement place_rank(const std::string& backend, bool share_gpu) {
  if (backend != "auto" && backend != "cpu" && backend != "cuda")
    throw std::invalid_argument("parallel.backend is \"" + backend +
                                "\"; it can be auto, cpu or cuda");

  Placement placement;
  placement.host = host_name();
  if (mpi_is_active()) {
    MPI_Comm local = MPI_COMM_NULL;
    check(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &local));
    check(MPI_Comm_rank(local, &placement.local_rank));
    check(MPI_Comm_size(local, &placement.local_ranks));
    check(MPI_Comm_free(&local));
  }
  if (backend == "cpu") return placement;

  const int devices = cuda_device_count();
  const std::vector<std::string> counts = of_all_ranks(std::to_string(devices));
  const std::vector<std::string> hosts = of_all_ranks(placement.host);
  const auto without = std::find(counts.begin(), counts.end(), "0");
  if (without != counts.end()) {
    if (backend == "auto") return placement;
    if constexpr (!has_cuda)
      throw std::runtime_error(
          "parallel.backend is cuda, but this build of qpipe has no CUDA support");
    const auto rank = static_cast<std::size_t>(without - counts.begin());
    throw std::runtime_error("parallel.backend is cuda, but rank " + std::to_string(rank) +
                             " on host " + hosts[rank] +
                             " sees no CUDA device; look at nvidia-smi and CUDA_VISIBLE_DEVICES "
                             "there, or set parallel.backend = \"cpu\"");
  }
  placement.backend = Backend::cuda;
  placement.device = placement.local_rank % devices;
  if constexpr (has_cuda) {
    const std::string mine = cuda::gpu_uuid(placement.device);
    const std::vector<std::string> gpus = of_all_ranks(mine);
    const std::string conflict = gpu_conflict(gpus, hosts);
    if (!share_gpu && !conflict.empty()) throw std::runtime_error(conflict);
    placement.device_ranks = 0;
    for (std::size_t rank = 0; rank < gpus.size(); ++rank)
      placement.device_ranks += hosts[rank] == placement.host && gpus[rank] == mine ? 1 : 0;
    placement.device_free_bytes = cuda::free_bytes(placement.device);
    of_all_ranks("");  // nobody takes memory before all have looked
  }
  return placement;
}

std::int64_t available_host_bytes() {
  std::ifstream file("/proc/meminfo");
  std::string key;
  std::int64_t kibibytes = 0;
  for (std::string unit; file >> key >> kibibytes && std::getline(file, unit);)
    if (key == "MemAvailable:")
      return std::max<std::int64_t>(1, std::min(kibibytes * 1024, control_group_room_bytes()));
  return 0;
}

std::string gpu_conflict(const std::vector<std::string>& gpus,
                         const std::vector<std::string>& hosts) {
  for (std::size_t later = 0; later < gpus.size(); ++later)
    for (std::size_t rank = 0; rank < later; ++rank)
      if (gpus[rank] == gpus[later])
        return "ranks " + std::to_string(rank) + " and " + std::to_string(later) +
               " would use the same GPU of host " + hosts[later] +
               "; start at most one rank for each GPU, or allow it with parallel.share_gpu = true, "
               "or set parallel.backend = \"cpu\"";
  return "";
}

void set_cpu_threads(std::int64_t threads, int local_ranks) {
  if (threads <= 0 && std::getenv("OMP_NUM_THREADS") != nullptr) return;  // OpenMP has read it
  omp_set_num_threads(static_cast<int>(
      threads > 0 ? threads : cpu_threads(cores_of(0), cores_of(getppid()), local_ranks)));
}

std::int64_t cpu_threads(std::int64_t rank_cores, std::int64_t launcher_cores, int local_ranks) {
  return std::max<std::int64_t>(1, std::min(rank_cores, launcher_cores / std::max(1, local_ranks)));
}

}  // namespace qpipe
