// Tokens → the residual stream of the first layer.
#pragma once

#include "stages/activations.h"

namespace qpipe {

// The tensors of embedding_tensors(), on the device. Tables in the checkpoint's type, all else in
// the compute type.
struct EmbeddingWeights {
  TensorArray tokens;
  TensorArray positions;
  Norm norm;
  Linear projection;
  TensorArray per_layer_tokens;
  Linear per_layer_projection;
  Norm per_layer_norm;
  std::vector<Buffer> memory;
};

// activations.hidden = the stream's first state. ids: row-major [samples, seqlen] on the host, all
// samples.
void embed_tokens(const Architecture& architecture, const EmbeddingWeights& weights,
                  const std::vector<std::int32_t>& ids, Activations& activations, Stream& stream);

}  // namespace qpipe
