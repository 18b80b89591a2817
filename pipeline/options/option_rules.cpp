#include "pipeline/options/option_rules.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "pipeline/files/pattern.h"
#include "pipeline/files/suggest.h"
#include "pipeline/options/limits.h"
#include "pipeline/options/sizes.h"

namespace qpipe {

namespace {

std::string must_be(const std::string& text) { return "must be " + text; }

}  // namespace

std::string OneOf::text() const { return fmt::format("one of {}", fmt::join(values, ", ")); }

std::string OneOf::fault(const std::string& value) const {
  if (std::find(values.begin(), values.end(), value) != values.end()) return {};
  const std::string near = nearest_name(value, values);
  return must_be(text()) + (near.empty() ? "" : "; did you mean \"" + near + "\"?");
}

std::string OneOfNumbers::text() const { return fmt::format("one of {}", fmt::join(values, ", ")); }

std::string OneOfNumbers::fault(std::int64_t value) const {
  return std::find(values.begin(), values.end(), value) != values.end() ? "" : must_be(text());
}

std::string Within::text() const {
  return high == std::numeric_limits<std::int64_t>::max() ? fmt::format("at least {}", low)
                                                          : fmt::format("{} to {}", low, high);
}

std::string Within::fault(std::int64_t value) const {
  if (value < low) return must_be(fmt::format("at least {}", low));
  return value <= high ? "" : must_be(fmt::format("at most {}", high));
}

std::string Within::fault(double value) const {
  if (!std::isfinite(value) || value < static_cast<double>(low))
    return must_be(fmt::format("at least {}", low));
  return value <= static_cast<double>(high) ? "" : must_be(fmt::format("at most {}", high));
}

std::string Inside::text() const { return fmt::format("above {} and below {}", low, high); }

std::string Inside::fault(double value) const {
  return value > low && value < high ? "" : must_be(text());
}

std::string GroupSize::text() const { return "-1 or a multiple of 32"; }

std::string GroupSize::fault(std::int64_t value) const {
  if (value > most_group_size) return must_be(fmt::format("at most {}", most_group_size));
  if (value == -1 || (value > 0 && value % 32 == 0)) return {};
  return must_be(text()) +
         (value > 0 ? fmt::format("; the next one is {}", (value / 32 + 1) * 32) : "");
}

std::string Required::text() const { return "required"; }

std::string Required::fault(const std::string& value) const {
  return value.empty() ? "must not be empty" : "";
}

std::string RegularExpression::text() const {
  return "required, a regular expression (RE2's syntax)";
}

std::string RegularExpression::fault(const std::string& value) const {
  if (value.empty()) return "must not be empty";
  return pattern_fault(value, Anchor::anywhere);
}

std::string ByteSize::text() const { return "a size such as \"500MB\" or \"5GB\""; }

std::string ByteSize::fault(const std::string& value) const {
  return size_of(value) ? "" : must_be(text());
}

std::string SizeOrAuto::text() const { return "auto, or a size such as \"22GiB\""; }

std::string SizeOrAuto::fault(const std::string& value) const {
  return value == "auto" || ByteSize{}.fault(value).empty() ? "" : must_be(text());
}

std::string OptionalBoolean::fault(const std::string& value) const {
  return value.empty() || value == "true" || value == "false" ? "" : must_be("true or false");
}

}  // namespace qpipe
