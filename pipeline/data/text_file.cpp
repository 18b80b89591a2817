#include "pipeline/data/text_file.h"

#include <fmt/format.h>
#include <zlib.h>

#include <memory>
#include <string_view>

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

std::string read_plain(const fs::path& path) {
  const InputFile file(path);
  std::string text(static_cast<std::size_t>(file.bytes()), '\0');
  file.read(text.data(), file.bytes(), 0, "text");
  return text;
}

std::string read_compressed(const fs::path& path) {
  const InputFile readable(path);
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"), gzclose);
  const auto refuse = [&](const std::string& fault) {
    throw UserError(ExitCode::data,
                    fmt::format("{}: {}; copy or download the file again", path.string(), fault));
  };
  if (!file) throw UserError(ExitCode::no_input, path.string() + ": cannot be opened");
  // gzread hands on what is not gzip as it is.
  if (gzdirect(file.get()) != 0) refuse("is named .gz but is not a gzip file");
  std::string text;
  std::string block(1 << 20, '\0');
  int count = 0;
  while ((count = gzread(file.get(), block.data(), static_cast<unsigned>(block.size()))) > 0)
    text.append(block.data(), static_cast<std::size_t>(count));
  // A file that ends early gives its text, then Z_BUF_ERROR.
  int status = Z_OK;
  const char* fault = gzerror(file.get(), &status);
  if (count < 0 || status == Z_BUF_ERROR)
    refuse(fmt::format("damaged gzip data after {} bytes of text ({})", text.size(), fault));
  return text;
}

std::string document_of(std::string_view line, const std::string& where,
                        const std::string& text_field) {
  const nlohmann::json record = parse_json(line, where, "each line must be one JSON object");
  if (!record.is_object())
    throw UserError(ExitCode::data, where + ": is not a JSON object; each line must be one");
  const auto text = record.find(text_field);
  if (text == record.end()) {
    std::string names;
    for (const auto& [name, value] : record.items())
      names += (names.empty() ? "" : ", ") + in_quotes(name);
    throw UserError(ExitCode::data, fmt::format("{}: has no field {}; set text_field to one of: {}",
                                                where, in_quotes(text_field), names));
  }
  if (!text->is_string())
    throw UserError(ExitCode::data, fmt::format("{}: field {} is {}, not a string; set text_field",
                                                where, in_quotes(text_field), text->type_name()));
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
    documents.push_back(document_of(line, fmt::format("{}:{}", path.string(), number), text_field));
  }
  return documents;
}

}  // namespace

bool is_text_file(const fs::path& path) {
  const std::string extension = text_extension(path);
  return extension == ".txt" || extension == ".jsonl";
}

std::vector<std::string> read_documents(const fs::path& path, const std::string& text_field) {
  std::string text = is_compressed(path) ? read_compressed(path) : read_plain(path);
  if (text_extension(path) == ".jsonl") return read_json_lines(text, path, text_field);
  std::vector<std::string> documents;
  documents.push_back(std::move(text));
  return documents;
}

}  // namespace qpipe
