// Sizes as people write and read them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace qpipe {

// "5GB" → 5·10⁹, "500 MiB" → 500·2²⁰, "4096" and "4096B" bytes. Nothing for other texts, zero and
// what is 2^53 bytes or more.
std::optional<std::int64_t> size_of(const std::string& text);

// The same. Throws UserError(ExitCode::config) where there is nothing.
std::int64_t parse_size(const std::string& text);

// "4.35 GiB", "12.0 MiB"
std::string size_text(std::int64_t bytes);

}  // namespace qpipe
