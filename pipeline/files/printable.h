// Text that may hold what is not ours (names from a checkpoint, paths, other programs' messages),
// as a terminal, a log and a one-line message can bear it.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace qpipe {

inline constexpr std::size_t most_printable = 1500;

// Control characters, line breaks included, and bytes that are not UTF-8 become escapes as C writes
// them (\n, \t, \x1b), characters that turn the direction of text \u202e; of a text of more than
// `most` bytes the middle is left out ("..."), because the beginning says what and the end what to
// do. Printable text is returned as it is, so that once more changes nothing.
std::string printable(std::string_view text, std::size_t most = most_printable);

}  // namespace qpipe
