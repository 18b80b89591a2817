#include "stages/rope_table.h"

#include <cmath>

namespace qpipe {

namespace {

bool is_longer(const Rope& rope, std::int64_t seqlen) {
  return rope.longest > 0 && seqlen > rope.longest && !rope.longer_frequencies.empty();
}

const std::vector<float>& frequencies_of(const Rope& rope, std::int64_t seqlen) {
  return is_longer(rope, seqlen) ? rope.longer_frequencies : rope.inverse_frequencies;
}

}  // namespace

Array<float> upload_table(const std::vector<float>& values, std::int64_t rows, Stream& stream) {
  Array<float> array(rows, static_cast<std::int64_t>(values.size()) / rows, stream);
  copy_to_device(array.view.data, values.data(), values.size() * sizeof(float), stream);
  return array;
}

Array<float> rope_table(const Rope& rope, std::int64_t seqlen, Stream& stream) {
  return rope.enabled ? upload_table(frequencies_of(rope, seqlen), 1, stream) : Array<float>();
}

std::int64_t rope_table_bytes(const Rope& rope, std::int64_t seqlen) {
  return rope.enabled ? 4 * static_cast<std::int64_t>(frequencies_of(rope, seqlen).size()) : 0;
}

float amplitude_of(const Rope& rope, std::int64_t seqlen) {
  return is_longer(rope, seqlen) ? rope.longer_amplitude : rope.amplitude;
}

Array<float> query_scale_table(const QueryScale& scale, std::int64_t seqlen, Stream& stream) {
  if (scale.beta == 0.0f) return {};
  std::vector<float> values;
  for (std::int64_t position = 0; position < seqlen; ++position)
    values.push_back(1.0f + scale.beta * std::log1p(static_cast<float>((position + scale.first) /
                                                                       scale.positions)));
  return upload_table(values, 1, stream);
}

std::int64_t query_scale_table_bytes(const QueryScale& scale, std::int64_t seqlen) {
  return scale.beta == 0.0f ? 0 : 4 * seqlen;
}

}  // namespace qpipe
