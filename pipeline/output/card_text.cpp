#include "pipeline/output/card_text.h"

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>
#include <string_view>

#include "pipeline/files/printable.h"

namespace qpipe {

namespace {

constexpr std::size_t most = 300;

bool is_alphanumeric(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0; }

}  // namespace

// printable() leaves valid UTF-8 without control characters, for which JSON's quotes are YAML's.
std::string yaml_text(const std::string& text) {
  return nlohmann::json(printable(text, most)).dump();
}

std::string markdown_text(const std::string& text) {
  constexpr std::string_view markup = "\\`*_[]<>|&#~!$@:";
  const std::string plain = printable(text, most);
  std::string result;
  for (std::size_t i = 0; i < plain.size(); ++i) {
    // Inside of a word "_" and ":" say nothing, and names are full of them.
    const bool inside = i > 0 && i + 1 < plain.size() && is_alphanumeric(plain[i - 1]) &&
                        is_alphanumeric(plain[i + 1]);
    const bool harmless = ((plain[i] == '_' || plain[i] == ':') && inside) ||
                          (plain[i] == ':' && i + 1 < plain.size() && plain[i + 1] == ' ');
    if (markup.find(plain[i]) != std::string_view::npos && !harmless) result += '\\';
    result += plain[i];
  }
  return result;
}

std::string code_span(const std::string& text) {
  const std::string plain = printable(text, most);
  std::size_t longest = 0;
  for (std::size_t i = 0, run = 0; i < plain.size(); ++i) {
    run = plain[i] == '`' ? run + 1 : 0;
    longest = std::max(longest, run);
  }
  const std::string fence(longest + 1, '`');
  const bool padded = longest > 0 || plain.starts_with(' ') || plain.empty();
  const std::string space = padded ? " " : "";
  return fence + space + plain + space + fence;
}

}  // namespace qpipe
