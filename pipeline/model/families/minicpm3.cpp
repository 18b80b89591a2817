// MiniCPM 3: latent attention with halves rotated, an MLP, multipliers on embedding, residual and
// logits.
#include <cmath>

#include "pipeline/model/families/families.h"
#include "pipeline/model/latent_readers.h"

namespace qpipe {

Architecture read_minicpm3(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_max_positions = 32768;
  const Sizes s = read_latent_model_sizes(config, keys);
  LatentSizes absent;
  absent.q_rank = 768;
  absent.kv_rank = 256;
  absent.nope = 64;
  absent.rope = 32;
  absent.value = 0;
  const LatentAttention attention = read_latent_attention(config, s, absent, {});
  const bool bias = read_flag(config, "mlp_bias", false);
  Architecture a = llama_like(
      config, s, "minicpm3", gated_mlp(s, read_activation(config, "hidden_act", "silu"), bias),
      [&](std::int64_t) { return attention; }, {.absent_eps = 1e-5, .tied_when_absent = true});
  a.embedding.multiplier = static_cast<float>(read_positive(config, "scale_emb", 12.0));
  if (!is_null(config, "dim_model_base"))
    a.head.multiplier = static_cast<float>(read_positive(config, "dim_model_base", 256.0) /
                                           static_cast<double>(s.hidden));
  if (!is_null(config, "scale_depth"))
    for (LayerSpec& kind : a.kinds)
      kind.residual_multiplier = static_cast<float>(read_positive(config, "scale_depth", 1.4) /
                                                    std::sqrt(static_cast<double>(s.layers)));
  return a;
}

}  // namespace qpipe
