// JSON from files that are not trusted.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "pipeline/files/input_file.h"

namespace qpipe {

inline constexpr std::int64_t most_json_bytes =
    100'000'000;  // the safetensors format's limit of a header

// strict: RFC 8259, with no number beyond double and no key twice in an object (parsers differ in
// which one they keep).
// python: what json.loads and so transformers read, too: NaN and infinities, numbers beyond double
// (all these as ["NaN"], …: see python_json.h), half surrogate pairs; of a key that is there twice
// the last one.
enum class JsonKind { strict, python };

// UTF-8, at most 64 levels. Throws UserError(data) "WHERE FAULT; ADVICE".
nlohmann::json parse_json(std::string_view text, const std::string& where,
                          const std::string& advice, JsonKind kind = JsonKind::strict);

// The object that a file of at most most_json_bytes holds, as Python reads it. Throws UserError.
nlohmann::json read_json_object(const std::filesystem::path& path);

// Nothing where it is no integer or beyond T; get<T>() would take 2.5 and 1e300, too.
template <class T>
std::optional<T> integer_of(const nlohmann::json& value) {
  const bool fits = value.is_number_unsigned()
                        ? std::in_range<T>(value.get<std::uint64_t>())
                        : value.is_number_integer() && std::in_range<T>(value.get<std::int64_t>());
  return fits ? std::optional(value.get<T>()) : std::nullopt;
}

// What a value is, in words: "NaN", "string", "array", …
std::string kind_name(const nlohmann::json& value);

// As it is written into files: indented, with a line break at the end. What is not UTF-8 (a path
// may be anything) becomes U+FFFD.
std::string to_json_text(const nlohmann::json& value);

// A name from a file as it may stand in a one-line message: in quotes, control characters escaped,
// cut to 200 characters.
std::string in_quotes(const std::string& name);

}  // namespace qpipe
