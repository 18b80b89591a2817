// What a decoder computes: the options of the one generic decoder. Pure data, filled in by
// pipeline/model/model from config.json and the table of families; read by stages/layer. Shapes are
// in elements.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/activation.h"
#include "kernels/attention.h"

namespace qpipe {

enum class NormKind { rms, layer };

// Sequential: h += attn(norm1(h)); h += mlp(norm2(h)).
// Parallel: h += attn(norm1(h)) + mlp(norm2(h)), norm2 = norm1 when `shared_norm`.
enum class Residual { sequential, parallel };

struct Rope {
  bool enabled = false;
  bool interleaved = false;
  float amplitude = 1.0f;                  // YaRN's attention factor
  std::vector<float> inverse_frequencies;  // rotated width / 2
  std::int64_t longest =
      0;  // sequences longer than this have other frequencies (dynamic scaling); 0: none have
  bool operator==(const Rope&) const = default;
};

// One linear of a layer as the checkpoint names it.
struct LinearSpec {
  std::string name;  // within the layer: "self_attn.q_proj"
  std::int64_t out_features = 0;
  std::int64_t in_features = 0;
  bool bias = false;
  bool operator==(const LinearSpec&) const = default;
};

// Names of tensors inside a layer, without its prefix; empty where the family has none.
struct LayerNames {
  std::string attention_norm;  // module name; tensors NAME.weight and, for layer norm, NAME.bias
  std::string mlp_norm;
  std::string q_norm;
  std::string k_norm;
  bool operator==(const LayerNames&) const = default;
};

struct Architecture {
  std::string model_type;
  std::int64_t layers = 0;
  std::int64_t hidden = 0;
  std::int64_t vocab = 0;
  std::int64_t max_positions = 0;

  NormKind norm = NormKind::rms;
  bool norm_bias = false;
  float norm_eps = 1e-6f;
  float norm_offset = 0.0f;
  Residual residual = Residual::sequential;
  bool shared_norm = false;

  HeadLayout heads;
  Rope rope;
  std::vector<float> key_bias_slopes;  // ALiBi, one a head; empty without
  bool key_bias_in_bf16 = false;       // Falcon rounds slope and product to bfloat16
  float attention_scale = 1.0f;
  std::vector<std::int64_t> window;  // per layer, 0 = full attention

  bool gated_mlp = true;
  Activation activation = Activation::silu;
  std::int64_t ffn = 0;

  bool tied_embeddings = false;
  float embedding_multiplier = 1.0f;

  // The layer's linears by role; qkv holds one (fused) or three modules whose outputs stand side by
  // side in `heads`' order, mlp_in one (plain, or fused gate_up) or two (gate, up).
  std::vector<LinearSpec> qkv;
  LinearSpec attention_out;
  std::vector<LinearSpec> mlp_in;
  LinearSpec mlp_out;

  LayerNames names;
  std::string layer_prefix;  // "model.layers." ; layer l is PREFIX + l + "."
  std::string embedding;     // "model.embed_tokens.weight"
  std::string final_norm;    // "model.norm"
  std::string lm_head;       // "lm_head"; its weight is the embedding when tied
  bool lm_head_bias = false;

  bool operator==(const Architecture&) const = default;
};

// "model.layers.3." for layer 3.
inline std::string layer_prefix(const Architecture& architecture, std::int64_t index) {
  return architecture.layer_prefix + std::to_string(index) + ".";
}

}  // namespace qpipe
