// Faults that a user can mend: one line that says what, where and what to do, and the exit code by
// kind (sysexits.h).
#pragma once

#include <stdexcept>
#include <string>

#include "pipeline/files/printable.h"

namespace qpipe {

enum class ExitCode : int {
  ok = 0,
  usage = 64,        // command line
  data = 65,         // a checkpoint or data file is damaged or inconsistent
  no_input = 66,     // a file or folder is missing or unreadable
  unavailable = 69,  // a device, library or family is not supported here
  software = 70,     // a defect of qpipe
  os = 71,           // the machine: a system call, memory, a GPU, another rank failed
  cannot_create = 73,
  io = 74,
  temporary = 75,  // stopped on request; run again to continue
  config = 78,     // a key or value in the configuration
};

// Its text is one line that a terminal can bear, whatever names it quotes.
class UserError : public std::runtime_error {
 public:
  UserError(ExitCode exit_code, const std::string& message)
      : std::runtime_error(printable(message)), code(exit_code) {}
  ExitCode code;
};

}  // namespace qpipe
