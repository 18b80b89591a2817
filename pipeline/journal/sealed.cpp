#include "pipeline/journal/sealed.h"

#include <stdexcept>

#include "pipeline/files/input_file.h"
#include "pipeline/files/json_text.h"
#include "pipeline/files/xxh3.h"

namespace qpipe {

using Json = nlohmann::json;

std::string sealed(const Json& value) {
  const std::string text = value.dump();
  Xxh3 hash;
  hash.add(text.data(), text.size());
  return Json{{"xxh3", hash.hexadecimal()}, {"value", value}}.dump() + "\n";
}

Json unsealed(const std::string& text) {
  const Json file = parse_json(text, "the file", "it counts as absent");
  const Json& value = file.at("value");
  // Not the hash alone: some flipped bits give another text of the same value (1e5, 1E5).
  if (sealed(value) != text) throw std::runtime_error("another text");
  return value;
}

Json read_sealed(const std::filesystem::path& path) try {
  return unsealed(read_text_file(path, most_json_bytes, InputFile::Links::refuse));
} catch (const std::exception&) {
  return {};
}

}  // namespace qpipe
