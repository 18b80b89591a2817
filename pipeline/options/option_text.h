// Values as they are written in TOML.
#pragma once

#include <cstdint>
#include <string>

namespace qpipe {

std::string as_toml_value(const std::string& value);  // in quotes
std::string as_toml_value(std::int64_t value);
std::string as_toml_value(double value);  // the shortest text that reads back equal
std::string as_toml_value(bool value);

}  // namespace qpipe
