// Another program, run to its end with bounds on its time, its output and what it sees of us.
#pragma once

#include <chrono>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace qpipe {

struct ChildProgram {
  // The first is the program: a path, or a name that is looked for in PATH. It runs in /, in a
  // process group of its own, with PATH, LD_LIBRARY_PATH and `variables` for an environment.
  std::vector<std::string> arguments;
  std::vector<std::string> variables;  // "NAME=value"
  // Its standard input: this file, or what next_input returns, piece by piece, until that is empty.
  std::filesystem::path input_file;
  std::function<std::string_view()> next_input;
  std::size_t most_output = 0;                    // bytes of its standard output
  std::function<void(std::string_view)> on_line;  // each line of it as it comes, if anybody asks
  std::chrono::seconds timeout{0};
};

// A text for next_input, which must outlive the run.
inline std::function<std::string_view()> input_of(std::string_view text) {
  return [rest = text]() mutable { return std::exchange(rest, std::string_view()); };
}

struct ChildResult {
  enum class End { exited, killed, too_much_output, timeout };
  End end = End::exited;
  int status = 0;      // exit status, or the signal that ended it
  std::string output;  // of standard output; of `most_output` bytes at most
  std::string errors;  // the last bytes of standard error
};

// Whatever happens, the program has ended when this returns or throws. Throws UserError:
// ExitCode::unavailable when it cannot be started (`advice` says what to do), temporary when a stop
// signal came (launch/signals.h), os.
ChildResult run_child(const ChildProgram& program, const std::string& advice);

}  // namespace qpipe
