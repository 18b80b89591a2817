// Sizes and numbers that people write: a size is above zero, and its text is read back near it.
#include <cmath>

#include "pipeline/options/sizes.h"
#include "tests/fuzz/fuzz.h"

void qpipe::fuzz::run_input(std::string_view input) {
  const std::int64_t bytes = parse_size(std::string(input));
  if (bytes <= 0) fail("a size of " + std::to_string(bytes));
  // Written with one digit after the point in MiB, or two in GiB; beyond 2^62 nothing is read.
  const std::string text = size_text(bytes);
  if (bytes > std::int64_t{1} << 61 || text == "0.0 MiB") return;
  const std::int64_t again = parse_size(text);
  if (std::abs(static_cast<double>(again - bytes)) >
      0x1p20 * 0.051 + 0.006 * static_cast<double>(bytes))
    fail(std::to_string(bytes) + " is written " + text);
}
