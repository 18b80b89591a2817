#include "pipeline/output/output.h"

#include <set>

#include "pipeline/files/agree.h"
#include "pipeline/output/shard_plan.h"

namespace qpipe {

namespace fs = std::filesystem;

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

}  // namespace qpipe
