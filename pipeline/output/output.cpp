#include "pipeline/output/output.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <set>

#include "pipeline/files/agree.h"
#include "pipeline/output/shard_plan.h"

namespace qpipe {

namespace fs = std::filesystem;

namespace {

bool is_weight_file(const fs::path& path) {
  const std::string name = path.filename().string();
  for (const char* suffix : {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack",
                             ".onnx", ".safetensors.index.json", ".bin.index.json", ".tmp"})
    if (name.ends_with(suffix)) return true;
  return false;
}

bool is_written_here(const fs::path& path) {
  const std::string name = path.filename().string();
  return name == "config.json" || name == "quantize_config.json" || name == "quant_config.json" ||
         name == "README.md" || name == "quantize_report.json";
}

}  // namespace

void prepare_output_folder(const fs::path& folder, bool overwrite) {
  std::error_code error;
  if (fs::exists(folder, error) && !fs::is_directory(folder, error))
    throw UserError(ExitCode::cannot_create,
                    folder.string() + ": exists and is not a folder; choose another output.path");
  if (fs::exists(folder, error) && !fs::is_empty(folder, error)) {
    if (!overwrite)
      throw UserError(
          ExitCode::cannot_create,
          folder.string() +
              ": is not empty; choose another output.path or set output.overwrite = true");
    for (const auto& entry : fs::directory_iterator(folder))
      if (is_weight_file(entry.path()) || is_written_here(entry.path()))
        fs::remove(entry.path(), error);
  }
  fs::create_directories(folder, error);
  if (error)
    throw UserError(ExitCode::cannot_create,
                    folder.string() + ": cannot create the output folder: " + error.message());
  if (access(folder.c_str(), W_OK) != 0)
    throw UserError(ExitCode::cannot_create,
                    folder.string() + ": is not writable: " + std::strerror(errno));
}

ShardSet::ShardSet(const fs::path& folder, const std::vector<TensorInfo>& tensors,
                   std::int64_t max_shard_bytes, Comm& comm) {
  const auto plan = plan_shards(tensors, max_shard_bytes);
  std::vector<std::vector<TensorInfo>> members(plan.size());
  for (std::size_t shard = 0; shard < plan.size(); ++shard)
    for (const std::size_t i : plan[shard]) {
      members[shard].push_back(tensors[i]);
      shard_of_[tensors[i].name] = shard;
      total_bytes_ += tensors[i].bytes();
    }
  if (plan.size() > 1) index_ = make_index(tensors, plan);

  const auto mine = [&](std::size_t shard) {
    return static_cast<int>(shard % static_cast<std::size_t>(comm.size())) == comm.rank();
  };
  std::map<std::size_t, SafetensorsWriter> writers;
  const auto leftover = SafetensorsWriter::Leftover::keep;
  const auto open_shards = [&](SafetensorsWriter::Role role) {
    for (std::size_t shard = 0; shard < plan.size(); ++shard)
      if (mine(shard) == (role == SafetensorsWriter::Role::owner))
        writers.emplace(shard, SafetensorsWriter(folder / shard_name(shard, plan.size()),
                                                 members[shard], role, leftover));
  };
  on_all(comm, [&] { open_shards(SafetensorsWriter::Role::owner); });
  on_all(comm, [&] { open_shards(SafetensorsWriter::Role::helper); });
  for (auto& [shard, writer] : writers) writers_.push_back(std::move(writer));
}

void ShardSet::write(const std::string& name, const void* data) {
  writers_.at(shard_of_.at(name)).write(name, data);
}

void ShardSet::write(const std::string& name, std::int64_t piece_bytes,
                     const SafetensorsWriter::Pieces& next) {
  writers_.at(shard_of_.at(name)).write(name, piece_bytes, next);
}

void ShardSet::adopt(const std::string& name) { writers_.at(shard_of_.at(name)).adopt(name); }

bool ShardSet::read(const std::string& name, void* to) const {
  return writers_.at(shard_of_.at(name)).read(name, to);
}

void ShardSet::sync(const std::vector<std::string>& names) const {
  std::set<std::size_t> shards;
  for (const std::string& name : names) shards.insert(shard_of_.at(name));
  for (const std::size_t shard : shards) writers_[shard].sync();
}

void ShardSet::finish(Comm& comm) {
  on_all(comm, [&] {
    for (SafetensorsWriter& writer : writers_) writer.flush();
  });
  std::vector<double> written;
  for (const SafetensorsWriter& writer : writers_)
    written.push_back(static_cast<double>(writer.written_bytes()));
  const std::vector<double> by_rank = comm.all_gather(written);
  on_all(comm, [&] {
    for (std::size_t shard = 0; shard < writers_.size(); ++shard) {
      if (static_cast<int>(shard % static_cast<std::size_t>(comm.size())) != comm.rank()) continue;
      double elsewhere = -written[shard];
      for (std::size_t rank = 0; rank < static_cast<std::size_t>(comm.size()); ++rank)
        elsewhere += by_rank[rank * writers_.size() + shard];
      writers_[shard].finish(static_cast<std::int64_t>(elsewhere));
    }
  });
}

namespace {

// Weights of other frameworks that a loader of the output must not find.
bool is_foreign_weight_file(const fs::path& path) {
  const std::string name = path.filename().string();
  for (const char* suffix : {".index.json", ".ckpt", ".npz", ".ot", ".onnx_data", ".tflite",
                             ".nemo", ".pdparams", ".mlmodel", ".pkl"})
    if (name.ends_with(suffix)) return true;
  return false;
}

// A regular file of the model: in its folder, or behind a link into a hub's cache, whose
// models--ORG--NAME/ has the files in blobs/ and the links to them in snapshots/REVISION/.
bool belongs_to_model(const fs::directory_entry& entry, const fs::path& folder) {
  std::error_code error;
  if (!entry.is_regular_file(error)) return false;
  const fs::path target = fs::canonical(entry.path(), error);
  if (error) return false;
  const fs::path model = fs::canonical(folder, error);
  const fs::path inside = target.lexically_relative(model);
  if (!inside.empty() && *inside.begin() != "..") return true;
  const fs::path blobs = target.parent_path();
  if (blobs.filename() == "blobs" && fs::is_directory(blobs.parent_path() / "snapshots", error))
    return true;
  spdlog::warn("{} is not copied: it is a link out of the model's folder", entry.path().string());
  return false;
}

void copy_over(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::copy_file(from, to, fs::copy_options::overwrite_existing, error);
  if (error)
    throw UserError(ExitCode::io,
                    to.string() + ": cannot copy " + from.string() + ": " + error.message());
}

}  // namespace

void copy_auxiliary_files(const fs::path& from, const fs::path& to) {
  for (const auto& entry : fs::directory_iterator(from)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(".") || is_weight_file(entry.path()) ||
        is_foreign_weight_file(entry.path()) || is_written_here(entry.path()))
      continue;
    if (belongs_to_model(entry, from)) copy_over(entry.path(), to / name);
  }
  const fs::path templates = from / "additional_chat_templates";
  std::error_code error;
  if (!fs::is_directory(fs::symlink_status(templates, error))) return;
  for (const auto& entry : fs::directory_iterator(templates)) {
    if (entry.path().extension() != ".jinja" || !belongs_to_model(entry, from)) continue;
    fs::create_directories(to / templates.filename(), error);
    copy_over(entry.path(), to / templates.filename() / entry.path().filename());
  }
}

}  // namespace qpipe
