#include "pipeline/files/agree.h"

namespace qpipe {

std::optional<UserError> fault_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const UserError& error) {
    return error;
  } catch (const std::exception& error) {
    return UserError(ExitCode::software, error.what());
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
