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

// The linear's `weight` is no longer the checkpoint's.
void set_overwritten(Layer& layer, std::size_t linear);

}  // namespace qpipe
