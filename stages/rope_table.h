// Device tables of rotary positions and of queries' scales, for one sequence length.
#pragma once

#include <vector>

#include "kernels/stream.h"
#include "stages/architecture.h"

namespace qpipe {

Array<float> upload_table(const std::vector<float>& values, std::int64_t rows, Stream& stream);

// [1, rotated width / 2]; empty where nothing is rotated.
Array<float> rope_table(const Rope& rope, std::int64_t seqlen, Stream& stream);
std::int64_t rope_table_bytes(const Rope& rope, std::int64_t seqlen);
float amplitude_of(const Rope& rope, std::int64_t seqlen);

// [1, seqlen]; empty where queries are not scaled.
Array<float> query_scale_table(const QueryScale& scale, std::int64_t seqlen, Stream& stream);
std::int64_t query_scale_table_bytes(const QueryScale& scale, std::int64_t seqlen);

}  // namespace qpipe
