// What qpipe leaves to libraries of Python runs in a process of its own: scripts/helper.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "pipeline/data/child_process.h"

namespace qpipe {

// ../share/qpipe beside the program's folder, whether it is there or not.
std::filesystem::path installed_share();

// scripts/helper: ../share/qpipe/helper beside the program's folder where installed, else the
// source tree's. Throws UserError when neither is there.
std::filesystem::path python_helper();

// Its modules, sorted by name.
std::vector<std::filesystem::path> python_helper_files();

// PYTHON -I -B HELPER words…, to be given input, limits and variables. The Python is $QPIPE_PYTHON,
// else .venv/bin/python of the source tree, else python3. Isolated: neither the current folder nor
// PYTHON* variables bring in modules.
ChildProgram python_program(const std::vector<std::string>& words);

// "NAME=value" of those that are set.
std::vector<std::string> variables_that_are_set(const std::vector<std::string>& names);

// Throws UserError when the current folder is gone.
std::string absolute_path(const std::filesystem::path& path);

// What a process said last on standard error.
std::string last_line(std::string text);

}  // namespace qpipe
