// What the harnesses share. A harness is a file NAME_fuzz.cpp with run_input(): it may refuse what
// it is given by a UserError, but neither with the code of a defect nor by any other exception.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace qpipe::fuzz {

// The harness.
void run_input(std::string_view input);

// Calls run_input() and ends the process by SIGABRT, with what was wrong on stderr, where an
// exception comes out of it that no user may see.
void expect_answer(std::string_view input);

// Ends the process by SIGABRT with `what`: a property does not hold.
[[noreturn]] void fail(const std::string& what);

// A file of this process's own folder, in memory where the machine has such a file system. The
// folder is there until the process ends.
std::filesystem::path scratch_folder();
std::filesystem::path write_file(const std::string& name, std::string_view bytes);

// The parts between lines "--- " (a separator that seeds and dictionary have), so that one input
// can be several files. Always `count` parts, the last ones empty.
std::vector<std::string_view> parts_of(std::string_view input, std::size_t count);

// A change that keeps most of what JSON, TOML, JSONL and lists of lines are made of: a value
// becomes another, notorious one, or two change places; a line, element or bracketed group is
// removed, repeated or nested. The same for the same seed.
std::string mutate_structure(std::string_view text, std::uint64_t seed);

}  // namespace qpipe::fuzz
