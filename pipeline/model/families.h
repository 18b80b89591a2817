// The table of families: which keys of config.json hold which figure, what transformers assumes
// without them, how the tensors are named and laid out. A new family is an entry of data in
// families.cpp; code is needed only where its mathematics is new.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "stages/architecture.h"

namespace qpipe {

// What a size is when its key is absent, or null.
enum class Otherwise { fault, value, heads, hidden_over_heads, four_hidden };

struct SizeKey {
  std::vector<std::string>
      names;  // the first that is there and not null counts; none: never in config.json
  Otherwise absent = Otherwise::fault;
  Otherwise null = Otherwise::fault;
  std::int64_t value = 0;  // for Otherwise::value
};

struct FlagKey {
  std::string name;  // empty: fixed
  bool otherwise = false;
};

struct NumberKey {
  std::string name;
  double otherwise = 0.0;
};

struct TextKey {
  std::string name;
  std::string otherwise;
};

// A key that chooses between forms of a family, or that must have one value: any of `values`, the
// first when the key is absent. Without `assumed` the key must be there.
struct Option {
  std::string name;
  std::vector<nlohmann::json> values;
  bool assumed = true;
};

struct Family;

// Applied, in the table's order, when every named option has the value. With a refusal: a form that
// the reference cannot compute either.
struct Variant {
  std::vector<std::pair<std::string, nlohmann::json>> when;
  void (*apply)(Family&) = nullptr;
  std::string refusal;
};

enum class QkvLayout { side_by_side, by_group };  // q|k|v; or per kv head its q heads, k, v
enum class Windows {
  none,
  every_layer,   // sliding_window (4096 when absent), null for full attention
  by_layer_type  // use_sliding_window, sliding_window, and layer_types or max_window_layers
};

struct Family {
  std::string model_type;
  std::string reads_as;  // Architecture::model_type: another name's family
  std::vector<Option> options;
  std::vector<Variant> variants;

  SizeKey hidden{{"hidden_size"}};
  SizeKey layers{{"num_hidden_layers"}};
  SizeKey heads{{"num_attention_heads"}};
  SizeKey kv_heads{{"num_key_value_heads"}, Otherwise::heads, Otherwise::heads};
  SizeKey head_dim{{"head_dim"}, Otherwise::hidden_over_heads, Otherwise::hidden_over_heads};
  SizeKey ffn{{"intermediate_size"}};
  SizeKey vocab{{"vocab_size"}};
  SizeKey max_positions{{"max_position_embeddings"}, Otherwise::value, Otherwise::fault, 2048};

  NormKind norm = NormKind::rms;
  NumberKey norm_eps{"rms_norm_eps", 1e-6};
  float norm_offset = 0.0f;
  Residual residual = Residual::sequential;
  bool shared_norm = false;

  QkvLayout qkv_layout = QkvLayout::side_by_side;
  FlagKey qkv_bias;
  FlagKey attention_out_bias;
  FlagKey mlp_bias;
  bool rope = true;
  bool rope_interleaved = false;
  bool partial_rope = false;  // reads partial_rotary_factor
  FlagKey alibi;              // in place of rope
  bool alibi_in_bf16 = false;
  Windows windows = Windows::none;

  bool gated_mlp = true;
  TextKey activation{"hidden_act", "silu"};
  FlagKey tied_embeddings{"tie_word_embeddings", false};

  // Tensor names, as in Architecture.
  std::vector<std::string> qkv{"self_attn.q_proj", "self_attn.k_proj",
                               "self_attn.v_proj"};  // or one, fused
  std::string attention_out = "self_attn.o_proj";
  std::vector<std::string> mlp_in{"mlp.gate_proj", "mlp.up_proj"};  // gate, up; or one
  std::string mlp_out = "mlp.down_proj";
  LayerNames names{"input_layernorm", "post_attention_layernorm", "", ""};
  std::string layer_prefix = "model.layers.";
  std::string embedding = "model.embed_tokens.weight";
  std::string final_norm = "model.norm";
  std::string lm_head = "lm_head";
};

const std::vector<Family>& families();

}  // namespace qpipe
