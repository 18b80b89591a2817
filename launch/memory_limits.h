// Memory that this process may still take where a limit stands below what the machine has.
#pragma once

#include <cstdint>
#include <string>

namespace qpipe {

inline constexpr std::int64_t no_memory_limit = INT64_MAX;

// Under the limits of the process's control groups (memory.max and memory.high of version 2,
// memory.limit_in_bytes of version 1) and of all groups above them: the least of limit − usage +
// page cache, which makes room when it must; no_memory_limit without a limit. All processes of a
// group share it. root: a folder in place of "/", for tests.
std::int64_t control_group_room_bytes(const std::string& root = "");

// Under `ulimit -v` and `ulimit -d` (RLIMIT_AS, RLIMIT_DATA), which count what is mapped, used or
// not; no_memory_limit without one. Each process has its own.
std::int64_t address_space_room_bytes();

}  // namespace qpipe
