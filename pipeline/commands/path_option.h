// Paths among the arguments.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "pipeline/files/user_path.h"

namespace qpipe {

// `~` at the beginning, and what says nothing at the end: shells leave --out=~/x as it is.
inline const CLI::Validator as_path{[](std::string& text) {
                                      text = user_path(text, "command line");
                                      return std::string();
                                    },
                                    ""};

}  // namespace qpipe
