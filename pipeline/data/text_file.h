// Documents from text files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "pipeline/files/input_file.h"

namespace qpipe {

// A text; or a row (from 1, in .jsonl the line) whose JSON `text` is: a chat, or a prompt with its
// completion.
struct Document {
  Document() = default;
  Document(std::string whole_text) : text(std::move(whole_text)) {}
  Document(std::string json, std::int64_t number) : text(std::move(json)), row(number) {}
  bool operator==(const Document&) const = default;

  std::string text;
  std::int64_t row = 0;  // 0: a text
};

// .txt, .jsonl (or .json), .parquet, each also with .gz or .zst.
bool is_text_file(const std::filesystem::path& path);

// "FILE:7", or for Parquet "FILE: row 7".
std::string place_of_row(const std::string& source, const std::string& row);

// Throws UserError when the file has more bytes than a quarter of the machine's memory: the text,
// its documents and their tokens are there together.
void check_text_bytes(const InputFile& file);

// .txt: the whole file is one document, byte for byte. .jsonl: each line that is not blank is an
// object, as Python reads JSON. Its string `text_field` is a document. Where that is a list of
// messages, or is not there and messages, conversations, or prompt and completion are, the row is
// one. .parquet: rows likewise. .gz: gzip (one or several members); .zst: Zstandard (one or several
// frames). Text of more than a quarter of the machine's memory is refused, and what unpacks to
// more than most_unpacked_bytes. Throws UserError that names the file, and for rows the line; rows
// with none of the fields are counted.
std::vector<Document> read_documents(const std::filesystem::path& path,
                                     const std::string& text_field);

}  // namespace qpipe
