// Catches every fault once: one line on stderr, and an exit code by kind (pipeline/files/error.h).
#include <fmt/format.h>

#include <exception>
#include <optional>

#include "kernels/blas_kernels.h"
#include "launch/comm.h"
#include "launch/leave.h"
#include "pipeline/commands/cli.h"
#include "pipeline/files/error.h"
#include "pipeline/files/write_fault.h"

namespace {

using namespace qpipe;

// Ranks that check the same files reach the same fault at about the same time; a rank that waits
// longer than this is alone with its own.
constexpr std::chrono::seconds patience{5};

void say(const std::string& message) {
  fmt::print(stderr, "qpipe: error: {}\n", message);
  std::fflush(stderr);
}

std::string on_rank(const World& me) {
  return me.size > 1 ? fmt::format("rank {} on {}: ", me.rank, me.host) : "";
}

// A fault that all ranks find alike is told by rank 0, and all return its code. Before that no rank
// may end: the launcher would kill the others, rank 0 and its message included.
int end_with(const UserError& error, std::optional<MpiSession>& session, int& argc, char**& argv) {
  const int code = static_cast<int>(error.code);
  const bool first = (session ? world().rank : environment_rank()) == 0;
  if (first) say(error.what());
  if (!session && has_launcher()) session.emplace(argc, argv);
  const World me = world();
  if (me.size == 1 || leave_together(code, patience)) return code;
  if (!first) say(on_rank(me) + error.what());
  abort_all_ranks(code);
}

int end_with(const std::exception& error, const std::optional<MpiSession>& session) {
  const int code = static_cast<int>(ExitCode::software);
  const World me = world();
  say(on_rank(me) + error.what());
  if (session && me.size > 1) abort_all_ranks(code);
  return code;
}

// The work of one process, which the others of a launcher neither do nor wait for.
int run_alone(const Command& command) {
  if (environment_rank() != 0) return 0;
  try {
    return run_command(command);
  } catch (const UserError& error) {
    say(error.what());
    return static_cast<int>(error.code);
  }
}

}  // namespace

int main(int argc, char** argv) {
  restart_with_better_blas_kernels(argv);
  take_write_signals_as_faults();
  std::optional<MpiSession> session;
  try {
    const Command command = read_command(argc, argv);
    if (!is_collective(command)) return run_alone(command);
    if (has_launcher()) session.emplace(argc, argv);
    const int code = run_command(command);
    leave_at_once(code);
    return code;
  } catch (const UserError& error) {
    return end_with(error, session, argc, argv);
  } catch (const std::exception& error) {
    return end_with(error, session);
  }
}
