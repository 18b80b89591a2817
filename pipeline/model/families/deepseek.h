// What DeepSeek-V3 and V3.2 have in common.
#pragma once

#include "pipeline/model/readers.h"

namespace qpipe {

// V3's experts, router and dense first layers. Groups: what the configuration class assumes.
void set_deepseek_v3_experts(const ConfigJson& config, const Sizes& sizes,
                             std::int64_t absent_groups, std::int64_t absent_top_groups,
                             Architecture& architecture);

}  // namespace qpipe
