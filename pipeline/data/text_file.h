// Documents from text files.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace qpipe {

// .txt, .jsonl, .txt.gz, .jsonl.gz
bool is_text_file(const std::filesystem::path& path);

// .txt: the whole file is one document, byte for byte. .jsonl: each line that is not blank is an
// object whose string `text_field` is a document. .gz: gzip (one or several members). Throws
// UserError that names the file, and for .jsonl the line.
std::vector<std::string> read_documents(const std::filesystem::path& path,
                                        const std::string& text_field);

}  // namespace qpipe
