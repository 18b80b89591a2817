#include "pipeline/files/json_text.h"

#include <fmt/format.h>

#include <set>
#include <vector>

#include "pipeline/files/error.h"
#include "pipeline/files/python_json.h"

namespace qpipe {

using nlohmann::json;

namespace {

constexpr int most_levels = 64;

}  // namespace

json parse_json(std::string_view text, const std::string& where, const std::string& advice,
                JsonKind kind) {
  const auto refuse = [&](const std::string& fault) {
    throw UserError(ExitCode::data, fmt::format("{} {}; {}", where, fault, advice));
  };
  // The library takes a NUL for the end of the text.
  if (const std::size_t nul = text.find('\0'); nul != std::string_view::npos)
    refuse(fmt::format("is not valid JSON (byte {})", nul + 1));
  std::vector<std::set<std::string>> keys;  // of every open object
  const auto check = [&](int depth, json::parse_event_t event, json& value) {
    switch (event) {
      case json::parse_event_t::object_start: keys.emplace_back(); [[fallthrough]];
      case json::parse_event_t::array_start:
        if (depth >= most_levels)
          refuse(fmt::format("is nested deeper than {} levels", most_levels));
        break;
      case json::parse_event_t::key: {
        if (kind == JsonKind::python) break;
        const auto& key = value.get_ref<const std::string&>();
        if (!keys.back().insert(key).second) refuse("has " + in_quotes(key) + " twice");
        break;
      }
      case json::parse_event_t::object_end: keys.pop_back(); break;
      default: break;
    }
    return true;
  };
  const StandardJson standard = kind == JsonKind::python ? standard_json(text) : StandardJson{};
  // The messages of the library quote the text, which may be long and have line breaks: only the
  // position is passed on.
  try {
    return json::parse(standard.text.empty() ? text : standard.text, check);
  } catch (const json::parse_error& error) {
    const bool utf8 = std::string_view(error.what()).find("UTF-8") != std::string_view::npos;
    refuse(fmt::format("{} (byte {})", utf8 ? "is not UTF-8" : "is not valid JSON",
                       standard.original_place(error.byte)));
  } catch (const json::out_of_range&) {
    refuse("has a number beyond the range of double");
  }
  return {};
}

json read_json_object(const std::filesystem::path& path) {
  const std::string text = read_text_file(path, most_json_bytes);
  json value = parse_json(text, path.string() + ":", "restore the original file", JsonKind::python);
  if (!value.is_object())
    throw UserError(ExitCode::data,
                    fmt::format("{}: is a JSON {}, not an object; restore the original file",
                                path.string(), value.type_name()));
  return value;
}

std::string kind_name(const json& value) {
  for (const char* number : {"NaN", "Infinity", "-Infinity"})
    if (value == json::array({number})) return number;
  return value.type_name();
}

std::string to_json_text(const json& value) {
  return value.dump(2, ' ', false, json::error_handler_t::replace) + "\n";
}

std::string in_quotes(const std::string& name) {
  constexpr std::size_t most = 200;
  if (name.size() <= most) return json(name).dump(-1, ' ', true, json::error_handler_t::replace);
  return json(name.substr(0, most)).dump(-1, ' ', true, json::error_handler_t::replace) + "...";
}

}  // namespace qpipe
