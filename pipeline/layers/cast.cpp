#include "pipeline/layers/cast.h"

#include <omp.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <future>
#include <memory>
#include <mutex>

#include "kernels/activation.h"
#include "kernels/alignment.h"
#include "kernels/transpose.h"
#include "launch/clock.h"
#include "launch/signals.h"
#include "pipeline/model/finite.h"
#include "stages/layer.h"

namespace qpipe {

namespace {

constexpr std::int64_t piece_bytes = std::int64_t{8}
                                     << 20;  // read and copied to the device at once
constexpr int fewest_workers = 4;  // on one core, too: most of the time they wait for the disk
constexpr std::size_t most_workers = 8;
constexpr std::size_t most_device_bytes = std::size_t{4} << 30;

// Linears that are quantized together, at most those of one step.
struct Unit {
  std::size_t layer = 0;  // index into Work::layers
  std::vector<TensorInfo> weights;
  std::vector<std::size_t> offsets;  // of the weights on the device
  std::vector<bool> transposed;      // [in, out] in the file: it lies behind its transpose
  std::vector<TensorInfo> copied;  // in place of all this: a linear's tensors, packed in the source
  std::string source;              // what they stand for
  std::size_t bytes = 0;
};

struct LayerWork {
  std::int64_t index = 0;
  std::size_t first_unit = 0;
  std::atomic<std::size_t> units_left = 0;
};

struct Work {
  std::vector<Unit> units;
  std::vector<std::unique_ptr<LayerWork>> layers;
  std::size_t largest_unit = 0;
};

std::size_t aligned_bytes(const TensorInfo& weight) {
  return aligned(static_cast<std::size_t>(weight.bytes()));
}

void add_weight(Unit& unit, const TensorInfo& weight, bool transposed) {
  unit.weights.push_back(weight);
  unit.offsets.push_back(unit.bytes);
  unit.transposed.push_back(transposed);
  unit.bytes += aligned_bytes(weight) * (transposed ? 2 : 1);
}

void copied_linear(Unit& unit, const std::string& module, const LinearSpec& linear,
                   const QuantizePlan& plan) {
  for (const NamedTensor& part : stored_tensors(module, linear.out_features, linear.in_features,
                                                plan.modules.at(module), plan.storage))
    unit.copied.push_back({part.name, part.dtype, part.shape});
  unit.source = module + ".weight";
}

Work work_of_rank(const Checkpoint& checkpoint, const Architecture& architecture,
                  const QuantizePlan& plan, const FinishedLayers& finished, const Comm& comm) {
  const bool steps_share_a_scale = plan.storage.codec == Codec::nvfp4;
  Work work;
  for (std::int64_t index = comm.rank(); index < architecture.layers; index += comm.size()) {
    if (finished.contains(index)) continue;
    auto layer = std::make_unique<LayerWork>();
    layer->index = index;
    layer->first_unit = work.units.size();
    const auto new_unit = [&]() -> Unit& {
      work.units.emplace_back().layer = work.layers.size();
      return work.units.back();
    };
    const std::string prefix = layer_prefix(architecture, index);
    const LayerSpec& spec = architecture.layer(index);
    const std::vector<LinearSpec> linears = layer_linears(spec);
    for (const Step& step : layer_steps(spec))
      for (const Group& group : step.groups) {
        Unit* unit = nullptr;
        for (const std::size_t i : group.linears) {
          const std::string module = prefix + linears[i].name;
          if (plan.modules.at(module).skip) continue;
          if (plan.packed_in_source.contains(module)) {
            copied_linear(new_unit(), module, linears[i], plan);
            continue;
          }
          if (unit == nullptr || !steps_share_a_scale) unit = &new_unit();
          add_weight(*unit, checkpoint.info(module + ".weight"), linears[i].transposed);
        }
      }
    if (work.units.size() == layer->first_unit)
      new_unit();  // all are skipped: there is the record to write
    layer->units_left = work.units.size() - layer->first_unit;
    work.layers.push_back(std::move(layer));
  }
  for (const Unit& unit : work.units) work.largest_unit = std::max(work.largest_unit, unit.bytes);
  return work;
}

// Has its own queue on the device, so that workers wait for nothing but their own copies.
struct Worker {
  // limit: its part of what the rank may take on the device; 0: none.
  Worker(const Stream& main, std::size_t limit, std::size_t largest_unit)
      : stream(main.backend(), main.device()),
        staging(static_cast<std::size_t>(piece_bytes), stream) {
    stream.set_limit(limit);
    on_device = Buffer(largest_unit, stream);
  }

  // take(begin, count) for the weight's bytes, a piece at a time in `staging`.
  template <class Take>
  void read_finite(const Checkpoint& checkpoint, const TensorInfo& weight, Take take) {
    for (std::int64_t begin = 0; begin < weight.bytes(); begin += piece_bytes) {
      const std::int64_t count = std::min(piece_bytes, weight.bytes() - begin);
      checkpoint.read(weight.name, begin, count, staging.data());
      check_finite(checkpoint, weight, weight.dtype, begin, staging.data(), count);
      take(begin, count);
    }
  }

  // A linear's tensors as the source has them, scales in the wanted type.
  std::vector<PackedTensor> copied(const Checkpoint& checkpoint, const Unit& unit) {
    read_finite(checkpoint, checkpoint.info(unit.source), [](std::int64_t, std::int64_t) {});
    std::vector<PackedTensor> tensors;
    for (const TensorInfo& wanted : unit.copied)
      for (const TensorInfo& stored : checkpoint.parts_of(unit.source)) {
        if (stored.name != wanted.name) continue;
        std::vector<unsigned char> bytes(static_cast<std::size_t>(stored.bytes()));
        checkpoint.read_stored(stored.name, 0, stored.bytes(), bytes.data());
        if (stored.dtype != wanted.dtype) {
          std::vector<unsigned char> wide(static_cast<std::size_t>(wanted.bytes()));
          Stream host(Backend::cpu, 0);
          convert(view_of(stored, bytes.data()),
                  Tensor(wide.data(), wanted.dtype, wanted.rows(), wanted.cols()), host);
          bytes = std::move(wide);
        }
        tensors.push_back({{wanted.name, wanted.dtype, wanted.shape}, std::move(bytes)});
      }
    return tensors;
  }

  ConstTensor load(const Checkpoint& checkpoint, const Unit& unit, std::size_t i) {
    const TensorInfo& weight = unit.weights[i];
    auto* result = static_cast<unsigned char*>(on_device.data()) + unit.offsets[i];
    unsigned char* place = unit.transposed[i] ? result + aligned_bytes(weight) : result;
    read_finite(checkpoint, weight, [&](std::int64_t begin, std::int64_t count) {
      copy_to_device(place + begin, staging.data(), static_cast<std::size_t>(count), stream);
    });
    if (!unit.transposed[i]) return {place, weight.dtype, weight.rows(), weight.cols()};
    const Tensor turned(result, weight.dtype, weight.cols(), weight.rows());
    transpose(ConstTensor(place, weight.dtype, weight.rows(), weight.cols()), turned, stream);
    return turned;
  }

  void run(const Unit& unit, std::int64_t layer, const Checkpoint& checkpoint,
           const StorageSettings& storage, Store& store) {
    Clock clock;
    std::vector<Linear> linears;
    std::vector<const Linear*> pointers;
    for (std::size_t i = 0; i < unit.weights.size(); ++i) {
      Linear& linear = linears.emplace_back();
      linear.name = unit.weights[i].name.substr(
          0, unit.weights[i].name.size() - std::string(".weight").size());
      linear.stored = load(checkpoint, unit, i);
    }
    pointers.reserve(linears.size());
    for (const Linear& linear : linears) pointers.push_back(&linear);
    seconds.read += clock.lap();
    const std::vector<PackedTensor> tensors = !unit.copied.empty() ? copied(checkpoint, unit)
                                              : linears.empty()
                                                  ? std::vector<PackedTensor>{}
                                                  : cast_linears(pointers, storage, stream);
    seconds.solve += clock.lap();
    store.write(layer, tensors);
    seconds.write += clock.lap();
    spdlog::debug("{}: cast and written",
                  unit.weights.empty() ? "nothing" : unit.weights.front().name);
  }

  Stream stream;
  HostBuffer staging;
  Buffer on_device;
  PhaseSeconds seconds;
};

}  // namespace

std::size_t cast_workers(int cores, std::size_t bytes_of_a_worker) {
  const std::size_t in_memory = most_device_bytes / std::max<std::size_t>(bytes_of_a_worker, 1);
  return std::max<std::size_t>(
      1, std::min(
             {most_workers, in_memory, static_cast<std::size_t>(std::max(cores, fewest_workers))}));
}

std::size_t cast_layers(const Checkpoint& checkpoint, const Architecture& architecture,
                        const QuantizePlan& plan, Store& store, const Comm& comm,
                        const Stream& stream, const std::function<void(std::int64_t)>& progress,
                        PhaseSeconds& seconds) {
  const Work work = work_of_rank(checkpoint, architecture, plan, store.finished(), comm);
  const int cores = omp_get_max_threads();
  std::size_t count = std::min(work.units.size(), cast_workers(cores, 2 * work.largest_unit));
  if (plan.places.cast_workers > 0)
    count = std::min(count, static_cast<std::size_t>(plan.places.cast_workers));
  std::atomic<std::size_t> next{0};
  std::atomic<std::size_t> end{work.units.size()};

  spdlog::debug("{} workers for {} units of at most {} bytes", count, work.units.size(),
                work.largest_unit);
  const auto take_units = [&](Worker& worker) {
    for (;;) {
      const std::size_t at = next++;
      if (at >= end) return;
      const Unit& unit = work.units[at];
      LayerWork& layer = *work.layers[unit.layer];
      if (store.fault()) end = 0;
      if (signals_received() > 0 && at == layer.first_unit) end = at;
      if (at >= end) return;
      worker.run(unit, layer.index, checkpoint, plan.storage, store);
      if (--layer.units_left == 0)
        store.commit_written(layer.index, [&progress, index = layer.index] { progress(index); });
    }
  };
  struct Used {
    PhaseSeconds seconds;
    std::size_t device_bytes = 0;
  };
  std::vector<std::future<Used>> workers;
  workers.reserve(count);
  for (std::size_t i = 0; i < count; ++i)
    workers.push_back(std::async(std::launch::async, [&] {
      stream.adopt_thread();
      omp_set_num_threads(
          std::max(1, cores / static_cast<int>(count)));  // of the kernels on the CPU backend
      try {
        Worker worker(stream, stream.limit() / count, work.largest_unit);
        take_units(worker);
        return Used{worker.seconds, worker.stream.bytes_peak()};
      } catch (...) {
        end = 0;
        throw;
      }
    }));
  for (const std::future<Used>& worker : workers) worker.wait();
  store.wait_for_commits();  // they use `progress`

  std::size_t device_bytes = 0;
  for (std::future<Used>& worker : workers) {
    const Used used = worker.get();
    device_bytes += used.device_bytes;
    seconds.read += used.seconds.read / static_cast<double>(count);
    seconds.solve += used.seconds.solve / static_cast<double>(count);
    seconds.write += used.seconds.write / static_cast<double>(count);
  }
  return device_bytes;
}

}  // namespace qpipe
