// Keys of config.json that no reader asked for: those that are known to leave the decoder's
// mathematics alone are skipped, others are an error rather than a silent difference.
#pragma once

#include "pipeline/model/config_json.h"

namespace qpipe {

// Throws UserError(ExitCode::unavailable) for the first key that nobody asked for, that no rule
// calls harmless, and whose value says something (not null, false, 0, or empty).
void check_unread_keys(const ConfigJson& config);

}  // namespace qpipe
