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

struct FinishedLayer {
  std::vector<LayerRecord> parts;

  LayerFindings findings() const { return parts.front().findings.get<LayerFindings>(); }
};

using FinishedLayers = std::map<std::int64_t, FinishedLayer>;

// Layers whose every tensor has its hash. Collective: the ranks share the reading, and rank (layer
// mod ranks) adopts the layer's tensors in `shards`. tensors: those of the output, by name.
FinishedLayers find_finished_layers(const Journal& journal,
                                    const std::map<std::string, TensorInfo>& tensors,
                                    ShardSet& shards, Comm& comm);

}  // namespace qpipe
