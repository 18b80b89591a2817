// Text to token ids, by the Hugging Face `tokenizers` library in a Python process: exactly the ids
// that the model was trained on.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace qpipe {

// The ids of all documents, one document after another without a separator.
struct TokenizedText {
  std::vector<std::int64_t> counts;  // of each document
  std::vector<std::int32_t> ids;     // Σ counts
};

// The bytes that the helper writes and the cache keeps, little-endian: number of documents i64,
// counts i64, ids i32.
std::string to_bytes(const TokenizedText& text);
std::optional<TokenizedText> from_bytes(const std::string& bytes);

// scripts/qpipe_tokenize.py: ../share/qpipe/ beside the program's folder where installed, else the
// source tree's scripts/. Throws UserError when neither is there.
std::filesystem::path tokenizer_helper();

// Special tokens are added as tokenizer.json's post-processor says, so a beginning-of-sequence
// token comes only from there; truncation and padding are off. The Python is $QPIPE_PYTHON, else
// .venv/bin/python of the source tree, else python3; it needs the package `tokenizers`. `source`
// names the text in messages. Throws UserError.
TokenizedText tokenize(const std::vector<std::string>& documents,
                       const std::filesystem::path& tokenizer_json, const std::string& source);

}  // namespace qpipe
