// DeepSeek-V3.2 and GLM-5: DeepSeek-V3 with an indexer that chooses the tokens that attention sees.
#include <algorithm>

#include "pipeline/model/families/deepseek.h"
#include "pipeline/model/families/families.h"
#include "pipeline/model/latent_readers.h"

namespace qpipe {

namespace {

// What the two configuration classes assume without a key.
struct Absent {
  LatentSizes latents;
  std::int64_t positions = 0;
  std::int64_t index_heads = 0;
  std::int64_t groups = 1;
  std::int64_t top_groups = 1;
  double eps = 1e-6;
};

// indexer_types, index_topk_pattern, or every index_topk_freq-th layer: whether a layer has an
// indexer of its own.
std::vector<bool> own_indexers(const ConfigJson& config, std::int64_t layers) {
  std::vector<bool> own(static_cast<std::size_t>(layers), true);
  skip_keys(config, {"index_topk_freq", "index_skip_topk_offset", "index_topk_pattern"});
  const std::vector<std::string> types =
      read_layer_types(config, layers, {"full", "shared"}, "indexer_types");
  for (std::size_t l = 0; l < types.size(); ++l) own[l] = types[l] == "full";
  if (!types.empty()) return own;
  if (has_key(config, "index_topk_pattern")) {
    const std::string pattern = read_text(config, "index_topk_pattern");
    if (std::ssize(pattern) != layers || pattern.find_first_not_of("FS") != std::string::npos)
      refuse(config, "index_topk_pattern",
             "must have a letter, F or S, for each of the " + std::to_string(layers) + " layers");
    std::transform(pattern.begin(), pattern.end(), own.begin(), [](char c) { return c == 'F'; });
    return own;
  }
  const std::int64_t every = read_integer_or(config, "index_topk_freq", 1, 0, most_layers);
  const std::int64_t offset = read_integer_or(config, "index_skip_topk_offset", 2, 0, most_layers);
  for (std::int64_t l = 0; l < layers; ++l)
    own[static_cast<std::size_t>(l)] =
        std::max<std::int64_t>(l - offset + 1, 0) % std::max<std::int64_t>(every, 1) == 0;
  return own;
}

Architecture read_indexed(const ConfigJson& config, const std::string& model_type,
                          const Absent& absent, bool interleaved, const std::vector<bool>* own) {
  SizeKeys keys;
  keys.absent_max_positions = absent.positions;
  const Sizes s = read_latent_model_sizes(config, keys);
  read_one_of(config, "rope_interleave", {true});
  read_layer_types(config, s.layers, {"indexed_attention"});
  const LatentAttention plain =
      read_latent_attention(config, s, absent.latents, {.interleaved = true});
  TokenIndexer indexer = read_token_indexer(config, s, plain, absent.index_heads);
  indexer.interleaved = interleaved;
  read_one_of(config, "indexer_rope_interleave", {interleaved});
  const bool bias = read_flag(config, "mlp_bias", false);
  Architecture a = llama_like(config, s, model_type,
                              gated_mlp(s, read_activation(config, "hidden_act", "silu"), bias),
                              [&](std::int64_t l) {
                                LatentAttention attention = plain;
                                if (own == nullptr || own->at(static_cast<std::size_t>(l)))
                                  attention.indexer = indexer;
                                else
                                  attention.chosen_before = indexer.top_k;
                                return attention;
                              },
                              {.absent_eps = absent.eps});
  set_deepseek_v3_experts(config, s, absent.groups, absent.top_groups, a);
  return a;
}

}  // namespace

Architecture read_deepseek_v32(const ConfigJson& config) {
  Absent absent;
  absent.positions = 163840;
  absent.index_heads = 64;
  absent.groups = 8;
  absent.top_groups = 4;
  return read_indexed(config, "deepseek_v32", absent, false, nullptr);
}

Architecture read_glm_moe_dsa(const ConfigJson& config) {
  Absent absent;
  absent.latents.q_rank = 2048;
  absent.latents.nope = 192;
  absent.latents.value = 256;
  absent.positions = 202752;
  absent.index_heads = 32;
  absent.eps = 1e-5;
  const std::int64_t layers = read_integer(config, "num_hidden_layers", 1, most_layers);
  const std::vector<bool> own = own_indexers(config, layers);
  if (!own.front())
    refuse(config, "indexer_types", "must begin with \"full\": nothing has chosen tokens before");
  return read_indexed(config, "glm_moe_dsa", absent, true, &own);
}

}  // namespace qpipe
