#include "tests/paths.h"

std::filesystem::path tests_folder() { return QPIPE_TESTS; }

std::filesystem::path shared_folder() { return QPIPE_SHARED; }
