#include "pipeline/files/json_text.h"

#include <fmt/format.h>

#include <functional>
#include <unordered_set>
#include <vector>

#include "pipeline/files/error.h"
#include "pipeline/files/python_json.h"

namespace qpipe {

using nlohmann::json;

namespace {

constexpr std::size_t most_levels = 64;

// Walks through a text without building anything: the library's own callback for it looks through
// all of an object's entries after each of them.
class Check : public nlohmann::json_sax<json> {
 public:
  // refuse: throws.
  Check(JsonKind kind, const StandardJson& standard,
        const std::function<void(const std::string&)>& refuse)
      : kind_(kind), standard_(standard), refuse_(refuse) {}

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override { return open(); }
  bool start_array(std::size_t) override { return open(); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    if (kind_ == JsonKind::strict && !levels_.back().insert(name).second)
      refuse_("has " + in_quotes(name) + " twice");
    return true;
  }
  // The messages of the library quote the text, which may be long and have line breaks: only the
  // position is passed on.
  bool parse_error(std::size_t byte, const std::string&, const json::exception& error) override {
    if (dynamic_cast<const json::out_of_range*>(&error) != nullptr)
      refuse_("has a number beyond the range of double");
    const bool utf8 = std::string_view(error.what()).find("UTF-8") != std::string_view::npos;
    refuse_(fmt::format("{} (byte {})", utf8 ? "is not UTF-8" : "is not valid JSON",
                        standard_.original_place(byte)));
    return false;
  }

 private:
  bool open() {
    if (levels_.size() >= most_levels)
      refuse_(fmt::format("is nested deeper than {} levels", most_levels));
    levels_.emplace_back();
    return true;
  }
  bool close() {
    levels_.pop_back();
    return true;
  }

  JsonKind kind_;
  const StandardJson& standard_;
  const std::function<void(const std::string&)>& refuse_;
  std::vector<std::unordered_set<std::string>> levels_;  // keys of every open object
};

}  // namespace

json parse_json(std::string_view text, const std::string& where, const std::string& advice,
                JsonKind kind) {
  const std::function<void(const std::string&)> refuse = [&](const std::string& fault) {
    throw UserError(ExitCode::data, fmt::format("{} {}; {}", where, fault, advice));
  };
  // The library takes a NUL for the end of the text.
  if (const std::size_t nul = text.find('\0'); nul != std::string_view::npos)
    refuse(fmt::format("is not valid JSON (byte {})", nul + 1));
  const StandardJson standard = kind == JsonKind::python ? standard_json(text) : StandardJson{};
  if (!standard.text.empty()) text = standard.text;
  Check check(kind, standard, refuse);
  json::sax_parse(text, &check);
  return json::parse(text);
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
