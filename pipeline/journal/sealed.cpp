#include "pipeline/journal/sealed.h"

#include <stdexcept>
#include <string_view>

#include "pipeline/files/input_file.h"
#include "pipeline/files/json_text.h"
#include "pipeline/files/xxh3.h"

namespace qpipe {

using Json = nlohmann::json;

std::string sealed(const Json& value) {
  return Json{{"xxh3", xxh3_of(value.dump())}, {"value", value}}.dump() + "\n";
}

Json unsealed(const std::string& text) {
  const Json file = parse_json(text, "the file", "it counts as absent");
  const Json& value = file.at("value");
  // Not the hash alone: some flipped bits give another text of the same value (1e5, 1E5).
  if (sealed(value) != text) throw std::runtime_error("another text");
  return value;
}

bool looks_sealed(const std::string& text) {
  constexpr std::string_view begin = R"({"value":)";
  constexpr std::string_view before_hash = R"(,"xxh3":")";
  constexpr std::string_view end = "\"}\n";
  constexpr std::size_t digits = 32;
  if (text.starts_with(begin)) return true;
  const std::size_t tail = before_hash.size() + digits + end.size();
  return text.size() > tail && text.ends_with(end) &&
         text.compare(text.size() - tail, before_hash.size(), before_hash) == 0;
}

Json read_sealed(const std::filesystem::path& path) try {
  return unsealed(read_text_file(path, most_json_bytes, InputFile::Links::refuse));
} catch (const std::exception&) {
  return {};
}

}  // namespace qpipe
