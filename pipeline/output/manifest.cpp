#include "pipeline/output/manifest.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "pipeline/files/durable_file.h"
#include "pipeline/files/error.h"
#include "pipeline/files/input_file.h"
#include "pipeline/files/json_text.h"
#include "pipeline/files/xxh3.h"

namespace qpipe {

namespace fs = std::filesystem;

namespace {

// Of the bytes, up to 64 pieces spaced evenly from the first to the last: shards of gigabytes are
// told apart in a moment, because other weights differ everywhere.
constexpr std::int64_t pieces = 64;
constexpr std::int64_t piece_bytes = 1 << 16;

struct Fingerprint {
  std::int64_t bytes = 0;
  std::string xxh3;
  bool operator==(const Fingerprint&) const = default;
};

Fingerprint fingerprint(const fs::path& path) {
  const InputFile file(path, InputFile::Links::refuse);
  const std::int64_t last = std::max<std::int64_t>(file.bytes() - piece_bytes, 0);
  const std::int64_t count = std::min(pieces, (file.bytes() + piece_bytes - 1) / piece_bytes);
  Xxh3 hash;
  std::vector<char> data(static_cast<std::size_t>(std::min(piece_bytes, file.bytes())));
  for (std::int64_t piece = 0; piece < count; ++piece) {
    const std::int64_t at = count == 1 ? 0 : last / (count - 1) * piece;
    file.read(data.data(), static_cast<std::int64_t>(data.size()), piece == count - 1 ? last : at,
              "contents");
    hash.add(data.data(), data.size());
  }
  return {file.bytes(), hash.hexadecimal()};
}

// Manifests come with downloads: a name may not lead out of the folder.
bool is_inside(const fs::path& folder, const fs::path& name) {
  if (name.empty() || name.is_absolute()) return false;
  fs::path path = folder;
  std::error_code error;
  for (auto part = name.begin(); part != name.end(); ++part) {
    if (*part == ".." || *part == "." || part->empty()) return false;
    path /= *part;
    if (std::next(part) != name.end() && !fs::is_directory(fs::symlink_status(path, error)))
      return false;
  }
  return true;
}

std::map<std::string, Fingerprint> read_manifest(const fs::path& folder) try {
  std::map<std::string, Fingerprint> files;
  const std::string text =
      read_text_file(folder / manifest_name, most_json_bytes, InputFile::Links::refuse);
  const nlohmann::json manifest = parse_json(text, manifest_name, "it is not used");
  for (const auto& [name, file] : manifest.at("files").items())
    files[name] = {integer_of<std::int64_t>(file.at("bytes")).value(),
                   file.at("xxh3").get<std::string>()};
  return files;
} catch (const std::exception&) {
  return {};
}

bool is_as_written(const fs::path& folder, const std::string& name, const Fingerprint& written) {
  try {
    return is_inside(folder, name) && fingerprint(folder / name) == written;
  } catch (const UserError&) {
    return false;
  }
}

}  // namespace

void write_manifest(const fs::path& folder, const FileNames& names) {
  nlohmann::json files = nlohmann::json::object();
  std::error_code error;
  for (const std::string& name : names) {
    if (name == manifest_name || !fs::is_regular_file(fs::symlink_status(folder / name, error)))
      continue;
    const Fingerprint file = fingerprint(folder / name);
    files[name] = {{"bytes", file.bytes}, {"xxh3", file.xxh3}};
  }
  write_text_file(folder / manifest_name, to_json_text({{"files", files}}));
}

FileNames files_of_manifest(const fs::path& folder) {
  FileNames names;
  for (const auto& [name, written] : read_manifest(folder))
    if (is_as_written(folder, name, written)) names.insert(name);
  if (!names.empty()) names.insert(manifest_name);
  return names;
}

FileNames names_in_manifest(const fs::path& folder) {
  FileNames names;
  for (const auto& [name, written] : read_manifest(folder))
    if (is_inside(folder, name)) names.insert(name);
  return names;
}

bool manifest_holds(const fs::path& folder) {
  const std::map<std::string, Fingerprint> files = read_manifest(folder);
  return !files.empty() && std::all_of(files.begin(), files.end(), [&](const auto& file) {
    return is_as_written(folder, file.first, file.second);
  });
}

}  // namespace qpipe
