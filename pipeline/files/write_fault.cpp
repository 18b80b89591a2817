#include "pipeline/files/write_fault.h"

#include <cerrno>
#include <csignal>
#include <cstring>

namespace qpipe {

namespace {

const char* advice_for(int error) {
  switch (error) {
    case EACCES:
    case EPERM: return "; give this user the right to write there, or choose another place";
    case EDQUOT: return "; the quota is used up: free space, or choose another place";
    case EFBIG: return "; raise the limit of a file's size (ulimit -f)";
    case EMFILE: return "; raise the limit of open files (ulimit -n)";
    case ENAMETOOLONG: return "; choose a shorter name";
    case ENOSPC: return "; free space, or choose another place";
    case EPIPE: return "; its reader is gone: start the reader again";
    case EROFS: return "; choose another place";
    default: return "";
  }
}

}  // namespace

std::string write_fault(int error) { return std::string(std::strerror(error)) + advice_for(error); }

void take_write_signals_as_faults() {
  std::signal(SIGXFSZ, SIG_IGN);
  std::signal(SIGPIPE, SIG_IGN);
}

}  // namespace qpipe
