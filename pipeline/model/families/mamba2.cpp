// Mamba-2: state spaces alone, no attention and no MLP.
#include "pipeline/model/families/families.h"
#include "pipeline/model/mamba_readers.h"

namespace qpipe {

Architecture read_mamba2(const ConfigJson& config) {
  SizeKeys sizes;
  sizes.heads = {"num_heads"};
  sizes.kv_heads = {};
  sizes.ffn_is_four_hidden = true;  // there is none
  sizes.ffn = {};
  sizes.absent_heads = 128;
  sizes.absent_head_dim = 64;
  sizes.absent_vocab = 32768;
  sizes.absent_max_positions = most_positions;  // none are stored
  const Sizes s = read_sizes(config, sizes);
  Mamba2Keys keys;
  keys.heads = {"num_heads"};
  keys.head_dim = {"head_dim"};
  keys.groups = {"n_groups"};
  keys.state = {"state_size"};
  keys.kernel = {"conv_kernel"};
  keys.expand = {"expand"};
  keys.conv_bias = "use_conv_bias";
  keys.in_bias = "use_bias";
  keys.out_bias = "use_bias";
  keys.eps = "layer_norm_epsilon";
  keys.absent_head_dim = 64;
  keys.absent_groups = 8;
  keys.absent_state = 128;
  skip_keys(config, {"chunk_size", "time_step_min", "time_step_max", "time_step_floor",
                     "time_step_rank", "residual_in_fp32", "rescale_prenorm_residual", "rms_norm",
                     "norm_before_gate", "layer_types"});
  LayerSpec layer;
  Mamba2 mamba = read_mamba2_mixer(config, s, "mixer", keys);
  read_time_step_limit(config, mamba);
  layer.mixer = std::move(mamba);
  layer.mixer_norm = rms_norm_of(config, "norm", s.hidden, "layer_norm_epsilon", 1e-5);
  layer.mlp = Nothing{};

  OuterNames names;
  names.root = "backbone.";
  names.embedding = "embeddings";
  Architecture a = decoder(config, s, "mamba2", false, names);
  a.head.norm = rms_norm_of(config, "backbone.norm_f", s.hidden, "layer_norm_epsilon", 1e-5);
  set_layers(a, layer);
  return a;
}

}  // namespace qpipe
