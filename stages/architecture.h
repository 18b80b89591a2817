// What a decoder computes, as pure data: kinds of layers, and which layer is of which kind. Built
// by a function for each family (pipeline/model/families), read by stages/layer. Shapes are in
// elements, names are the checkpoint's.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "kernels/activation.h"
#include "kernels/attention.h"
#include "kernels/delta_rule.h"
#include "kernels/gated_norm.h"
#include "kernels/route.h"
#include "kernels/state_space.h"

namespace qpipe {

enum class NormKind { rms, layer };

// y = x̂ · (offset + w) + b, with x̂ = x / √(mean x² + ε), or (x − mean) / √(var + ε) for `layer`.
// Tensors NAME.weight [width] and NAME.bias [width] where they are stored, else w = 1, b = 0.
struct NormSpec {
  std::string name;
  std::int64_t width = 0;
  NormKind kind = NormKind::rms;
  float eps = 1e-6f;
  float offset = 0.0f;  // 1 where the family stores w − 1 (Gemma to Gemma 3, Nemotron)
  bool weight = true;
  bool bias = false;
  bool operator==(const NormSpec&) const = default;
};

// How a norm of q, k or v takes its heads. `norm.width` is the head's width, or that of all heads
// together.
struct HeadNorm {
  enum class Weight {
    shared,    // NAME.weight [head_dim] for every head (Qwen 3)
    per_head,  // NAME.weight [heads, head_dim] (Cohere)
    modules,   // NAME.norms.H.weight [head_dim] (StableLM 2)
    whole      // one norm over all heads, NAME.weight [heads · head_dim] (OLMo 2)
  };
  NormSpec norm;
  Weight layout = Weight::shared;
  bool operator==(const HeadNorm&) const = default;
};

struct Rope {
  bool enabled = false;
  bool interleaved = false;
  float amplitude = 1.0f;                  // YaRN's attention factor
  std::vector<float> inverse_frequencies;  // rotated width / 2
  // Sequences longer than this have other frequencies (LongRoPE, dynamic scaling); 0: none have.
  std::int64_t longest = 0;
  std::vector<float> longer_frequencies;  // of those; empty: not known here
  float longer_amplitude = 1.0f;          // with them
  bool operator==(const Rope&) const = default;
};

// One linear of a layer: NAME.weight [out, in] and NAME.bias [out].
struct LinearSpec {
  std::string name;  // within the layer: "self_attn.q_proj"
  std::int64_t out_features = 0;
  std::int64_t in_features = 0;
  bool bias = false;
  bool transposed = false;  // stored [in, out] (GPT-2's Conv1D)
  bool kept = false;        // never quantized: routers, gates of a few outputs
  bool operator==(const LinearSpec&) const = default;
};

// Biases of ALiBi: slope · (position of the key), the same softmax as slope · (key − query).
struct Alibi {
  std::vector<float> slopes;  // one a head; empty: none
  float scale = 1.0f;         // Falcon scales the bias with the scores
  bool in_bf16 = false;       // Falcon rounds slope and product to bfloat16
  bool operator==(const Alibi&) const = default;
};

// q is multiplied with 1 + β ln(1 + ⌊(position + first) / positions⌋). β 0: it is not.
struct QueryScale {
  float beta = 0.0f;
  std::int64_t positions = 1;
  std::int64_t first = 0;
  bool operator==(const QueryScale&) const = default;
};

// Softmax attention. In order: project, clip, copy k to v, norms, rope (or rope, norms), query
// scale, softmax, gate, output projection.
struct Attention {
  HeadLayout heads;             // of the outputs of `qkv`, side by side
  std::vector<LinearSpec> qkv;  // q, k, v; or one that holds all; without v where values are keys
  LinearSpec out;
  std::optional<HeadNorm> q_norm;
  std::optional<HeadNorm> k_norm;
  std::optional<HeadNorm> v_norm;
  bool norms_after_rope = false;
  bool values_are_keys = false;  // v is the output of k's projection, before k's norm
  Rope rope;
  Alibi alibi;
  float scale = 1.0f;
  float soft_cap = 0.0f;    // scores s become cap · tanh(s / cap); 0: as they are
  float clip_qkv = 0.0f;    // q, k and v are cut to ±clip; 0: as they are
  std::int64_t window = 0;  // of token i: j with i − window < j ≤ i; 0: all j ≤ i
  std::int64_t chunk = 0;   // of token i: j ≤ i of the same run of `chunk` positions; 0: all
  QueryScale query_scale;
  float value_scale = 1.0f;  // v is multiplied with it
  std::string sinks;         // a tensor of one logit a head (kernels/attention.h); empty: none
  // The heads' outputs are multiplied with σ(x Wᵀ + b), x the input of `qkv`: by element, or by
  // head where it has an output for each head.
  std::optional<LinearSpec> gate;
  bool gate_beside_q = false;  // or with σ of the columns behind each q head, which are as many
  // Keys and values that later layers read (Gemma 4): from this column on of the stream's carried
  // part. −1: none. A layer that takes them projects q alone; `heads` still has room for k and v.
  std::int64_t keeps_kv = -1;
  std::int64_t takes_kv = -1;

  bool shares_kv() const { return keeps_kv >= 0 || takes_kv >= 0; }
  std::int64_t kv_width() const { return heads.kv_heads * (heads.head_dim + heads.value_dim()); }
  bool operator==(const Attention&) const = default;
};

// act_fn of Apertus: x ≤ 0: (expm1(min(x, ε)) − x) · α_n + β x; x > 0: α_p x² + β x, with
// α_p = softplus(ALPHA_P), α_n = β + softplus(ALPHA_N). Names of tensors with one element each.
struct Xielu {
  std::string alpha_p, alpha_n;
  float beta = 0.5f;
  float eps = -1e-6f;
  bool operator==(const Xielu&) const = default;
};

// DeepSeek-V3.2's choice of the earlier tokens that a token attends to (kernels/token_selection.h):
// heads q = c_q W_qᵀ of q's latent, one key k = norm(x W_kᵀ), the first rotated columns of both
// rotated, weights x W_wᵀ / √(heads · head_dim). Up to top_k tokens it chooses all.
struct TokenIndexer {
  LinearSpec q;        // q latent → heads · head_dim
  LinearSpec k;        // hidden → head_dim
  LinearSpec weights;  // hidden → heads
  NormSpec k_norm;
  std::int64_t heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t top_k = 0;
  bool interleaved = false;  // pairs of its own rotation; frequencies are the attention's
  bool operator==(const TokenIndexer&) const = default;
};

// Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434). Latents c_q = norm(x W_qaᵀ) and
// c = norm of all columns of x W_kvaᵀ but the last rope_dim; those are r, the rotated part of every
// head's key. Head h has q = c_q W_qᵀ (x W_qᵀ without q_a), its last rope_dim columns rotated;
// k = nope columns of c W_kvbᵀ, then r; v = the value_dim columns behind those of k.
struct LatentAttention {
  std::optional<LinearSpec> q_a;
  std::optional<NormSpec> q_norm;  // with q_a
  LinearSpec q;                    // → heads · (nope + rope_dim)
  LinearSpec kv_a;                 // hidden → latent + rope_dim
  NormSpec kv_norm;
  LinearSpec kv_b;  // latent → heads · (nope + value_dim)
  LinearSpec out;
  std::int64_t heads = 0;
  std::int64_t nope = 0;
  std::int64_t rope_dim = 0;
  std::int64_t value_dim = 0;
  Rope rope;  // not enabled: the columns are there and stay as they are (Kimi-Linear)
  QueryScale query_scale;
  float scale = 1.0f;                   // of the scores
  std::optional<TokenIndexer> indexer;  // with q_a
  std::int64_t chosen_before = 0;  // more tokens than so many: those that an earlier layer chose

  std::int64_t latent() const { return kv_b.in_features; }
  std::int64_t head_dim() const { return nope + rope_dim; }
  bool operator==(const LatentAttention&) const = default;
};

// A causal convolution of each channel by itself: NAME.weight [channels, 1, kernel], NAME.bias
// [channels].
struct CausalConv {
  std::string name;
  std::int64_t channels = 0;
  std::int64_t kernel = 0;
  bool bias = false;
  bool operator==(const CausalConv&) const = default;
};

// Columns of projections' outputs that lie in slices, from `first` on.
struct SlicedColumns {
  std::int64_t first = 0;
  HeadSlices slices;

  std::int64_t count() const { return slices.channels(); }
  bool operator==(const SlicedColumns&) const = default;
};

// A gated delta net (kernels/delta_rule.h). q, k, v, z, b and a are columns of the outputs of `in`,
// side by side; q, k, v ← silu(conv(q, k, v)); g = log_decay(a), β = σ(b) (kernels/delta_gates.h);
// out(the delta rule's output, each head normed and gated by z: kernels/gated_norm.h).
struct DeltaNet {
  DeltaHeads heads;
  std::vector<LinearSpec> in;
  SlicedColumns q, k, v, gate, strength, decay;  // gate: of z, strength: of b, decay: of a
  // With these, z and a are what they make of the columns `gate` and `decay` (Kimi-Linear).
  std::optional<LinearSpec> gate_up;
  std::optional<LinearSpec> decay_up;
  std::vector<CausalConv> convolutions;  // of q, k and v, or one of all three, in this order
  std::string a_log;                     // a tensor of one element a head of v
  bool a_log_is_4d = false;              // [1, 1, heads, 1], not [heads] (Kimi-Linear)
  std::string dt_bias;                   // one for each decay
  std::string norm;                      // one for each column of a head of v: the norm's weight
  float eps = 1e-6f;
  NormGate norm_gate = NormGate::silu;
  LinearSpec out;

  std::int64_t ups() const { return (gate_up ? 1 : 0) + (decay_up ? 1 : 0); }
  bool operator==(const DeltaNet&) const = default;
};

// Mamba-2 (arXiv:2405.21060). z | x | B | C | Δ = the outputs of `in`, times their multipliers;
// x | B | C ← silu(conv(x | B | C)); y = the state space of them (kernels/state_space.h); out(norm
// of y and z, kernels/gated_group_norm.h). Without a norm: out(y · silu(z)).
struct Mamba2 {
  LinearSpec in;
  LinearSpec out;
  StateSpaceLayout layout;
  CausalConv conv;
  std::string a_log, dt_bias, d;  // tensors of one element a head
  float shortest_step = 0.0f;
  float longest_step = std::numeric_limits<float>::infinity();
  std::optional<NormSpec> norm;
  std::int64_t norm_groups = 1;
  bool gate_first = true;
  std::array<float, 5> multipliers{1.0f, 1.0f, 1.0f, 1.0f, 1.0f};
  bool operator==(const Mamba2&) const = default;
};

// Mamba (arXiv:2312.00752). x | z = the outputs of `in`; x ← silu(conv(x)); Δ | B | C = x_proj(x),
// each with its norm where it has one; out(the selective scan of x, dt_proj(Δ), B, C, with the gate
// z; kernels/selective_scan.h).
struct Mamba {
  LinearSpec in;
  LinearSpec x_proj;
  LinearSpec dt_proj;
  LinearSpec out;
  CausalConv conv;
  std::int64_t state = 0;
  std::string a_log;  // a tensor [channels, state]
  std::string d;      // [channels]
  std::optional<NormSpec> dt_norm;
  std::optional<NormSpec> b_norm;
  std::optional<NormSpec> c_norm;

  std::int64_t inner() const { return out.in_features; }  // channels
  std::int64_t rank() const { return dt_proj.in_features; }
  bool operator==(const Mamba&) const = default;
};

// out(C · conv(B · x)), with B | C | x the outputs of `in` (LFM2).
struct ShortConv {
  LinearSpec in;
  LinearSpec out;
  CausalConv conv;
  bool operator==(const ShortConv&) const = default;
};

// Both read what the mixer's norm gives, and the sum of their outputs, each times its multiplier,
// goes to the residual stream (Falcon-H1).
struct AttentionBesideMamba2 {
  Attention attention;
  Mamba2 mamba;
  float attention_multiplier = 1.0f;
  float mamba_multiplier = 1.0f;
  bool operator==(const AttentionBesideMamba2&) const = default;
};

// out(f(gate) · up), or out(f(in)) where there is no gate. `in` holds gate and up, or one linear
// with gate's rows above up's, or the plain one.
struct Mlp {
  std::vector<LinearSpec> in;
  LinearSpec out;
  Activation activation = Activation::silu;
  bool gated = true;
  std::optional<Xielu> xielu = {};  // in place of `activation`
  GatedLimits limits = {};          // of gate and up
  float gate_multiplier = 1.0f;     // of gate, in front of f
  float out_multiplier = 1.0f;      // of what `out` gives

  std::int64_t width() const { return out.in_features; }
  bool operator==(const Mlp&) const = default;
};

// Which experts a token goes to, and with what weights: kernels/route.h, of multiplier · (x Wᵀ +
// b). x is what the experts read, or norm(h) of the stream; that norm's weight is the tensor
// `norm.name` itself.
struct Router {
  LinearSpec linear;         // hidden → experts
  std::string correction;    // a tensor of one element an expert; empty: none
  std::string expert_scale;  // likewise
  RouteOptions options;
  std::optional<NormSpec> norm = {};
  float multiplier = 1.0f;  // of the logits
  bool operator==(const Router&) const = default;
};

// y = Σ weight · expert(x) over the experts of a token, + shared(x). With a norm of the stream of
// their own (Gemma 4) the experts read norm(h), and the shared one what the layer's norm gives.
struct Experts {
  Router router;
  std::vector<Mlp> experts;    // alike, but for the names
  bool scales_inputs = false;  // expert(weight · x) in place of weight · expert(x) (Llama 4)
  std::optional<Mlp> shared;   // reads every token; as wide as all shared experts together
  std::optional<LinearSpec> shared_gate;  // [1, hidden]: σ(x wᵀ) multiplies shared(x)
  std::optional<NormSpec> norm = {};
  std::optional<NormSpec> after = {};         // of the experts' sum
  std::optional<NormSpec> after_shared = {};  // of the shared one's output

  std::int64_t per_token() const { return router.options.top_k; }
  bool operator==(const Experts&) const = default;
};

// A linear in place of a whole mixer or MLP (Nemotron-NAS).
struct SingleLinear {
  LinearSpec linear;
  bool operator==(const SingleLinear&) const = default;
};

struct Nothing {
  bool operator==(const Nothing&) const = default;
};

// Gemma's per-layer embeddings: h += norm(out(f(gate(h)) · e)), with e [width] this layer's columns
// of the stream's carried part.
struct PerLayerInput {
  LinearSpec gate;
  LinearSpec out;
  NormSpec norm;
  Activation activation = Activation::gelu_tanh;
  std::int64_t carried = 0;  // first column
  bool operator==(const PerLayerInput&) const = default;
};

// sequential: h += mixer(norm(h)); h += mlp(norm(h)).
// parallel:   h += mixer(norm(h)) + mlp(mlp_norm(h)); without mlp_norm the MLP reads the mixer's.
// normed:     h ← after_mixer(h + mixer(h)); h ← after_mlp(h + mlp(h)).
// A norm that is not there leaves its input as it is. Where the residual is not `normed`, the
// norms after_… act on the output before it is added.
enum class Residual { sequential, parallel, normed };

using Mixer = std::variant<Attention, LatentAttention, DeltaNet, Mamba2, Mamba, ShortConv,
                           AttentionBesideMamba2, SingleLinear, Nothing>;

struct LayerSpec {
  std::int64_t hidden = 0;  // columns of the residual stream that the layer reads and adds to
  Mixer mixer;
  std::variant<Mlp, Experts, SingleLinear, Nothing> mlp;
  std::optional<NormSpec> mixer_norm;
  std::optional<NormSpec> after_mixer;
  std::optional<NormSpec> mlp_norm;
  std::optional<NormSpec> after_mlp;
  Residual residual = Residual::sequential;
  float residual_multiplier = 1.0f;  // of what is added
  std::optional<PerLayerInput> per_layer;
  std::string scalar;  // a tensor of one element that multiplies the layer's output; empty: none

  bool shares_norm() const { return residual == Residual::parallel && !mlp_norm; }
  bool operator==(const LayerSpec&) const = default;
};

// Tokens → the residual stream of the first layer: norm(multiplier · W[id]), projected, and
// P[position + first] added.
struct Embedding {
  std::string tokens;      // [vocab, width]
  std::int64_t width = 0;  // hidden, but for a projection
  float multiplier = 1.0f;
  std::string positions;  // [positions, hidden], learned; empty: none
  std::int64_t first_position = 0;
  std::optional<NormSpec> norm;
  std::optional<LinearSpec> projection;
  bool operator==(const Embedding&) const = default;
};

// e = (norm(W h₀ / √hidden) + √width · E[id]) / √2 for all layers: [layers · width] carried columns
// (Gemma 4).
struct PerLayerEmbedding {
  std::string tokens;     // [vocab, layers · width]
  LinearSpec projection;  // hidden → layers · width
  NormSpec norm;          // of `width` columns
  std::int64_t carried = 0;
  bool operator==(const PerLayerEmbedding&) const = default;
};

// The residual stream behind the last layer → logits.
struct Head {
  std::optional<NormSpec> norm;
  std::optional<LinearSpec> projection;
  std::string name;  // "lm_head"; its weight is the embedding's where tied
  bool tied = false;
  bool bias = false;
  float multiplier = 1.0f;  // of the logits
  float soft_cap = 0.0f;    // after it; 0: none
  bool operator==(const Head&) const = default;
};

struct Architecture {
  std::string model_type;
  std::int64_t layers = 0;
  std::int64_t hidden = 0;
  std::int64_t vocab = 0;
  std::int64_t max_positions = 0;

  std::vector<LayerSpec> kinds;
  std::vector<std::uint16_t> kind_of_layer;  // as indices into `kinds`
  std::string kinds_by;  // keys of config.json that say so, for messages; empty: others do

  std::string root;          // "model.": what the decoder's tensors outside of the head begin with
  std::string layer_prefix;  // "model.layers."; layer l is PREFIX + l + "."
  Embedding embedding;
  std::optional<PerLayerEmbedding> per_layer;
  Head head;
  std::int64_t carried = 0;  // columns that travel with the residual stream, right of `hidden`

  std::size_t kind(std::int64_t layer) const {
    return kind_of_layer.at(static_cast<std::size_t>(layer));
  }
  const LayerSpec& layer(std::int64_t index) const { return kinds.at(kind(index)); }
  std::int64_t stream_width() const { return hidden + carried; }
  bool operator==(const Architecture&) const = default;
};

// "model.layers.3." for layer 3.
inline std::string layer_prefix(const Architecture& architecture, std::int64_t index) {
  return architecture.layer_prefix + std::to_string(index) + ".";
}

}  // namespace qpipe
