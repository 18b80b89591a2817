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
  const double step = bytes < std::int64_t{1} << 27 ? 0.1 * 0x1p20 : 0.01 * 0x1p30;
  if (std::abs(static_cast<double>(parse_size(text) - bytes)) > 0.51 * step)
    fail(std::to_string(bytes) + " is written " + text);
}
