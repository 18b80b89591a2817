// The command line: what the user asks for, and who carries it out.
#pragma once

#include <chrono>
#include <filesystem>
#include <string>
#include <variant>

#include "pipeline/commands/compare.h"
#include "pipeline/commands/evaluate_command.h"
#include "pipeline/commands/families_command.h"
#include "pipeline/commands/plan_command.h"
#include "pipeline/commands/push_command.h"
#include "pipeline/commands/verify.h"
#include "pipeline/data/dataset.h"
#include "pipeline/options/options.h"

namespace qpipe {

// --help, --version: a text for stdout.
struct ShowText {
  std::string text;
};

struct QuantizeRequest {
  Options options;
  bool dry_run = false;
  std::chrono::steady_clock::time_point begin;  // of the process, as near as it is known
};

struct TokenizeRequest {
  std::string model;
  DatasetRequest dataset;
  std::filesystem::path out;  // .h5
};

using Command = std::variant<ShowText, QuantizeRequest, CompareRequest, PlanRequest, EvalRequest,
                             TokenizeRequest, VerifyRequest, FamiliesRequest, PushRequest>;

// Reads the arguments, and the configuration file if there is one, and fetches what they name of
// the hub. Needs no MPI, so that faults are told at once. Throws UserError: ExitCode::usage for the
// arguments, else as load_options.
Command read_command(int argc, const char* const* argv);

// Whether the command works on all ranks together, and needs MPI; the others are for rank 0 alone.
bool is_collective(const Command& command);

// Whether the command can stop where the next start goes on, and asks for signals
// (launch/signals.h).
bool can_go_on_later(const Command& command);

// How long ranks wait for each other.
std::chrono::seconds timeout_of(const Command& command);

// Returns the exit code. Collective commands need an MpiSession.
int run_command(const Command& command);

}  // namespace qpipe
