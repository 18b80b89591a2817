#include "pipeline/data/text_file.h"

#include <fmt/format.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <memory>
#include <string_view>
#include <utility>

#include "pipeline/data/unpacked_limit.h"
#include "pipeline/files/error.h"
#include "pipeline/files/input_file.h"
#include "pipeline/files/json_text.h"

namespace qpipe {

namespace fs = std::filesystem;

namespace {

bool is_compressed(const fs::path& path) { return path.extension() == ".gz"; }

// "a.jsonl.gz" -> ".jsonl"
std::string text_extension(const fs::path& path) {
  return (is_compressed(path) ? path.stem() : path).extension().string();
}

[[noreturn]] void refuse(const std::string& where, const std::string& fault) {
  throw UserError(ExitCode::data, where + ": " + fault);
}

std::int64_t most_plain_bytes() {
  return static_cast<std::int64_t>(sysconf(_SC_PHYS_PAGES)) / 4 * sysconf(_SC_PAGESIZE);
}

constexpr const char* less_text =
    "cut it (head -c), or give token ids (.h5): calibration takes some hundred samples of it";

std::string read_plain(const fs::path& path) {
  const InputFile file(path);
  check_text_bytes(file);
  std::string text(static_cast<std::size_t>(file.bytes()), '\0');
  file.read(text.data(), file.bytes(), 0, "text");
  return text;
}

std::string read_compressed(const fs::path& path) {
  const InputFile readable(path);
  const std::int64_t most = std::min(most_unpacked_bytes(readable.bytes()), most_plain_bytes());
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"), gzclose);
  const auto damaged = [&](const std::string& fault) {
    refuse(path.string(), fault + "; copy or download the file again");
  };
  if (!file) throw UserError(ExitCode::no_input, path.string() + ": cannot be opened");
  // gzread hands on what is not gzip as it is.
  if (gzdirect(file.get()) != 0) damaged("is named .gz but is not a gzip file");
  std::string text;
  std::string block(1 << 20, '\0');
  int count = 0;
  while ((count = gzread(file.get(), block.data(), static_cast<unsigned>(block.size()))) > 0) {
    if (std::cmp_greater(text.size() + static_cast<std::size_t>(count), most))
      refuse(path.string(), fmt::format("unpacks to more than {} bytes of text, from {} bytes; {}",
                                        most, readable.bytes(), less_text));
    text.append(block.data(), static_cast<std::size_t>(count));
  }
  // A file that ends early gives its text, then Z_BUF_ERROR.
  int status = Z_OK;
  const char* fault = gzerror(file.get(), &status);
  if (count < 0 || status == Z_BUF_ERROR)
    damaged(fmt::format("damaged gzip data after {} bytes of text ({})", text.size(), fault));
  return text;
}

// Chats: [{"role": …, "content": …}, …], or {"from": …, "value": …}.
bool is_list_of_messages(const nlohmann::json& value) {
  return value.is_array() && !value.empty() && value.front().is_object();
}

// `texts`: names of the fields that do hold a string.
[[noreturn]] void refuse_messages(const std::string& where, const std::string& field,
                                  const std::string& texts) {
  refuse(where,
         fmt::format("field {} is a list of messages, and chats are not read; write each chat as "
                     "one text, in Python: json.dumps({{\"text\": tokenizer.apply_chat_template("
                     "row[{}], tokenize=False)}}){}",
                     in_quotes(field), in_quotes(field),
                     texts.empty() ? "" : ", or set text_field to one of: " + texts));
}

std::string fields_with_strings(const nlohmann::json& record) {
  std::string names;
  for (const auto& [name, value] : record.items())
    if (value.is_string()) names += (names.empty() ? "" : ", ") + in_quotes(name);
  return names;
}

[[noreturn]] void refuse_without_field(const nlohmann::json& record, const std::string& where,
                                       const std::string& text_field) {
  const std::string texts = fields_with_strings(record);
  for (const auto& [name, value] : record.items())
    if (is_list_of_messages(value)) refuse_messages(where, name, texts);
  refuse(where,
         fmt::format("has no field {}{}", in_quotes(text_field),
                     texts.empty() ? " and no other with a string; each line must have its text in "
                                     "one"
                                   : "; set text_field to one of: " + texts));
}

std::string document_of(std::string_view line, const std::string& where,
                        const std::string& text_field) {
  const nlohmann::json record =
      parse_json(line, where + ":", "each line must be one JSON object", JsonKind::python);
  if (!record.is_object()) refuse(where, "is not a JSON object; each line must be one");
  const auto text = record.find(text_field);
  if (text == record.end()) refuse_without_field(record, where, text_field);
  if (is_list_of_messages(*text)) refuse_messages(where, text_field, fields_with_strings(record));
  if (!text->is_string())
    refuse(where, fmt::format("field {} is {}, not a string; remove the line, or set text_field to "
                              "the field with the text",
                              in_quotes(text_field), kind_name(*text)));
  return text->get<std::string>();
}

std::vector<std::string> read_json_lines(std::string_view text, const fs::path& path,
                                         const std::string& text_field) {
  std::vector<std::string> documents;
  std::int64_t number = 0;
  while (!text.empty()) {
    ++number;
    const std::size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    if (std::cmp_greater(line.size(), most_json_bytes))
      refuse(fmt::format("{}:{}", path.string(), number),
             fmt::format("the line has {} bytes (limit {}); each line must be one document",
                         line.size(), most_json_bytes));
    documents.push_back(document_of(line, fmt::format("{}:{}", path.string(), number), text_field));
  }
  return documents;
}

}  // namespace

bool is_text_file(const fs::path& path) {
  const std::string extension = text_extension(path);
  return extension == ".txt" || extension == ".jsonl";
}

void check_text_bytes(const InputFile& file) {
  if (file.bytes() > most_plain_bytes())
    refuse(file.path().string(), fmt::format("has {} bytes, more than a quarter of this machine's "
                                             "memory ({}); {}",
                                             file.bytes(), most_plain_bytes(), less_text));
}

std::vector<std::string> read_documents(const fs::path& path, const std::string& text_field) {
  std::string text = is_compressed(path) ? read_compressed(path) : read_plain(path);
  if (text_extension(path) == ".jsonl") return read_json_lines(text, path, text_field);
  std::vector<std::string> documents;
  documents.push_back(std::move(text));
  return documents;
}

}  // namespace qpipe
