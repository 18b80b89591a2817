// Whatever the text: what comes out is UTF-8 of one line without control characters, not longer
// than asked, and is left as it is the second time.
#include <nlohmann/json.hpp>

#include "pipeline/files/json_text.h"
#include "pipeline/files/printable.h"
#include "tests/fuzz/fuzz.h"

void qpipe::fuzz::run_input(std::string_view input) {
  const std::size_t most = input.empty() ? most_printable : 100 + 7 * (input[0] & 0xff);
  const std::string text = printable(input, most);
  if (text.size() > most + 16) fail("longer than asked: " + std::to_string(text.size()));
  for (const char c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) fail("a control character");
  try {
    static_cast<void>(nlohmann::json(text).dump());
  } catch (const nlohmann::json::exception&) {
    fail("not UTF-8");
  }
  if (printable(text, most) != text) fail("changes once more");
  if (in_quotes(std::string(input)).find('\n') != std::string::npos) fail("a line break in quotes");
}
