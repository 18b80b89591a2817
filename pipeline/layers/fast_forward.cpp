#include "pipeline/layers/fast_forward.h"

#include <stdexcept>

#include "kernels/alignment.h"
#include "pipeline/files/agree.h"
#include "pipeline/model/read_back.h"
#include "stages/fold.h"
#include "stages/waiting_weights.h"

namespace qpipe {

namespace {

// Integer codes only: the other formats need no activations. Zeros kept back for gptq are held as
// v1 has them.
StoredFormat written_format(Format format) {
  switch (format) {
    case Format::gptq: return StoredFormat::gptq_v1;
    case Format::gptq_v2: return StoredFormat::gptq_v2;
    case Format::awq: return StoredFormat::awq;
    case Format::compressed_tensors: return StoredFormat::ct_integer;
    case Format::bitsandbytes:
    case Format::fp8: break;
  }
  throw std::logic_error("restore_propagated_weights: the format holds no integer codes");
}

void read_tensor(const std::string& name, const FinishedLayer& finished, const Journal& journal,
                 const ShardSet& shards, void* to) {
  for (const LayerRecord& part : finished.parts)
    if (part.held.contains(name))
      return SafetensorsFile(journal.folder() / (part.stem() + ".safetensors")).read(name, to);
  if (!shards.read(name, to))
    throw UserError(ExitCode::io, name + ": the shard that holds it is too short");
}

}  // namespace

void restore_propagated_weights(const QuantizePlan& plan, const FinishedLayer& finished,
                                const Journal& journal, const ShardSet& shards, Layer& layer,
                                Comm& comm, Stream& stream) {
  const std::vector<LinearFactors> factors = finished.findings().factors;
  for (std::size_t i = 0; i < layer.linears.size(); ++i) {
    const Linear& linear = layer.linears[i];
    const LinearSettings& settings = plan.modules.at(linear.name);
    if (settings.skip) continue;
    const WeightsOnDevice weight(layer, {i}, stream);
    set_overwritten(layer, i);
    std::vector<TensorInfo> infos;
    std::vector<std::size_t> offsets;
    std::size_t bytes = 0;
    for (const NamedTensor& tensor : stored_tensors(linear.name, linear.weight.rows,
                                                    linear.weight.cols, settings, plan.storage)) {
      infos.push_back({tensor.name, tensor.dtype, tensor.shape});
      offsets.push_back(bytes);
      bytes += aligned(static_cast<std::size_t>(infos.back().bytes()));
    }
    const int owner = static_cast<int>(layer.index % comm.size());
    Buffer blob(bytes, stream);
    on_all(comm, [&] {
      if (comm.rank() != owner) return;
      std::vector<unsigned char> data(bytes);
      for (std::size_t t = 0; t < infos.size(); ++t)
        read_tensor(infos[t].name, finished, journal, shards, data.data() + offsets[t]);
      copy_to_device(blob.data(), data.data(), bytes, stream);
    });
    comm.broadcast(blob.data(), bytes, owner, stream);

    PackedParts parts;
    for (std::size_t t = 0; t < infos.size(); ++t)
      parts[infos[t].name.substr(linear.name.size())] =
          view_of(infos[t], static_cast<const unsigned char*>(blob.data()) + offsets[t]);
    if (plan.procedure != Procedure::awq) {
      read_back(written_format(plan.storage.format), linear.name, parts, linear.weight, stream);
      continue;
    }
    Array<float> scaled(linear.weight.rows, linear.weight.cols, stream);
    read_back(written_format(plan.storage.format), linear.name, parts, scaled.view, stream);
    unscale_into(scaled, factors.at(i), linear.weight, stream);
  }
}

}  // namespace qpipe
