// OPT: learned positions from the third row on, layer norms, biases. OPT-350m has its norms after
// the sums, embeddings narrower than the stream between two projections, and no last norm.
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"

namespace qpipe {

Architecture read_opt(const ConfigJson& config) {
  SizeKeys keys;
  keys.kv_heads = keys.head_dim = {};
  keys.ffn = {"ffn_dim"};
  const Sizes s = read_sizes(config, keys);
  const bool bias = read_flag(config, "enable_bias", true);
  const bool affine = read_flag(config, "layer_norm_elementwise_affine", true);
  const bool norms_first = read_flag(config, "do_layer_norm_before", true);
  const auto norm = [&](const std::string& name) {
    NormSpec spec{name, s.hidden, NormKind::layer, 1e-5f};
    spec.weight = spec.bias = affine;
    return spec;
  };

  const std::string root = "model.decoder.";
  Architecture a = decoder(config, s, "opt", true, {root, "embed_tokens", "layers", "lm_head"});
  a.embedding.positions = root + "embed_positions.weight";
  a.embedding.first_position = 2;
  a.embedding.width = find_size(config, {"word_embed_proj_dim"}).value_or(s.hidden);
  if (a.embedding.width != s.hidden) {
    a.embedding.projection = LinearSpec{root + "project_in", s.hidden, a.embedding.width};
    a.head.projection = LinearSpec{root + "project_out", a.embedding.width, s.hidden};
  }
  if (norms_first && !read_flag(config, "_remove_final_layer_norm", false))
    a.head.norm = norm(root + "final_layer_norm");

  LayerSpec layer;
  layer.mixer =
      gqa(s, bias, bias,
          {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"});
  layer.mlp =
      plain_mlp(s, read_activation(config, "activation_function", "relu"), bias, "fc1", "fc2");
  (norms_first ? layer.mixer_norm : layer.after_mixer) = norm("self_attn_layer_norm");
  (norms_first ? layer.mlp_norm : layer.after_mlp) = norm("final_layer_norm");
  layer.residual = norms_first ? Residual::sequential : Residual::normed;
  set_layers(a, layer);
  return a;
}

}  // namespace qpipe
