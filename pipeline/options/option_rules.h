// What an option's value may be, beyond its type. Each rule has text() for the help ("" when there
// is nothing to say) and fault(value): "" or why the value is refused.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace qpipe {

struct AnyValue {
  std::string text() const { return {}; }
  template <class T>
  std::string fault(const T&) const {
    return {};
  }
};

struct OneOf {
  std::vector<std::string> values;
  std::string text() const;
  std::string fault(const std::string& value) const;
};

struct OneOfNumbers {
  std::vector<std::int64_t> values;
  std::string text() const;
  std::string fault(std::int64_t value) const;
};

// low <= value <= high. Numbers with a fraction are finite, too.
struct Within {
  std::int64_t low;
  std::int64_t high = std::numeric_limits<std::int64_t>::max();
  std::string text() const;
  std::string fault(std::int64_t value) const;
  std::string fault(double value) const;
};

// low < value < high.
struct Inside {
  double low;
  double high;
  std::string text() const;
  std::string fault(double value) const;
};

// -1 or a positive multiple of 32, at most most_group_size.
struct GroupSize {
  std::string text() const;
  std::string fault(std::int64_t value) const;
};

struct Required {
  std::string text() const;
  std::string fault(const std::string& value) const;
};

// A path as user_path reads it: `~/` is expanded when it is read.
struct AnyPath : AnyValue {};
struct RequiredPath : Required {};

struct RegularExpression {
  std::string text() const;
  std::string fault(const std::string& value) const;
};

// "5GB", "500MB", … as parse_size reads them.
struct ByteSize {
  std::string text() const;
  std::string fault(const std::string& value) const;
};

// "auto", or a size as ByteSize.
struct SizeOrAuto {
  std::string text() const;
  std::string fault(const std::string& value) const;
};

// A boolean in TOML that is kept as "true", "false" or "" (unset).
struct OptionalBoolean {
  std::string text() const { return {}; }
  std::string fault(const std::string& value) const;
};

}  // namespace qpipe
