#include "pipeline/files/python_json.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <utility>

namespace qpipe {

namespace {

constexpr std::string_view in_a_number = "0123456789+-.eE";

// The code unit that \uXXXX at `at` stands for, 0 where there is no such escape.
unsigned escaped_unit(std::string_view text, std::size_t at) {
  if (text.size() < at + 6 || text[at] != '\\' || text[at + 1] != 'u') return 0;
  unsigned unit = 0;
  for (std::size_t i = at + 2; i < at + 6; ++i) {
    const char c = text[i];
    const bool digit = c >= '0' && c <= '9';
    const char letter = static_cast<char>(c | 0x20);
    if (!digit && (letter < 'a' || letter > 'f')) return 0;
    unit = unit << 4 | static_cast<unsigned>(digit ? c - '0' : letter - 'a' + 10);
  }
  return unit;
}

bool is_high(unsigned unit) { return unit >= 0xD800 && unit < 0xDC00; }
bool is_low(unsigned unit) { return unit >= 0xDC00 && unit < 0xE000; }

// RFC 8259's grammar: -? (0 | [1-9][0-9]*) (. [0-9]+)? ([eE] [+-]? [0-9]+)?
bool is_number(std::string_view text) {
  const auto digits = [&] {
    const std::size_t count = std::min(text.find_first_not_of("0123456789"), text.size());
    text.remove_prefix(count);
    return count;
  };
  const auto one_of = [&](std::string_view characters) {
    const bool found = !text.empty() && characters.find(text.front()) != std::string_view::npos;
    if (found) text.remove_prefix(1);
    return found;
  };
  one_of("-");
  const bool zero = text.starts_with('0');
  const std::size_t whole = digits();
  if (whole == 0 || (zero && whole > 1)) return false;
  if (one_of(".") && digits() == 0) return false;
  if (one_of("eE")) {
    one_of("+-");
    if (digits() == 0) return false;
  }
  return text.empty();
}

class Rewriter {
 public:
  explicit Rewriter(std::string_view text) : text_(text) {}

  StandardJson run() {
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (c == '"')
        skip_string();
      else if (c == 'N')
        word("NaN", "[\"NaN\"]");
      else if (c == 'I')
        word("Infinity", "[\"Infinity\"]");
      else if (c == '-' && text_.substr(at_ + 1).starts_with('I'))
        word("-Infinity", "[\"-Infinity\"]");
      else if (c == '-' || (c >= '0' && c <= '9'))
        number();
      else
        ++at_;
    }
    if (copied_ != 0) result_.text += text_.substr(copied_);
    return std::move(result_);
  }

 private:
  void replace(std::size_t length, std::string_view by) {
    result_.text += text_.substr(copied_, at_ - copied_);
    result_.text += by;
    if (by.size() != length) result_.longer.push_back({result_.text.size(), by.size() - length});
    at_ += length;
    copied_ = at_;
  }

  void word(std::string_view word, std::string_view by) {
    if (text_.substr(at_).starts_with(word))
      replace(word.size(), by);
    else
      ++at_;
  }

  // Short ones without an exponent are not looked at twice.
  void number() {
    const std::size_t end = std::min(text_.find_first_not_of(in_a_number, at_), text_.size());
    const std::string_view digits = text_.substr(at_, end - at_);
    constexpr std::size_t always_fits = 300;
    if (digits.size() > always_fits || digits.find_first_of("eE") != std::string_view::npos) {
      const double value = std::strtod(std::string(digits).c_str(), nullptr);
      if (std::isinf(value) && is_number(digits)) {
        // Shorter than the number where that has many digits: blanks keep the places.
        std::string by = value > 0 ? "[\"Infinity\"]" : "[\"-Infinity\"]";
        if (by.size() < digits.size()) by.resize(digits.size(), ' ');
        return replace(digits.size(), by);
      }
    }
    at_ = end;
  }

  void skip_string() {
    ++at_;
    while (at_ < text_.size() && text_[at_] != '"') {
      if (text_[at_] != '\\') {
        ++at_;
        continue;
      }
      const unsigned unit = escaped_unit(text_, at_);
      if (is_high(unit) && is_low(escaped_unit(text_, at_ + 6)))
        at_ += 12;
      else if (is_high(unit) || is_low(unit))
        replace(6, "\\ufffd");
      else
        at_ += 2;
    }
    at_ = std::min(at_ + 1, text_.size());
  }

  std::string_view text_;
  std::size_t at_ = 0;
  std::size_t copied_ = 0;  // what lies before is in the result
  StandardJson result_;
};

}  // namespace

std::size_t StandardJson::original_place(std::size_t place) const {
  std::size_t more = 0;
  for (const Longer& part : longer)
    if (part.at <= place) more += part.bytes;
  return place - std::min(more, place);
}

StandardJson standard_json(std::string_view text) { return Rewriter(text).run(); }

}  // namespace qpipe
