#include "stages/waiting_weights.h"

#include <exception>
#include <memory>
#include <set>
#include <utility>

#include "kernels/activation.h"

namespace qpipe {

namespace {

bool waits(const Layer& layer, std::size_t i) {
  return !layer.waiting.empty() && layer.linears[i].weight.data == nullptr;
}

void bring(Linear& linear, WaitingWeight& w, Stream& stream) {
  const std::int64_t rows = linear.weight.rows;
  const std::int64_t cols = linear.weight.cols;
  const DType compute = stream.compute_dtype();
  w.stored = Buffer(static_cast<std::size_t>(rows * cols) * size_of(w.dtype), stream);
  copy_to_device(w.stored.data(), w.host, w.stored.bytes(), stream);
  linear.stored = ConstTensor(w.stored.data(), w.dtype, rows, cols);
  if (w.dtype == compute) {
    linear.weight = Tensor(w.stored.data(), compute, rows, cols);
    return;
  }
  w.weight = Buffer(static_cast<std::size_t>(rows * cols) * size_of(compute), stream);
  linear.weight = Tensor(w.weight.data(), compute, rows, cols);
  convert(linear.stored, linear.weight, stream);
}

void take_back(Linear& linear, WaitingWeight& w, bool keep, Stream& stream) {
  if (keep && w.overwritten) {
    const auto bytes = static_cast<std::size_t>(linear.weight.bytes());
    if (size_of(linear.weight.dtype) >
        size_of(w.dtype)) {  // does not fit where the checkpoint's was
      w.wider = HostBuffer(bytes, stream);
      w.host = w.wider.data();
    }
    copy_to_host(w.host, linear.weight.data, bytes, stream);
    w.dtype = linear.weight.dtype;
    w.overwritten = false;
  }
  linear.stored.data = nullptr;
  linear.weight.data = nullptr;
  w.stored = {};
  w.weight = {};
}

}  // namespace

WeightsOnDevice::WeightsOnDevice(Layer& layer, std::vector<std::size_t> linears, Stream& stream)
    : layer_(layer), stream_(stream) {
  for (const std::size_t i : linears) {
    if (!waits(layer, i)) continue;
    bring(layer.linears[i], layer.waiting[i], stream);
    linears_.push_back(i);
  }
}

WeightsOnDevice::~WeightsOnDevice() noexcept(false) {
  const bool keep = std::uncaught_exceptions() == 0;
  for (const std::size_t i : linears_)
    take_back(layer_.linears[i], layer_.waiting[i], keep, stream_);
}

namespace {

// Those of `runs` that are no expert's.
std::vector<std::size_t> outside_of_experts(const Layer& layer, std::vector<std::size_t> runs) {
  std::set<std::size_t> of_experts;
  for (const Step& step : layer_steps(*layer.spec))
    for (const Group& group : step.groups)
      if (group.expert >= 0) of_experts.insert(group.linears.begin(), group.linears.end());
  std::erase_if(runs, [&](std::size_t i) { return of_experts.contains(i); });
  return runs;
}

}  // namespace

RunsOnDevice::RunsOnDevice(Layer& layer, const std::vector<std::size_t>& runs, std::int64_t at_once,
                           Stream& stream)
    : layer_(layer), others_(layer, at_once > 0 ? outside_of_experts(layer, runs) : runs, stream) {
  if (at_once == 0 || layer.waiting.empty()) return;
  layer.waves = {at_once, [&layer, &stream](const std::vector<std::size_t>& linears) {
                   return std::make_shared<const WeightsOnDevice>(layer, linears, stream);
                 }};
}

void set_overwritten(Layer& layer, std::size_t linear) {
  if (!layer.waiting.empty()) layer.waiting[linear].overwritten = true;
}

}  // namespace qpipe
