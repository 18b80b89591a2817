#include "pipeline/data/token_cache.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "pipeline/data/python_helper.h"
#include "pipeline/data/text_file.h"
#include "pipeline/files/error.h"
#include "pipeline/files/input_file.h"
#include "pipeline/files/new_file.h"
#include "pipeline/files/printable.h"
#include "pipeline/files/xxh3.h"

namespace qpipe {

namespace fs = std::filesystem;

namespace {

constexpr std::size_t hash_digits = 32;
constexpr std::int64_t most_tokenizer_bytes = std::int64_t{1} << 30;

// Lengths go before contents, so that two lists of parts never give the same bytes.
void add_part(Xxh3& hash, const std::string& part) {
  const std::uint64_t bytes = part.size();
  hash.add(&bytes, sizeof bytes);
  hash.add(part.data(), part.size());
}

void add_file(Xxh3& hash, const fs::path& path) {
  const InputFile file(path);
  const std::int64_t bytes = file.bytes();
  hash.add(&bytes, sizeof bytes);
  std::string block(1 << 20, '\0');
  for (std::int64_t at = 0; at < bytes;) {
    const std::int64_t count = std::min(bytes - at, static_cast<std::int64_t>(block.size()));
    file.read(block.data(), count, at, "contents");
    hash.add(block.data(), static_cast<std::size_t>(count));
    at += count;
  }
}

std::string cache_key(const fs::path& text, const std::string& text_field,
                      const std::vector<fs::path>& tokenizer_files) {
  Xxh3 hash;
  // .jsonl.gz and .txt.gz of the same bytes are different documents.
  add_part(hash, text.stem().extension().string() + text.extension().string());
  add_part(hash, text_field);
  add_file(hash, text);
  for (const fs::path& path : tokenizer_files) {
    if (const InputFile tokenizer(path); tokenizer.bytes() > most_tokenizer_bytes)
      throw UserError(
          ExitCode::data,
          fmt::format("{}: has {} bytes, which no tokenizer needs (limit {}); restore the "
                      "model's original file",
                      path.string(), tokenizer.bytes(), most_tokenizer_bytes));
    add_part(hash, path.filename().string());
    add_file(hash, path);
  }
  for (const fs::path& path : python_helper_files()) add_file(hash, path);
  return hash.hexadecimal();
}

fs::path user_cache_folder() {
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache != nullptr && *cache == '/')
    return fs::path(cache) / "qpipe";
  if (const char* home = std::getenv("HOME"); home != nullptr && *home == '/')
    return fs::path(home) / ".cache/qpipe";
  return {};
}

// Nobody but this user and root has a say in it: the hash in an entry protects against damage, not
// against others.
bool is_trusted(const InputFile& file) {
  struct stat status {};
  return fstat(file.descriptor(), &status) == 0 &&
         (status.st_uid == geteuid() || status.st_uid == 0) &&
         (status.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

// A cache entry: the hash of the rest in hexadecimal, then to_bytes(text).
std::optional<TokenizedText> read_entry(const fs::path& path) {
  std::error_code error;
  if (!fs::exists(fs::symlink_status(path, error))) return std::nullopt;
  std::string fault = "are damaged";
  try {
    const InputFile file(path, InputFile::Links::refuse);  // nor a FIFO, which could make this wait
    if (!is_trusted(file)) {
      fault = "are not used: others may have written them";
    } else {
      check_text_bytes(file);  // of another file in its place
      std::string bytes(static_cast<std::size_t>(file.bytes()), '\0');
      file.read(bytes.data(), file.bytes(), 0, "token ids");
      if (bytes.size() > hash_digits) {
        const std::string payload = bytes.substr(hash_digits);
        if (bytes.compare(0, hash_digits, xxh3_of(payload)) == 0)
          if (std::optional<TokenizedText> text = from_bytes(payload)) return text;
      }
    }
  } catch (const UserError& unreadable) {
    fault = fmt::format("are not used ({})", unreadable.what());
  }
  spdlog::warn("{}: the cached token ids {}; making them again", printable(path.string()), fault);
  return std::nullopt;
}

void write_entry(const fs::path& path, const TokenizedText& text) {
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  const std::string payload = to_bytes(text);
  try {
    NewFile file(path, NewFile::Rights::owner_writes);
    const std::string hash = xxh3_of(payload);
    file.write(hash.data(), hash.size());
    file.write(payload.data(), payload.size());
    file.sync();  // a full disk shows now
    file.publish();
  } catch (const UserError& fault) {
    spdlog::warn("cannot keep the token ids; they will be made again next time: {}", fault.what());
  }
}

}  // namespace

TokenizedText tokenize_once(const fs::path& path, const std::string& text_field,
                            const std::vector<fs::path>& tokenizer_files, fs::path folder) {
  check_text_bytes(InputFile(path));  // before all of it is hashed
  const std::string key = cache_key(path, text_field, tokenizer_files);
  if (folder.empty()) folder = user_cache_folder();
  const fs::path entry = folder / (key + ".tokens");
  if (!folder.empty())
    if (std::optional<TokenizedText> text = read_entry(entry)) return std::move(*text);
  TokenizedText text = tokenize(read_documents(path, text_field), tokenizer_files.front(),
                                path.string(), text_field);
  if (!folder.empty()) write_entry(entry, text);
  return text;
}

}  // namespace qpipe
