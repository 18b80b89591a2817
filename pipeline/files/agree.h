// Faults of one rank become every rank's, before the others wait for what it did not do.
#pragma once

#include <functional>
#include <optional>

#include "launch/comm.h"
#include "pipeline/files/error.h"

namespace qpipe {

// What a user is told of an exception: memory that is used up and calls of the system that failed
// are no defects of qpipe (ExitCode::software), all else is.
UserError user_error_of(const std::exception& fault);

// What `work` throws, as user_error_of has it.
std::optional<UserError> fault_of(const std::function<void()>& work);

// Throws the fault of the lowest rank that has one, on all ranks. Collective.
void agree(Comm& comm, const std::optional<UserError>& mine);

// Runs `work` on every rank, or on rank 0 for all, and agrees. Collective.
void on_all(Comm& comm, const std::function<void()>& work);
void on_root(Comm& comm, const std::function<void()>& work);

}  // namespace qpipe
