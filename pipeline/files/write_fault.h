// Why something could not be written, and what a user can do about it.
#pragma once

#include <string>

namespace qpipe {

// The system's text for an errno, with advice behind a semicolon where there is any: "File too
// large; raise the limit of a file's size (ulimit -f)".
std::string write_fault(int error);

// From now on a file beyond the limit of its size (SIGXFSZ) and a reader that is gone (SIGPIPE) are
// errors of the call that writes, and do not end the process.
void take_write_signals_as_faults();

}  // namespace qpipe
