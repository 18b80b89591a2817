#include "pipeline/journal/finished_layers.h"

#include <algorithm>
#include <optional>

#include "pipeline/files/xxh3.h"

namespace qpipe {

namespace {

bool is_on_disk(const LayerRecord& record, const Journal& journal,
                const std::map<std::string, TensorInfo>& tensors, const ShardSet& shards) try {
  if (record.part == 0) static_cast<void>(findings_in(record));
  std::vector<unsigned char> data;
  for (const auto& [name, hash] : record.tensors) {
    data.resize(static_cast<std::size_t>(tensors.at(name).bytes()));
    if (!shards.read(name, data.data()) || xxh3_of(data) != hash) return false;
  }
  if (record.held.empty()) return true;
  const SafetensorsFile file(journal.folder() / (record.stem() + ".safetensors"));
  for (const auto& [name, hash] : record.held) {
    data.resize(static_cast<std::size_t>(file.info(name).bytes()));
    file.read(name, data.data());
    if (xxh3_of(data) != hash) return false;
  }
  return true;
} catch (const std::exception&) {  // a file is missing or short, findings or a tensor unknown
  return false;
}

// All parts for one number of parts, or fewer.
std::vector<LayerRecord> parts_of(const Journal& journal, std::int64_t layer, int parts) {
  std::map<int, LayerRecord> by_part;
  for (const LayerRecord& record : journal.records())
    if (record.layer == layer && record.parts == parts) by_part[record.part] = record;
  std::vector<LayerRecord> result;
  for (const auto& [part, record] : by_part) result.push_back(record);
  return result;
}

}  // namespace

FinishedLayers find_finished_layers(const Journal& journal,
                                    const std::map<std::string, TensorInfo>& tensors,
                                    ShardSet& shards, Comm& comm) {
  std::map<std::int64_t, std::vector<int>> candidates;  // layer → numbers of parts
  for (const LayerRecord& record : journal.records())
    if (record.part == 0 &&
        static_cast<int>(parts_of(journal, record.layer, record.parts).size()) == record.parts)
      candidates[record.layer].push_back(record.parts);

  std::vector<double> mine;  // layer, parts, layer, parts, …
  for (const auto& [layer, numbers] : candidates) {
    if (layer % comm.size() != comm.rank()) continue;
    for (const int number : numbers) {
      const std::vector<LayerRecord> parts = parts_of(journal, layer, number);
      if (!std::all_of(parts.begin(), parts.end(), [&](const LayerRecord& r) {
            return is_on_disk(r, journal, tensors, shards);
          }))
        continue;
      for (const LayerRecord& part : parts)
        for (const auto& [name, hash] : part.tensors) shards.adopt(name);
      mine.insert(mine.end(), {static_cast<double>(layer), static_cast<double>(number)});
      break;
    }
  }
  const std::vector<double> all = comm.all_gather(mine);
  FinishedLayers finished;
  for (std::size_t i = 0; i < all.size(); i += 2) {
    const auto layer = static_cast<std::int64_t>(all[i]);
    finished[layer].parts = parts_of(journal, layer, static_cast<int>(all[i + 1]));
  }
  return finished;
}

}  // namespace qpipe
