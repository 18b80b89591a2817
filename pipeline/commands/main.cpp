// Catches every fault once: one line on stderr, and an exit code by kind (pipeline/files/error.h).
#include <fmt/format.h>

#include <exception>
#include <optional>

#include "kernels/blas_kernels.h"
#include "launch/comm.h"
#include "launch/launcher.h"
#include "launch/leave.h"
#include "launch/sanitized.h"
#include "launch/signals.h"
#include "pipeline/commands/cli.h"
#include "pipeline/files/agree.h"
#include "pipeline/files/error.h"
#include "pipeline/files/terminal.h"
#include "pipeline/files/write_fault.h"

namespace {

using namespace qpipe;

// Before the shared libraries' constructors run: with BLAS, MPI and CUDA they take a while.
// Sanitizers are among those libraries, and what they instrument cannot run before them.
#if !defined(QPIPE_SANITIZED)
void hold_signals(int, char**, char**) { hold_stop_signals(); }
__attribute__((section(".preinit_array"), used)) void (*const first)(int, char**,
                                                                     char**) = hold_signals;
#endif

// Ranks that check the same files reach the same fault at about the same time; a rank that waits
// longer than this is alone with its own.
constexpr std::chrono::seconds patience{5};

void say(const std::string& message) {
  tell(fmt::format("qpipe: error: {}\n", printable(message)));
}

std::string on_rank(const World& me) {
  return me.size > 1 ? fmt::format("rank {} on {}: ", me.rank, me.host) : "";
}

// Whether this process speaks for all that were started with it.
bool is_first() { return !is_below_launcher() || launcher_in_environment().rank == 0; }

// A fault that all ranks find alike is told by rank 0, and all return its code. Before that no rank
// may end: the launcher would kill the others, rank 0 and its message included.
int end_with(const UserError& error, std::optional<MpiSession>& session, int& argc, char**& argv) {
  const int code = static_cast<int>(error.code);
  const bool speaks = session ? world().rank == 0 : is_first();
  if (speaks) say(error.what());
  if (!session && launcher_in_environment().found) session.emplace(argc, argv);
  const World me = world();
  if (me.size == 1 || leave_together(code, patience)) return code;
  if (!speaks) say(on_rank(me) + error.what());
  abort_all_ranks(code);
}

// A fault of this rank alone.
int end_alone_with(const UserError& error) {
  const int code = static_cast<int>(error.code);
  const World me = world();
  const std::string message = error.what();
  say((message.starts_with("rank ") ? "" : on_rank(me)) + message);
  if (me.size > 1) abort_all_ranks(code);
  return code;
}

void check_launcher() {
  if (const int tasks = tasks_of_srun_without_mpi(); tasks > 0)
    throw UserError(ExitCode::config,
                    fmt::format("srun has started {} tasks without MPI, which would each do all of "
                                "the work; use srun --mpi=pmix (srun --mpi=list tells what there "
                                "is), or mpirun",
                                tasks));
}

int run_to_the_end(const Command& command) {
  const int code = run_command(command);
  finish_results();
  return code;
}

// The work of one process, which the other ranks of a launcher neither do nor wait for.
int run_alone(const Command& command) {
  if (is_started_by_launcher() && launcher_in_environment().rank != 0) return 0;
  try {
    return run_to_the_end(command);
  } catch (const UserError& error) {
    say(error.what());
    return static_cast<int>(error.code);
  }
}

}  // namespace

int main(int argc, char** argv) {
  prepare_terminal();
  take_write_signals_as_faults();
  restart_with_better_blas_kernels(argv);  // signals still wait
  count_stop_signals();
  std::optional<MpiSession> session;
  try {
    const Command command = read_command(argc, argv);
    if (!can_go_on_later(command)) end_at_stop_signals();
    if (!is_collective(command)) return run_alone(command);
    check_launcher();
    if (launcher_in_environment().found) session.emplace(argc, argv, timeout_of(command));
    const int code = run_to_the_end(command);
    leave_at_once(code, timeout_of(command));
    return code;
  } catch (const UserError& error) {
    return end_with(error, session, argc, argv);
  } catch (const std::exception& error) {
    return end_alone_with(user_error_of(error));
  } catch (...) {
    return end_alone_with({ExitCode::software, "an exception that says nothing"});
  }
}
