#include "pipeline/data/text_file.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "pipeline/data/packed_file.h"
#include "pipeline/data/unpacked_limit.h"
#include "pipeline/files/error.h"
#include "pipeline/files/input_file.h"
#include "pipeline/files/json_text.h"

namespace qpipe {

namespace fs = std::filesystem;

namespace {

enum class Packing { none, gzip, zstd };

Packing packing_of(const fs::path& path) {
  const fs::path extension = path.extension();
  return extension == ".gz" ? Packing::gzip : extension == ".zst" ? Packing::zstd : Packing::none;
}

// "a.jsonl.gz" -> ".jsonl"
std::string text_extension(const fs::path& path) {
  return (packing_of(path) == Packing::none ? path : path.stem()).extension().string();
}

[[noreturn]] void refuse(const std::string& where, const std::string& fault) {
  throw UserError(ExitCode::data, where + ": " + fault);
}

std::int64_t most_plain_bytes() {
  return static_cast<std::int64_t>(sysconf(_SC_PHYS_PAGES)) / 4 * sysconf(_SC_PAGESIZE);
}

std::string read_plain(const fs::path& path) {
  const InputFile file(path);
  check_text_bytes(file);
  std::string text(static_cast<std::size_t>(file.bytes()), '\0');
  file.read(text.data(), file.bytes(), 0, "text");
  return text;
}

// Of an unpacked text, from a file of so many bytes.
std::int64_t most_text_bytes(const fs::path& path) {
  return std::min(most_unpacked_bytes(InputFile(path).bytes()), most_plain_bytes());
}

std::string read_unpacked(const fs::path& path) {
  switch (packing_of(path)) {
    case Packing::gzip: return read_gzip(path, most_text_bytes(path));
    case Packing::zstd: return read_zstd(path, most_text_bytes(path));
    case Packing::none: break;
  }
  return read_plain(path);
}

std::string read_rows_of_parquet(const fs::path& path, const std::string& text_field) {
  const std::string unpacked =
      packing_of(path) == Packing::none ? std::string() : read_unpacked(path);
  return read_parquet(path, unpacked, text_field, most_text_bytes(path));
}

// Chats: [{"role": …, "content": …}, …], or {"from": …, "value": …}.
bool is_list_of_messages(const nlohmann::json& value) {
  return value.is_array() && !value.empty() && value.front().is_object();
}

bool has_list(const nlohmann::json& record, const char* field) {
  const auto found = record.find(field);
  return found != record.end() && found->is_array();
}

std::string fields_with_strings(const nlohmann::json& record) {
  std::string names;
  for (const auto& [name, value] : record.items())
    if (value.is_string()) names += (names.empty() ? "" : ", ") + in_quotes(name);
  return names;
}

// The rows of a file, one after the other.
class Rows {
 public:
  Rows(const fs::path& path, const std::string& text_field)
      : path_(path.string()), text_field_(text_field) {}

  void add(std::string_view line, std::int64_t number) {
    ++count_;
    const std::string where = place_of_row(path_, std::to_string(number));
    const nlohmann::json record =
        parse_json(line, where + ":", "each line must be one JSON object", JsonKind::python);
    if (!record.is_object()) refuse(where, "is not a JSON object; each line must be one");
    const auto text = record.find(text_field_);
    const bool has_text = text != record.end() && !text->is_null();
    if (has_text && text->is_string()) {
      documents_.emplace_back(text->get<std::string>());
    } else if (has_text && !is_list_of_messages(*text)) {
      refuse(where,
             fmt::format("field {} is {}, not a string; remove the line, or set text_field to "
                         "the field with the text",
                         in_quotes(text_field_), kind_name(*text)));
    } else if (has_text || has_list(record, "messages") || has_list(record, "conversations") ||
               (record.contains("prompt") && record.contains("completion"))) {
      documents_.emplace_back(std::string(line), number);
    } else {
      if (without_fields_.empty()) texts_of_first_ = fields_with_strings(record);
      without_fields_.push_back(number);
    }
  }

  std::vector<Document> take() {
    if (!without_fields_.empty()) refuse_without_fields();
    return std::move(documents_);
  }

 private:
  [[noreturn]] void refuse_without_fields() const {
    constexpr std::size_t named = 10;
    std::string others;
    for (std::size_t i = 1; i < std::min(without_fields_.size(), named); ++i)
      others += fmt::format("{}{}", i == 1 ? "" : ", ", without_fields_[i]);
    if (without_fields_.size() > named) others += ", ...";
    refuse(place_of_row(path_, std::to_string(without_fields_.front())),
           fmt::format("has no field {}, nor messages, conversations, or prompt with completion{}; "
                       "{}",
                       in_quotes(text_field_),
                       others.empty() ? ""
                                      : fmt::format(" (as {} of {} rows: also {})",
                                                    without_fields_.size(), count_, others),
                       texts_of_first_.empty() ? "no other field holds a string: remove such rows"
                                               : "set text_field to one of: " + texts_of_first_));
  }

  std::string path_;
  std::string text_field_;
  std::vector<Document> documents_;
  std::vector<std::int64_t> without_fields_;
  std::string texts_of_first_;
  std::int64_t count_ = 0;
};

std::vector<Document> read_json_lines(std::string_view text, const fs::path& path,
                                      const std::string& text_field) {
  Rows rows(path, text_field);
  std::int64_t number = 0;
  while (!text.empty()) {
    ++number;
    const std::size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    if (std::cmp_greater(line.size(), most_json_bytes))
      refuse(place_of_row(path.string(), std::to_string(number)),
             fmt::format("the line has {} bytes (limit {}); each line must be one document",
                         line.size(), most_json_bytes));
    rows.add(line, number);
  }
  return rows.take();
}

}  // namespace

bool is_text_file(const fs::path& path) {
  const std::string extension = text_extension(path);
  return extension == ".txt" || extension == ".jsonl" || extension == ".json" ||
         extension == ".parquet";
}

std::string place_of_row(const std::string& source, const std::string& row) {
  return source + (text_extension(source) == ".parquet" ? ": row " : ":") + row;
}

void check_text_bytes(const InputFile& file) {
  if (file.bytes() > most_plain_bytes())
    refuse(file.path().string(), fmt::format("has {} bytes, more than a quarter of this machine's "
                                             "memory ({}); {}",
                                             file.bytes(), most_plain_bytes(), less_text));
}

std::vector<Document> read_documents(const fs::path& path, const std::string& text_field) {
  const std::string extension = text_extension(path);
  if (extension == ".parquet")
    return read_json_lines(read_rows_of_parquet(path, text_field), path, text_field);
  std::string text = read_unpacked(path);
  if (extension != ".txt") return read_json_lines(text, path, text_field);
  std::vector<Document> documents;
  documents.emplace_back(std::move(text));
  return documents;
}

}  // namespace qpipe
