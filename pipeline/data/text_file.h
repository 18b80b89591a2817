// Documents from text files.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "pipeline/files/input_file.h"

namespace qpipe {

// .txt, .jsonl, .txt.gz, .jsonl.gz
bool is_text_file(const std::filesystem::path& path);

// Throws UserError when the file has more bytes than a quarter of the machine's memory: the text,
// its documents and their tokens are there together.
void check_text_bytes(const InputFile& file);

// .txt: the whole file is one document, byte for byte. .jsonl: each line that is not blank is an
// object, as Python reads JSON, whose string `text_field` is a document. .gz: gzip (one or several
// members). Text of more than a quarter of the machine's memory is refused, and what unpacks to
// more than most_unpacked_bytes. Throws UserError that names the file, and for .jsonl the line.
std::vector<std::string> read_documents(const std::filesystem::path& path,
                                        const std::string& text_field);

}  // namespace qpipe
