#include "pipeline/model/latent_readers.h"

#include <fmt/format.h>

#include <cmath>

namespace qpipe {

Sizes read_latent_model_sizes(const ConfigJson& config, SizeKeys keys) {
  keys.kv_heads = {};
  keys.head_dim = {"qk_rope_head_dim"};
  skip_keys(config, {"head_dim", "qk_head_dim"});
  Sizes sizes = read_sizes(config, keys);
  read_one_of(config, "num_key_value_heads", {sizes.heads});
  return sizes;
}

LatentAttention read_latent_attention(const ConfigJson& config, const Sizes& s,
                                      const LatentSizes& absent, RopeRule rule) {
  const auto width = [&](const char* key, std::int64_t otherwise) {
    return read_integer_or(config, key, otherwise, 1, largest_width / s.heads);
  };
  LatentAttention a;
  a.heads = s.heads;
  a.nope = width("qk_nope_head_dim", absent.nope);
  a.rope_dim = width("qk_rope_head_dim", absent.rope);
  a.value_dim = width("v_head_dim", absent.value > 0 ? absent.value : s.hidden / s.heads);
  if (a.heads * (a.head_dim() + a.value_dim) > largest_width)
    throw UserError(ExitCode::data,
                    fmt::format("{}: num_attention_heads = {} heads of {} and {} columns are wider "
                                "than {}",
                                config.where, a.heads, a.head_dim(), a.value_dim, largest_width));
  const std::int64_t latent =
      read_integer_or(config, "kv_lora_rank", absent.kv_rank, 1, largest_width);
  const bool bias = read_flag(config, "attention_bias", false);
  const auto norm = [](const std::string& name, std::int64_t columns) {
    return NormSpec{name, columns};
  };
  a.q = {"self_attn.q_proj", a.heads * a.head_dim(), s.hidden};
  if (!is_null(config, "q_lora_rank")) {
    const std::int64_t rank =
        read_integer_or(config, "q_lora_rank", absent.q_rank, 1, largest_width);
    a.q_a = LinearSpec{"self_attn.q_a_proj", rank, s.hidden, bias};
    a.q_norm = norm("self_attn.q_a_layernorm", rank);
    a.q = {"self_attn.q_b_proj", a.heads * a.head_dim(), rank};
  }
  a.kv_a = {"self_attn.kv_a_proj_with_mqa", latent + a.rope_dim, s.hidden, bias};
  a.kv_norm = norm("self_attn.kv_a_layernorm", latent);
  a.kv_b = {"self_attn.kv_b_proj", a.heads * (a.nope + a.value_dim), latent};
  a.out = {"self_attn.o_proj", s.hidden, a.heads * a.value_dim, bias};

  if (rule.head_dim == 0) rule.head_dim = a.rope_dim;
  rule.max_positions = s.max_positions;
  a.rope = read_rope(config, rule);
  if (2 * std::ssize(a.rope.inverse_frequencies) != a.rope_dim)
    refuse(config, "qk_rope_head_dim",
           fmt::format("must be the {} columns that partial_rotary_factor says are rotated",
                       2 * a.rope.inverse_frequencies.size()));
  a.scale = static_cast<float>(read_score_factor(config, rule) /
                               std::sqrt(static_cast<double>(a.head_dim())));
  return a;
}

TokenIndexer read_token_indexer(const ConfigJson& config, const Sizes& s,
                                const LatentAttention& attention, std::int64_t absent_heads) {
  if (!attention.q_a)
    refuse(config, "q_lora_rank", "must be a number: the indexer reads the latent of q");
  TokenIndexer i;
  i.heads = read_integer_or(config, "index_n_heads", absent_heads, 1, largest_width);
  i.head_dim = read_integer_or(config, "index_head_dim", 128, 1, largest_width / i.heads);
  i.top_k = read_integer_or(config, "index_topk", 2048, 1, most_positions);
  if (i.head_dim < attention.rope_dim)
    refuse(config, "index_head_dim",
           fmt::format("must be at least qk_rope_head_dim = {}", attention.rope_dim));
  const auto linear = [](const std::string& name, std::int64_t out, std::int64_t in) {
    LinearSpec spec{"self_attn.indexer." + name, out, in};
    spec.kept = true;
    return spec;
  };
  i.q = linear("wq_b", i.heads * i.head_dim, attention.q.in_features);
  i.k = linear("wk", i.head_dim, s.hidden);
  i.weights = linear("weights_proj", i.heads, s.hidden);
  i.k_norm = {"self_attn.indexer.k_norm", i.head_dim, NormKind::layer};
  i.k_norm.bias = true;
  return i;
}

}  // namespace qpipe
