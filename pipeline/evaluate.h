// Perplexity with the same engine that calibrates, on original and on quantized folders.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "launch/comm.h"
#include "pipeline/data/dataset.h"
#include "pipeline/model/checkpoint.h"
#include "stages/architecture.h"
#include "stages/places.h"

namespace qpipe {

struct Perplexity {
  double value = 0.0;       // exp(mean negative log-likelihood)
  std::int64_t tokens = 0;  // predicted: samples · (seqlen − 1), each window alone
};

// Called with each block's logits: first sample, and float32 [tokens, vocab] on the host.
using LogitsSink = std::function<void(std::int64_t first_sample, const std::vector<float>& logits)>;

// Collective. One layer at a time on the device, the residual stream at places.hidden; samples are
// divided over the ranks; the sum is taken in sample order. The sink, when given, sees this rank's
// blocks. progress(done, total) counts layers.
Perplexity evaluate(const Checkpoint& checkpoint, const Architecture& architecture,
                    const Tokens& tokens, std::int64_t micro_batch, const Places& places,
                    Comm& comm, Stream& stream, const LogitsSink& sink = {},
                    const std::function<void(std::int64_t, std::int64_t)>& progress = {});

}  // namespace qpipe
