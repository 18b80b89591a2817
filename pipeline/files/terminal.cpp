#include "pipeline/files/terminal.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

#include "pipeline/files/error.h"

namespace qpipe {

namespace {

[[noreturn]] void refuse(int error) {
  throw UserError(ExitCode::io, std::string("stdout: the result cannot be written: ") +
                                    std::strerror(error) +
                                    "; send it to a file on a disk with room");
}

}  // namespace

void prepare_terminal() {
  for (const int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(descriptor, F_GETFD) != -1 || errno != EBADF) continue;
    // The lowest free number is this one. Read-only for stdout: what cannot be printed is told.
    const int opened = open("/dev/null", descriptor == STDERR_FILENO ? O_WRONLY : O_RDONLY);
    if (opened != descriptor && opened >= 0) close(opened);
  }
}

void tell(std::string_view text) noexcept {
  while (!text.empty()) {
    const ssize_t count = write(STDERR_FILENO, text.data(), text.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return;
    text.remove_prefix(static_cast<std::size_t>(count));
  }
}

void print_result(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) refuse(errno);
}

void finish_results() {
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) refuse(errno);
}

}  // namespace qpipe
