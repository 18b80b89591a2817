// Parts of config.json that families with state spaces have in common, beside readers.h.
#pragma once

#include <string>
#include <vector>

#include "pipeline/model/readers.h"

namespace qpipe {

// Names of the keys of Mamba-2, of which the first that is there and not null counts, and what
// transformers assumes without them.
struct Mamba2Keys {
  std::vector<std::string> heads{"mamba_n_heads"};
  std::vector<std::string> head_dim{"mamba_d_head"};
  std::vector<std::string> groups{"mamba_n_groups"};
  std::vector<std::string> state{"mamba_d_state"};
  std::vector<std::string> kernel{"mamba_d_conv"};
  std::vector<std::string> expand{"mamba_expand"};
  std::string conv_bias = "mamba_conv_bias";
  std::string in_bias = "mamba_proj_bias";
  std::string out_bias = "mamba_proj_bias";
  std::string activation = "hidden_act";
  std::string eps = "rms_norm_eps";
  double absent_eps = 1e-5;
  std::int64_t absent_head_dim = 0;  // 0: as "auto", the inner width / heads
  std::int64_t absent_groups = 1;
  std::int64_t absent_state = 256;
};

// The modules of MODULE: in_proj, conv1d, A_log, D, dt_bias, norm, out_proj. inner: the width of x;
// 0: expand · hidden. Throws UserError where heads, groups and widths do not fit.
Mamba2 read_mamba2_mixer(const ConfigJson& config, const Sizes& sizes, const std::string& module,
                         const Mamba2Keys& keys = {}, std::int64_t inner = 0);

// time_step_limit: [shortest, longest]; longest may be Infinity, as Python or as transformers 5
// writes it.
void read_time_step_limit(const ConfigJson& config, Mamba2& mamba);

// Kinds of layers by one letter a layer, or else by an array of names (the other key), which must
// say the same where both are there. Throws UserError for unknown ones and for another number.
struct LayerLetter {
  char letter;
  std::vector<std::string> names;
};
std::string read_layer_letters(const ConfigJson& config, std::int64_t layers,
                               const std::vector<LayerLetter>& known,
                               const std::string& letters_key, const std::string& names_key);

}  // namespace qpipe
