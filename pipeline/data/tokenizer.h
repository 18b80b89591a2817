// Text to token ids, by the Hugging Face `tokenizers` library in a Python process: exactly the ids
// that the model was trained on.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "pipeline/data/text_file.h"

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

// Special tokens are added to texts as tokenizer.json's post-processor says, so a
// beginning-of-sequence token comes only from there; rows go through the chat template beside it,
// which writes its own. Truncation and padding are off. tokenizer: tokenizer.json, or
// tokenizer.model (SentencePiece). The Python (python_helper.h) needs the packages tokenizers or
// sentencepiece, and jinja2 for chats. `source` names the text in messages. Throws UserError.
TokenizedText tokenize(const std::vector<Document>& documents,
                       const std::filesystem::path& tokenizer, const std::string& source,
                       const std::string& text_field = "text");

// What tokens depend on, of a model's folder: the tokenizer, its configuration and its chat
// templates, as far as they are there; sorted. The tokenizer is the first; none: an empty list.
std::vector<std::filesystem::path> tokenizer_files(const std::filesystem::path& folder);

}  // namespace qpipe
