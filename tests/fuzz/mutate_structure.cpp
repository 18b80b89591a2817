#include <array>
#include <cctype>
#include <random>

#include "tests/fuzz/fuzz.h"

namespace qpipe::fuzz {

namespace {

// A value, a bracket or anything between them, as a range of the text.
struct Token {
  enum class Kind { value, open, close, other } kind;
  std::size_t begin;
  std::size_t end;
};

bool is_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '+' || c == '.' ||
         c == '_';
}

std::size_t end_of_token(std::string_view text, std::size_t i) {
  if (text[i] == '"' || text[i] == '\'') {
    const char quote = text[i];
    for (++i; i < text.size() && text[i] != quote; ++i)
      if (text[i] == '\\') ++i;
    return std::min(i + 1, text.size());
  }
  if (!is_word(text[i])) return i + 1;
  while (i < text.size() && is_word(text[i])) ++i;
  return i;
}

std::vector<Token> tokens_of(std::string_view text) {
  std::vector<Token> tokens;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t end = end_of_token(text, i);
    const char c = text[i];
    const auto kind = c == '{' || c == '['                  ? Token::Kind::open
                      : c == '}' || c == ']'                ? Token::Kind::close
                      : c == '"' || c == '\'' || is_word(c) ? Token::Kind::value
                                                            : Token::Kind::other;
    tokens.push_back({kind, i, end});
    i = end;
  }
  return tokens;
}

constexpr std::array notorious = {"0",
                                  "1",
                                  "-1",
                                  "2",
                                  "3",
                                  "7",
                                  "8",
                                  "63",
                                  "64",
                                  "127",
                                  "128",
                                  "255",
                                  "256",
                                  "65535",
                                  "65536",
                                  "2147483647",
                                  "2147483648",
                                  "-2147483648",
                                  "4294967295",
                                  "4294967296",
                                  "9007199254740993",
                                  "9223372036854775807",
                                  "9223372036854775808",
                                  "-9223372036854775808",
                                  "18446744073709551615",
                                  "18446744073709551616",
                                  "1e308",
                                  "-1e308",
                                  "1e400",
                                  "5e-324",
                                  "0.1",
                                  "-0.0",
                                  "1.0",
                                  "NaN",
                                  "Infinity",
                                  "nan",
                                  "inf",
                                  "null",
                                  "true",
                                  "false",
                                  "[]",
                                  "{}",
                                  "\"\"",
                                  "\"x\"",
                                  "\"null\"",
                                  "\"..\"",
                                  "\"/\"",
                                  "\"a/b\"",
                                  "\"\\u0000\"",
                                  "\"\\n\"",
                                  "\"\\ud800\"",
                                  "\"\xff\"",
                                  "[[]]",
                                  "[0]",
                                  "[-1]",
                                  "[1,1]",
                                  "[9223372036854775807,2]",
                                  "[\"x\"]",
                                  "{\"a\":0}",
                                  "0x10",
                                  "1_000",
                                  "1979-05-27",
                                  "\"(a+)+$\"",
                                  "\"(\"",
                                  "\"auto\"",
                                  "\"F32\"",
                                  "\"BF16\"",
                                  "\"I64\""};

using Random = std::mt19937_64;

std::size_t below(std::size_t bound, Random& random) { return bound == 0 ? 0 : random() % bound; }

// The token's group: to the bracket that closes it, or the token alone.
std::size_t end_of_group(const std::vector<Token>& tokens, std::size_t first) {
  if (tokens[first].kind != Token::Kind::open) return tokens[first].end;
  int depth = 0;
  for (std::size_t i = first; i < tokens.size(); ++i) {
    if (tokens[i].kind == Token::Kind::open) ++depth;
    if (tokens[i].kind == Token::Kind::close && --depth == 0) return tokens[i].end;
  }
  return tokens.back().end;
}

std::string nested(const std::string& value, Random& random) {
  const std::size_t depth = std::array<std::size_t, 4>{1, 2, 63, 5000}[below(4, random)];
  const bool list = random() % 2 == 0;
  std::string text;
  for (std::size_t i = 0; i < depth; ++i) text += list ? "[" : "{\"a\":";
  text += value;
  for (std::size_t i = 0; i < depth; ++i) text += list ? ']' : '}';
  return text;
}

std::string changed_once(const std::string& text, Random& random) {
  const std::vector<Token> tokens = tokens_of(text);
  std::vector<std::size_t> handles;  // values and groups
  for (std::size_t i = 0; i < tokens.size(); ++i)
    if (tokens[i].kind == Token::Kind::value || tokens[i].kind == Token::Kind::open)
      handles.push_back(i);
  if (handles.empty()) return text + notorious[below(notorious.size(), random)];
  const auto pick = [&] { return handles[below(handles.size(), random)]; };
  const std::size_t first = pick();
  const std::size_t begin = tokens[first].begin;
  const std::size_t end = end_of_group(tokens, first);
  const std::string group = text.substr(begin, end - begin);
  const std::string before = text.substr(0, begin);
  const std::string after = text.substr(end);
  switch (random() % 8) {
    case 0:
    case 1:
    case 2: return before + notorious[below(notorious.size(), random)] + after;
    case 3: {  // the place of another
      const std::size_t other = pick();
      return before +
             text.substr(tokens[other].begin, end_of_group(tokens, other) - tokens[other].begin) +
             after;
    }
    case 4: return before + nested(group, random) + after;
    case 5: {  // a line or element twice
      const std::size_t stop = after.find_first_of(",\n");
      const std::size_t start = before.find_last_of(",\n{[");
      const std::string whole =
          before.substr(start == std::string::npos ? 0 : start + 1) + group + after.substr(0, stop);
      const std::string joint = stop != std::string::npos ? std::string(1, after[stop]) : ",";
      return before + group + after.substr(0, stop) + joint + whole +
             (stop == std::string::npos ? "" : after.substr(stop));
    }
    case 6: {  // none
      const std::size_t stop = after.find_first_of(",\n");
      return before + (stop == std::string::npos ? "" : after.substr(stop + 1));
    }
    default: {  // a digit or letter of it
      std::string other = group;
      char& c = other[below(other.size(), random)];
      c = static_cast<char>(random() % 4 == 0 ? random() % 256
                                              : "0123456789-_.eE\"[]{},:"[random() % 22]);
      return before + other + after;
    }
  }
}

}  // namespace

std::string mutate_structure(std::string_view text, std::uint64_t seed) {
  Random random(seed);
  std::string result(text);
  for (std::uint64_t changes = 1 + random() % 3; changes > 0; --changes)
    result = changed_once(result, random);
  return result;
}

}  // namespace qpipe::fuzz
