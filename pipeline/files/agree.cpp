#include "pipeline/files/agree.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <new>
#include <stdexcept>
#include <system_error>

#include "kernels/system_fault.h"
#include "launch/device.h"

namespace qpipe {

namespace {

constexpr double gib = 1024.0 * 1024.0 * 1024.0;

std::string memory_text() {
  rlimit limit{};
  std::string text = fmt::format("host memory is used up: {:.1f} GiB of this machine are available",
                                 static_cast<double>(available_host_bytes()) / gib);
  if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
    text += fmt::format(", and a process may have {:.1f} GiB of addresses (ulimit -v)",
                        static_cast<double>(limit.rlim_cur) / gib);
  return text +
         "; use a smaller memory.micro_batch or fewer ranks on this machine, or give more "
         "memory";
}

ExitCode code_of(const std::error_code& error) {
  if (error == std::errc::no_such_file_or_directory || error == std::errc::permission_denied ||
      error == std::errc::not_a_directory)
    return ExitCode::no_input;
  if (error == std::errc::io_error || error == std::errc::no_space_on_device ||
      error == std::errc::read_only_file_system || error == std::errc::file_too_large)
    return ExitCode::io;
  return ExitCode::os;
}

}  // namespace

UserError user_error_of(const std::exception& fault) {
  if (const auto* user = dynamic_cast<const UserError*>(&fault)) return *user;
  if (dynamic_cast<const std::bad_alloc*>(&fault) != nullptr ||
      dynamic_cast<const std::length_error*>(&fault) != nullptr)  // of a vector
    return {ExitCode::config, memory_text()};
  if (const auto* system = dynamic_cast<const std::system_error*>(&fault))
    return {code_of(system->code()), system->what()};
  if (dynamic_cast<const SystemFault*>(&fault) != nullptr) return {ExitCode::os, fault.what()};
  return {ExitCode::software, fault.what()};
}

std::optional<UserError> fault_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const std::exception& error) {
    return user_error_of(error);
  }
  return std::nullopt;
}

void agree(Comm& comm, const std::optional<UserError>& mine) {
  std::optional<Comm::Fault> fault;
  if (mine) fault = {static_cast<int>(mine->code), mine->what()};
  fault = comm.agree(fault);
  if (fault) throw UserError(static_cast<ExitCode>(fault->code), fault->message);
}

void on_all(Comm& comm, const std::function<void()>& work) { agree(comm, fault_of(work)); }

void on_root(Comm& comm, const std::function<void()>& work) {
  agree(comm, comm.root() ? fault_of(work) : std::nullopt);
}

}  // namespace qpipe
