#include "pipeline/commands/fetch_inputs.h"

namespace qpipe {

std::string local_model(const std::string& path, HubPart part) {
  const auto model = hub_model(path);
  return model ? fetch_model(*model, part).string() : path;
}

std::string local_data(const std::string& path) {
  const auto data = hub_data(path, "");
  return data ? fetch_data(*data).string() : path;
}

void fetch_inputs(Options& options) {
  const auto take = [&](std::string& path, const std::string& local) {
    if (local != path) options.fetched[local] = path;
    path = local;
  };
  take(options.model.path, local_model(options.model.path));
  take(options.calibration.data, local_data(options.calibration.data));
  for (MixEntry& entry : options.calibration.mix) take(entry.data, local_data(entry.data));
  take(options.evaluate.data, local_data(options.evaluate.data));
}

}  // namespace qpipe
