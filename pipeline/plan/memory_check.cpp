#include "pipeline/plan/memory_check.h"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>

#include "launch/memory_limits.h"
#include "pipeline/files/error.h"
#include "pipeline/options/sizes.h"

namespace qpipe {

namespace {

// Mapped, used or not: a thread's stack and arena of malloc, and OpenBLAS's buffer.
constexpr std::int64_t thread_bytes = std::int64_t{200} << 20;

}  // namespace

void check_address_space() {
  const std::int64_t room = address_space_room_bytes();
  const int threads = omp_get_max_threads();
  const std::int64_t need = library_host_bytes + threads * thread_bytes;
  if (room >= need) return;
  throw UserError(
      ExitCode::config,
      fmt::format("the limit of address space (ulimit -v, ulimit -d) leaves {}, and the libraries "
                  "map up to {} for {} thread(s); raise the limit, or lower parallel.threads or "
                  "OMP_NUM_THREADS",
                  size_text(room), size_text(need), threads));
}

Budget budget_of(const Options::Memory& options, const Placement& placement) {
  const bool cpu = placement.backend == Backend::cpu;
  // Without /proc the machine's memory is not known, and not limited here.
  const std::int64_t available = available_host_bytes();
  const std::int64_t host = available == 0 ? INT64_MAX : available / 10 * 8 / placement.local_ranks;
  Budget budget;
  budget.host = options.host == "auto" ? host : parse_size(options.host);
  if (const std::int64_t room = address_space_room_bytes(); room != no_memory_limit)
    budget.host = std::min(budget.host,
                           std::max<std::int64_t>(0, room - omp_get_max_threads() * thread_bytes));
  const std::int64_t device =
      cpu ? budget.host : placement.device_free_bytes / 100 * 92 / placement.device_ranks;
  budget.device = options.gpu == "auto" ? device : parse_size(options.gpu);
  budget.one_memory = cpu;
  return budget;
}

MemoryPlan plan_memory_of_ranks(const Options::Memory& options, const RunSizes& run,
                                const Teams& teams, const Placement& placement, Comm& comm) {
  Budget budget = budget_of(options, placement);
  const std::vector<double> all =
      comm.all_gather({static_cast<double>(budget.device), static_cast<double>(budget.host)});
  const auto least = [&](std::size_t first) {
    double smallest = all[first];
    for (std::size_t i = first; i < all.size(); i += 2) smallest = std::min(smallest, all[i]);
    return smallest >= 0x1p62 ? INT64_MAX : static_cast<std::int64_t>(smallest);
  };
  budget.device = least(0);
  budget.host = least(1);
  MemoryPlan plan = plan_memory(run, teams, budget);
  if (!plan.fits) throw UserError(ExitCode::config, does_not_fit(run, teams, budget, plan));
  return plan;
}

}  // namespace qpipe
