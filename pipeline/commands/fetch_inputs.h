// Models and data of the hub become paths before anything else looks at them.
#pragma once

#include <string>

#include "pipeline/data/hub.h"
#include "pipeline/options/options.h"

namespace qpipe {

// `path`, or the snapshot's folder where it is a name of the hub.
std::string local_model(const std::string& path, HubPart part = HubPart::whole);
// `path`, or the file where it is hf:…
std::string local_data(const std::string& path);

// model.path, and the data of calibration and evaluation; options.fetched keeps their names.
void fetch_inputs(Options& options);

}  // namespace qpipe
