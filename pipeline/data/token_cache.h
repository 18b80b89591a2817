// Text is tokenized once: the ids are kept in a folder under a hash of everything that they depend
// on.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "pipeline/data/tokenizer.h"

namespace qpipe {

// The ids of the text file's documents. The key is the XXH3-128 of the file's bytes and kind,
// text_field, the bytes of the tokenizer's files (tokenizer_files, not empty) and the helper's.
// `folder` empty: $XDG_CACHE_HOME/qpipe, else ~/.cache/qpipe. An entry that is damaged, or that
// others than this user and root may write, is made again; a folder that cannot be written is a
// warning. Throws UserError for the file, the tokenizer and the helper.
TokenizedText tokenize_once(const std::filesystem::path& path, const std::string& text_field,
                            const std::vector<std::filesystem::path>& tokenizer_files,
                            std::filesystem::path folder);

}  // namespace qpipe
