#include "pipeline/data/child_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "launch/signals.h"
#include "pipeline/files/error.h"

namespace qpipe {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int tick_ms = 50;  // between two looks at the clock and at signals
constexpr std::size_t most_errors = 1 << 16;

[[noreturn]] void system_fault(const char* what) {
  throw UserError(ExitCode::os, fmt::format("{}: {}", what, std::strerror(errno)));
}

// An owned descriptor above those of the standard streams, which may be closed and then free.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int opened) {
    if (opened < 0) return;
    number_ = fcntl(opened, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    const int error = errno;
    close(opened);
    errno = error;
    if (number_ < 0) system_fault("cannot copy a descriptor");
  }
  ~Descriptor() { reset(); }
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }
  void reset() {
    if (number_ >= 0) close(std::exchange(number_, -1));
  }
  int number() const { return number_; }
  bool is_open() const { return number_ >= 0; }

 private:
  int number_ = -1;
};

struct Ends {
  Descriptor ours;
  Descriptor theirs;
};

// For what the child writes.
Ends make_pipe() {
  std::array<int, 2> ends{};
  if (pipe2(ends.data(), O_CLOEXEC) != 0) system_fault("cannot make a pipe");
  Ends result{Descriptor(ends[0]), Descriptor(ends[1])};
  fcntl(result.ours.number(), F_SETFL, O_NONBLOCK);
  return result;
}

// For what it reads: a socket, because writing to one that nobody reads need not raise SIGPIPE.
Ends make_socket() {
  std::array<int, 2> ends{};
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0)
    system_fault("cannot make a pair of sockets");
  return {Descriptor(ends[0]), Descriptor(ends[1])};
}

Descriptor open_input(const std::filesystem::path& path) {
  Descriptor input(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!input.is_open())
    throw UserError(ExitCode::no_input,
                    fmt::format("{}: cannot be opened: {}", path.string(), std::strerror(errno)));
  return input;
}

std::vector<std::string> environment_of(const ChildProgram& program) {
  std::vector<std::string> variables = program.variables;
  for (const char* name : {"PATH", "LD_LIBRARY_PATH"})
    if (const char* value = std::getenv(name))
      variables.push_back(fmt::format("{}={}", name, value));
  return variables;
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> result;
  result.reserve(texts.size() + 1);
  for (std::string& text : texts) result.push_back(text.data());
  result.push_back(nullptr);
  return result;
}

// posix_spawn's settings: it makes the process without the handlers that MPI hangs on fork.
class SpawnSettings {
 public:
  SpawnSettings() {
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    sigset_t none;
    sigset_t all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setflags(
        &attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
  }
  ~SpawnSettings() {
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
  }
  SpawnSettings(const SpawnSettings&) = delete;
  SpawnSettings& operator=(const SpawnSettings&) = delete;

  posix_spawn_file_actions_t actions{};
  posix_spawnattr_t attributes{};
};

class Child {
 public:
  Child(const ChildProgram& program, const std::string& advice) : program_(program) {
    Ends in = program.next_input ? make_socket() : Ends{{}, open_input(program.input_file)};
    Ends out = make_pipe();
    Ends err = make_pipe();
    SpawnSettings settings;
    posix_spawn_file_actions_adddup2(&settings.actions, in.theirs.number(), STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&settings.actions, out.theirs.number(), STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&settings.actions, err.theirs.number(), STDERR_FILENO);
    posix_spawn_file_actions_addchdir_np(&settings.actions, "/");
    std::vector<std::string> arguments = program.arguments;
    std::vector<std::string> variables = environment_of(program);
    const int error =
        posix_spawnp(&pid_, arguments[0].c_str(), &settings.actions, &settings.attributes,
                     pointers(arguments).data(), pointers(variables).data());
    if (error != 0) {
      pid_ = -1;
      throw UserError(ExitCode::unavailable, fmt::format("cannot run {}: {}; {}", arguments[0],
                                                         std::strerror(error), advice));
    }
    in_ = std::move(in.ours);
    out_ = std::move(out.ours);
    err_ = std::move(err.ours);
  }
  ~Child() {
    if (pid_ < 0) return;
    // The group, too: what it started may outlive it.
    kill(-pid_, SIGKILL);
    int ignored = 0;
    while (waitpid(pid_, &ignored, 0) < 0 && errno == EINTR) {
    }
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  ChildResult run() {
    const Clock::time_point deadline = Clock::now() + program_.timeout;
    for (;;) {
      if (signals_received() > 0)
        throw UserError(ExitCode::temporary,
                        "stopped by a signal while the data were read; the same command starts "
                        "again");
      if (Clock::now() >= deadline) return ended(ChildResult::End::timeout, 0);
      // In this order, so that nothing that it wrote before its end is missed.
      const bool over = has_ended();
      exchange(over);
      if (result_.output.size() > program_.most_output)
        return ended(ChildResult::End::too_much_output, 0);
      if (over)
        return WIFEXITED(status_) ? ended(ChildResult::End::exited, WEXITSTATUS(status_))
                                  : ended(ChildResult::End::killed, WTERMSIG(status_));
    }
  }

 private:
  ChildResult ended(ChildResult::End end, int status) {
    result_.end = end;
    result_.status = status;
    return std::move(result_);
  }

  // WNOWAIT: the process stays a zombie, so that its number is not another's when its group is
  // killed.
  bool has_ended() {
    siginfo_t info{};
    while (waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) < 0)
      if (errno != EINTR) system_fault("lost a process that reads data");
    if (info.si_pid == 0) return false;
    status_ =
        info.si_code == CLD_EXITED ? W_EXITCODE(info.si_status, 0) : W_EXITCODE(0, info.si_status);
    return true;
  }

  void exchange(bool over) {
    std::array<pollfd, 3> watched{
        {{in_.number(), POLLOUT, 0}, {out_.number(), POLLIN, 0}, {err_.number(), POLLIN, 0}}};
    const bool streams = out_.is_open() || err_.is_open();
    // Between the end of both streams and its own the process has a moment's work at most.
    if (poll(watched.data(), watched.size(), over ? 0 : streams ? tick_ms : 1) < 0) {
      if (errno == EINTR) return;
      system_fault("cannot wait for a process that reads data");
    }
    if (watched[0].revents != 0) send_input();
    if (watched[1].revents != 0 || over) {
      receive(out_, result_.output, program_.most_output + 1);
      if (program_.on_line) hand_on_lines();
    }
    if (watched[2].revents != 0 || over) {
      receive(err_, result_.errors, result_.errors.size() + most_errors);
      if (result_.errors.size() > most_errors)
        result_.errors.erase(0, result_.errors.size() - most_errors);
    }
  }

  void hand_on_lines() {
    for (std::size_t end; (end = result_.output.find('\n', next_line_)) != std::string::npos;
         next_line_ = end + 1)
      program_.on_line(std::string_view(result_.output).substr(next_line_, end - next_line_));
  }

  // As much as it takes at once.
  void send_input() {
    for (int pieces = 0; pieces < 1024; ++pieces) {
      if (piece_.empty()) piece_ = program_.next_input();
      if (piece_.empty()) return in_.reset();
      const ssize_t sent =
          send(in_.number(), piece_.data(), piece_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent < 0 && (errno == EAGAIN || errno == EINTR)) return;
      if (sent < 0) return in_.reset();  // it does not read on: its exit status says why
      piece_.remove_prefix(static_cast<std::size_t>(sent));
    }
  }

  // All that is there, until `to` has `most` bytes.
  static void receive(Descriptor& from, std::string& to, std::size_t most) {
    std::array<char, 1 << 16> block{};
    while (from.is_open() && to.size() < most) {
      const ssize_t count =
          read(from.number(), block.data(), std::min(block.size(), most - to.size()));
      if (count > 0) to.append(block.data(), static_cast<std::size_t>(count));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0 && errno == EAGAIN) return;
      if (count <= 0) from.reset();
    }
  }

  const ChildProgram& program_;
  pid_t pid_ = -1;
  Descriptor in_;
  Descriptor out_;
  Descriptor err_;
  std::string_view piece_;
  std::size_t next_line_ = 0;
  int status_ = 0;
  ChildResult result_;
};

}  // namespace

ChildResult run_child(const ChildProgram& program, const std::string& advice) {
  return Child(program, advice).run();
}

}  // namespace qpipe
