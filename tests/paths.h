#pragma once

#include <filesystem>

// Where this clone's tests and oracles lie, known to paths.cpp alone: the other tests' objects are
// the same in every clone, so ccache finds them.

// This folder.
std::filesystem::path tests_folder();

// QPIPE_SHARED (CMake): may be absent.
std::filesystem::path shared_folder();
