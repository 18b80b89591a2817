// The layers that an earlier run of the same identity has finished, checked against what stands on
// the disk.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "pipeline/journal/journal.h"
#include "pipeline/output/output.h"
#include "pipeline/output/report.h"

namespace qpipe {

// None (null) where the layer was cast. Throws nlohmann::json::exception for another shape.
inline LayerFindings findings_in(const LayerRecord& record) {
  return record.findings.is_null() ? LayerFindings{} : record.findings.get<LayerFindings>();
}

struct FinishedLayer {
  std::vector<LayerRecord> parts;

  LayerFindings findings() const { return findings_in(parts.front()); }
};

using FinishedLayers = std::map<std::int64_t, FinishedLayer>;

// Layers whose every tensor has its hash. Collective: the ranks share the reading, and rank (layer
// mod ranks) adopts the layer's tensors in `shards`. tensors: those of the output, by name.
FinishedLayers find_finished_layers(const Journal& journal,
                                    const std::map<std::string, TensorInfo>& tensors,
                                    ShardSet& shards, Comm& comm);

}  // namespace qpipe
