// Weights of a layer that wait in host memory and are on the device only while a step needs them.
#pragma once

#include <vector>

#include "stages/layer.h"

namespace qpipe {

// While it lives, linears[i].stored and .weight have memory for all i in `linears`. On the way back
// weights that were overwritten (set_overwritten) go to the host in the compute type, and come from
// there the next time. Those that are on the device already, for an outer one, stay there. Nothing
// to do for a layer whose weights do not wait.
class WeightsOnDevice {
 public:
  WeightsOnDevice(Layer& layer, std::vector<std::size_t> linears, Stream& stream);
  ~WeightsOnDevice() noexcept(false);
  WeightsOnDevice(const WeightsOnDevice&) = delete;
  WeightsOnDevice& operator=(const WeightsOnDevice&) = delete;

 private:
  Layer& layer_;
  std::vector<std::size_t> linears_;
  Stream& stream_;
};

// While it lives, the layer's forward pass brings the experts' weights that it runs, at most so
// many experts' at a time, for each block anew; and all others of `runs` are on the device. at_once
// = 0: all of `runs` are. For a layer whose weights wait; nothing to do for any other.
class RunsOnDevice {
 public:
  RunsOnDevice(Layer& layer, const std::vector<std::size_t>& runs, std::int64_t at_once,
               Stream& stream);
  ~RunsOnDevice() { layer_.waves = {}; }
  RunsOnDevice(const RunsOnDevice&) = delete;
  RunsOnDevice& operator=(const RunsOnDevice&) = delete;

 private:
  Layer& layer_;
  WeightsOnDevice others_;
};

// The linear's `weight` is no longer the checkpoint's.
void set_overwritten(Layer& layer, std::size_t linear);

}  // namespace qpipe
