// What qpipe says: results on stdout, everything else on stderr.
#pragma once

#include <fmt/format.h>

#include <string_view>
#include <utility>

namespace qpipe {

// stdin, stdout and stderr that are closed become /dev/null, before a file that is opened later
// takes their number and gets what is said.
void prepare_terminal();

// On stderr, at once. A terminal that is gone or a log's full disk never ends a run.
void tell(std::string_view text) noexcept;

// On stdout. Throws UserError(io) when it cannot be written, at the latest from finish_results().
void print_result(std::string_view text);
template <class First, class... Others>
void print_result(fmt::format_string<First, Others...> format, First&& first, Others&&... others) {
  print_result(fmt::format(format, std::forward<First>(first), std::forward<Others>(others)...));
}
void finish_results();

}  // namespace qpipe
