#include "pipeline/output/source_card.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <sstream>
#include <string_view>

#include "pipeline/files/error.h"
#include "pipeline/files/input_file.h"

namespace qpipe {

namespace {

using Values = std::map<std::string, std::vector<std::string>>;

constexpr std::size_t most_languages = 200;

bool is_plain(std::string_view text, std::string_view more) {
  constexpr std::size_t longest = 300;
  return !text.empty() && text.size() <= longest &&
         std::all_of(text.begin(), text.end(), [&](char c) {
           return std::isalnum(static_cast<unsigned char>(c)) != 0 ||
                  more.find(c) != std::string_view::npos;
         });
}

std::string trimmed(std::string text) {
  text.erase(0, std::min(text.find_first_not_of(" \t"), text.size()));
  text.erase(text.find_last_not_of(" \t\r") + 1);
  const bool quoted = text.size() > 1 && text.front() == text.back() &&
                      (text.front() == '"' || text.front() == '\'');
  return quoted ? text.substr(1, text.size() - 2) : text;
}

// "a" or "[a, b]".
std::vector<std::string> values_of(const std::string& text) {
  if (text.empty()) return {};
  if (text.front() != '[' || text.back() != ']') return {trimmed(text)};
  std::vector<std::string> values;
  std::istringstream parts(text.substr(1, text.size() - 2));
  for (std::string part; std::getline(parts, part, ',');) values.push_back(trimmed(part));
  return values;
}

// Keys at the left edge, each with the value behind it or the list below it.
Values front_matter(std::istringstream card) {
  Values values;
  std::string line;
  std::string key;
  if (!std::getline(card, line) || trimmed(line) != "---") return {};
  while (std::getline(card, line) && trimmed(line) != "---") {
    const std::size_t colon = line.find(':');
    if (const std::string item = trimmed(line); item.starts_with("- ")) {
      if (!key.empty()) values[key].push_back(trimmed(item.substr(2)));
    } else if (colon != std::string::npos && is_plain(line.substr(0, colon), "_-")) {
      key = line.substr(0, colon);
      values[key] = values_of(trimmed(line.substr(colon + 1)));
    }
  }
  return values;
}

std::string only(const Values& values, const char* key, std::string_view more) {
  const auto found = values.find(key);
  if (found == values.end() || found->second.size() != 1) return {};
  return is_plain(found->second.front(), more) ? found->second.front() : "";
}

}  // namespace

SourceCard read_source_card(const std::filesystem::path& folder) try {
  constexpr std::int64_t most_bytes = 10'000'000;
  const Values values =
      front_matter(std::istringstream(read_text_file(folder / "README.md", most_bytes)));
  SourceCard card;
  card.license = only(values, "license", "-._+");
  card.license_name = only(values, "license_name", "-._+ ");
  card.license_link = only(values, "license_link", "-._+:/~%#?=&");
  card.pipeline_tag = only(values, "pipeline_tag", "-");
  if (const auto found = values.find("language"); found != values.end())
    for (const std::string& language : found->second)
      if (is_plain(language, "-") && card.languages.size() < most_languages)
        card.languages.push_back(language);
  return card;
} catch (const UserError&) {  // the card is not needed
  return {};
}

}  // namespace qpipe
