#include "pipeline/files/pattern.h"

#include <fmt/format.h>
#include <re2/re2.h>

#include <optional>
#include <utility>
#include <vector>

#include "pipeline/files/error.h"

namespace qpipe {

namespace {

constexpr std::int64_t most_memory = std::int64_t{16} << 20;  // of one compiled expression

std::unique_ptr<RE2> compile(std::string_view text) {
  RE2::Options options;
  options.set_log_errors(false);  // they are returned
  options.set_never_capture(true);
  options.set_max_mem(most_memory);
  return std::make_unique<RE2>(re2::StringPiece(text.data(), text.size()), options);
}

// What a text that begins with a group has at its outermost level.
struct Scan {
  std::size_t group = 0;      // one past the ')' that closes the first '('; 0 without one
  bool alternatives = false;  // it has a '|' outside of every group
};

Scan scan(std::string_view text) {
  Scan result;
  std::size_t depth = 0;
  bool in_class = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '\\') {
      ++i;
    } else if (in_class) {
      const bool first = text[i - 1] == '[' || text.substr(i - 2, 2) == "[^";  // as in "[]a]"
      in_class = c != ']' || first;
    } else if (c == '[') {
      in_class = true;
    } else if (c == '(') {
      ++depth;
    } else if (c == ')' && depth > 0 && --depth == 0 && result.group == 0) {
      result.group = i + 1;
    } else if (c == '|' && depth == 0) {
      result.alternatives = true;
    }
  }
  return result;
}

struct Parsed {
  // Expressions that the name's begin must match (true) or must not match (false).
  std::vector<std::pair<bool, std::unique_ptr<RE2>>> ahead;
  std::unique_ptr<RE2> rest;
  std::string fault;
};

Parsed parse(std::string_view text, Anchor anchor) {
  Parsed parsed;
  if (text.size() > most_pattern_bytes) {
    parsed.fault = fmt::format("has {} bytes, more than {}", text.size(), most_pattern_bytes);
    return parsed;
  }
  const auto checked = [&](std::string_view part) {
    std::unique_ptr<RE2> compiled = compile(part);
    if (!compiled->ok() && parsed.fault.empty())
      parsed.fault =
          fmt::format("is no regular expression that can be matched here: {}", compiled->error());
    return compiled;
  };
  constexpr std::size_t opening = 3;  // of "(?!" and "(?="
  while (anchor == Anchor::begin && (text.starts_with("(?!") || text.starts_with("(?="))) {
    const Scan found = scan(text);
    if (found.group == 0 || found.alternatives) break;  // RE2 says what is wrong
    parsed.ahead.emplace_back(text[2] == '=',
                              checked(text.substr(opening, found.group - opening - 1)));
    text.remove_prefix(found.group);
  }
  parsed.rest = checked(text);
  return parsed;
}

bool found(const RE2& expression, std::string_view name, RE2::Anchor anchor) {
  return expression.Match(re2::StringPiece(name.data(), name.size()), 0, name.size(), anchor,
                          nullptr, 0);
}

}  // namespace

struct Pattern::State {
  Parsed parsed;
  RE2::Anchor anchor;
};

Pattern::Pattern(const std::string& text, Anchor anchor)
    : state_(new State{parse(text, anchor),
                       anchor == Anchor::begin ? RE2::ANCHOR_START : RE2::UNANCHORED}) {
  if (!state_->parsed.fault.empty())
    throw UserError(ExitCode::config,
                    fmt::format("\"{}\": {}", printable(text, 200), state_->parsed.fault));
}

Pattern::~Pattern() = default;
Pattern::Pattern(Pattern&&) noexcept = default;
Pattern& Pattern::operator=(Pattern&&) noexcept = default;

bool Pattern::matches(std::string_view name) const {
  for (const auto& [must, expression] : state_->parsed.ahead)
    if (found(*expression, name, RE2::ANCHOR_START) != must) return false;
  return found(*state_->parsed.rest, name, state_->anchor);
}

std::string pattern_fault(const std::string& text, Anchor anchor) {
  return parse(text, anchor).fault;
}

}  // namespace qpipe
