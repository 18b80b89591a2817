// What the process that started this one says: which rank of an MPI job it is, before MPI_Init.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace qpipe {

struct Launcher {
  bool found = false;  // its variables are there; only MPI knows how many ranks there are
  int rank = 0;
  std::string variable;  // the rank stands in it
};

// Open MPI, PMIx, MPICH and Intel MPI: the innermost first, as mpirun may run inside of a job.
// Slurm's SLURM_PROCID alone is no MPI. A shell that a launcher has started passes its variables
// on.
Launcher launcher_in_environment();

// Whether the parent of this process, or one of its ancestors, is an MPI launcher's or Slurm's:
// then the other ranks were started with the same command line, by name in /proc.
bool is_started_by_launcher();
bool is_below_launcher();

// A variable's number; nothing where the whole text is none.
std::optional<int> number_in(std::string_view text);

// How many tasks srun has started directly without any MPI: each would take itself for the only
// one. 0 otherwise.
int tasks_of_srun_without_mpi();

}  // namespace qpipe
