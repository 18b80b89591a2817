// Files that are packed: gzip by zlib, Zstandard and Parquet by the Python helper.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace qpipe {

// All of these throw UserError for what is damaged, and for what unpacks to more than `most` bytes.
std::string read_gzip(const std::filesystem::path& path, std::int64_t most);
std::string read_zstd(const std::filesystem::path& path, std::int64_t most);

// A JSON line for each row, of the columns that rows are read from: text_field, messages,
// conversations, prompt, completion, tools. `bytes`: the unpacked file; empty: it is at `path`.
std::string read_parquet(const std::filesystem::path& path, const std::string& bytes,
                         const std::string& text_field, std::int64_t most);

// What to do where there is more text than can be held.
inline constexpr const char* less_text =
    "cut it (head -c), or give token ids (.h5): calibration takes some hundred samples of it";

}  // namespace qpipe
