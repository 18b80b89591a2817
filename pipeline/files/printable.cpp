#include "pipeline/files/printable.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace qpipe {

namespace {

// The bytes of the UTF-8 character that `text` begins with, and its number; 0 bytes where it begins
// with none (RFC 3629: no overlong forms, no surrogates, at most U+10FFFF).
struct Character {
  std::size_t bytes = 0;
  std::uint32_t code = 0;
};

Character first_character(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text[0]);
  if (lead < 0x80) return {1, lead};
  const std::size_t bytes = lead < 0xC2   ? 0
                            : lead < 0xE0 ? 2
                            : lead < 0xF0 ? 3
                            : lead < 0xF5 ? 4
                                          : 0;
  if (bytes == 0 || text.size() < bytes) return {};
  std::uint32_t code = lead & (0x7FU >> bytes);
  for (std::size_t i = 1; i < bytes; ++i) {
    const auto next = static_cast<unsigned char>(text[i]);
    if ((next & 0xC0) != 0x80) return {};
    code = code << 6 | (next & 0x3FU);
  }
  constexpr std::uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = code >= 0xD800 && code < 0xE000;
  if (code < least[bytes] || code > 0x10FFFF || surrogate) return {};
  return {bytes, code};
}

// Characters that change how the text around them is shown: embeddings, overrides and isolates of
// direction, separators of lines and paragraphs.
bool turns_text(std::uint32_t code) {
  return code == 0x200E || code == 0x200F || (code >= 0x2028 && code <= 0x202E) ||
         (code >= 0x2066 && code <= 0x2069);
}

std::string escaped(Character character, std::string_view text) {
  if (character.bytes == 0) return fmt::format("\\x{:02x}", static_cast<unsigned char>(text[0]));
  if (character.code == '\n') return "\\n";
  if (character.code == '\r') return "\\r";
  if (character.code == '\t') return "\\t";
  if (character.code < 0x20 || (character.code >= 0x7F && character.code < 0xA0))
    return fmt::format("\\x{:02x}", character.code);
  if (turns_text(character.code)) return fmt::format("\\u{:04x}", character.code);
  return std::string(text.substr(0, character.bytes));
}

}  // namespace

std::string printable(std::string_view text, std::size_t most) {
  constexpr std::string_view gap = " ... ";
  // Of a text of megabytes only what may be kept is looked at: an escape is longer than its bytes.
  std::string shorter;
  if (text.size() > 2 * most + 8) {
    shorter = std::string(text.substr(0, most + 4)) + std::string(text.substr(text.size() - most));
    text = shorter;
  }
  std::string result;
  std::vector<std::size_t> begins;  // of every character in `result`: where it may be cut
  for (std::size_t at = 0; at < text.size();) {
    const std::string_view rest = text.substr(at);
    const Character character = first_character(rest);
    begins.push_back(result.size());
    result += escaped(character, rest);
    at += character.bytes == 0 ? 1 : character.bytes;
  }
  if (result.size() <= most || most <= gap.size()) return result;
  const std::size_t kept = most - gap.size();
  const std::size_t head = *(std::upper_bound(begins.begin(), begins.end(), kept * 3 / 4) - 1);
  const auto tail = std::lower_bound(begins.begin(), begins.end(), result.size() - (kept - head));
  return result.substr(0, head) + std::string(gap) +
         (tail == begins.end() ? "" : result.substr(*tail));
}

}  // namespace qpipe
