#include "launch/launcher.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <fstream>

namespace qpipe {

namespace {

constexpr std::array rank_variables{"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"};

// As the kernel keeps them: 15 characters.
constexpr std::array launchers{"mpirun",          "mpiexec",       "orterun",
                               "orted",           "prte",          "prted",
                               "prterun",         "prun",          "palsd",
                               "slurmstepd",      "mpiexec.hydra", "hydra_pmi_proxy",
                               "hydra_bstrap_pr", "pmi_proxy",     "mpiexec.mpich"};

constexpr std::string_view parent_key = "PPid:\t";

struct Process {
  std::string name;
  int parent = 0;
};

Process process(int id) {
  Process result;
  const std::string folder = "/proc/" + std::to_string(id);
  std::ifstream name(folder + "/comm");
  std::getline(name, result.name);
  std::ifstream status(folder + "/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with(parent_key))
      result.parent = number_in(std::string_view(line).substr(parent_key.size())).value_or(0);
  return result;
}

bool is_launcher(const std::string& name) {
  return std::find(launchers.begin(), launchers.end(), name) != launchers.end();
}

}  // namespace

Launcher launcher_in_environment() {
  for (const char* name : rank_variables)
    if (const char* text = std::getenv(name)) return {true, number_in(text).value_or(0), name};
  return {};
}

bool is_started_by_launcher() { return is_launcher(process(getppid()).name); }

bool is_below_launcher() {
  int id = getppid();
  for (int level = 0; id > 1 && level < 64; ++level) {
    const Process ancestor = process(id);
    if (is_launcher(ancestor.name)) return true;
    id = ancestor.parent;
  }
  return false;
}

std::optional<int> number_in(std::string_view text) {
  int number = 0;
  const char* begin = text.data();
  const char* end = begin + text.size();
  const auto [stop, error] = std::from_chars(begin, end, number);
  return error == std::errc() && stop == end ? std::optional(number) : std::nullopt;
}

int tasks_of_srun_without_mpi() {
  const char* tasks = std::getenv("SLURM_STEP_NUM_TASKS");
  if (tasks == nullptr || launcher_in_environment().found || !is_started_by_launcher()) return 0;
  const int number = number_in(tasks).value_or(0);
  return number > 1 ? number : 0;
}

}  // namespace qpipe
