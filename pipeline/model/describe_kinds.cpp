#include "pipeline/model/describe_kinds.h"

#include <algorithm>

#include "stages/layer.h"

namespace qpipe {

namespace {

using Words = std::vector<std::string>;

class Description {
 public:
  void add(bool is_so, const std::string& words) {
    if (is_so) words_.push_back(words);
  }
  Words words() const { return words_; }

 private:
  Words words_;
};

void describe(const Rope& rope, std::int64_t head_dim, Description& d) {
  if (!rope.enabled) return;
  const auto rotated = 2 * static_cast<std::int64_t>(rope.inverse_frequencies.size());
  d.add(true, std::string(rotated < head_dim ? "partial " : "") +
                  (rope.interleaved ? "interleaved RoPE" : "RoPE"));
}

void describe(const Attention& a, Description& d) {
  const HeadLayout& h = a.heads;
  d.add(true, h.kv_heads == h.heads ? "multi-head attention"
              : h.kv_heads == 1     ? "multi-query attention"
                                    : "grouped-query attention");
  d.add(a.qkv.size() == 1 && a.takes_kv < 0, "fused q, k, v");
  describe(a.rope, h.head_dim, d);
  d.add(!a.alibi.slopes.empty(), "ALiBi");
  d.add(a.window > 0, "window");
  d.add(a.chunk > 0, "chunks");
  const auto layout = a.q_norm ? a.q_norm->layout : HeadNorm::Weight::shared;
  d.add(a.q_norm.has_value(),
        std::string("norms of q and k") +
            (layout == HeadNorm::Weight::whole    ? " over all heads"
             : layout == HeadNorm::Weight::shared ? ""
                                                  : " with weights for each head") +
            (a.norms_after_rope ? " after RoPE" : ""));
  d.add(a.v_norm.has_value(), "norm of v");
  d.add(a.values_are_keys, "values from k's projection");
  d.add(a.keeps_kv >= 0, "keys and values kept for later layers");
  d.add(a.takes_kv >= 0, "keys and values of an earlier layer");
  d.add(a.query_scale.beta != 0.0f, "queries scaled by position");
  d.add(h.value_dim() != h.head_dim, "values of another width than keys");
  d.add(a.value_scale != 1.0f, "scaled values");
  d.add(!a.sinks.empty(), "attention sinks");
  d.add(a.gate_beside_q, "gated attention");
  d.add(a.gate.has_value(), a.gate && a.gate->out_features == h.heads
                                ? "a gate on each head's output"
                                : "gated attention");
  d.add(a.soft_cap > 0.0f, "soft cap on scores");
  d.add(a.clip_qkv > 0.0f, "clipped q, k, v");
}

void describe(const LatentAttention& a, Description& d) {
  d.add(true, a.q_a ? "latent attention" : "latent attention without a latent of q");
  describe(a.rope, a.rope_dim, d);
  d.add(a.query_scale.beta != 0.0f, "queries scaled by position");
  d.add(a.value_dim != a.head_dim(), "values of another width than keys");
  d.add(a.indexer.has_value(), "an indexer that chooses tokens");
  d.add(a.chosen_before > 0, "tokens that an earlier layer chose");
}

void describe(const DeltaNet& n, Description& d) {
  d.add(true, n.heads.channel_decay ? "gated delta net with a decay for each channel"
                                    : "gated delta net");
}

void describe(const CausalConv& conv, Description& d) {
  d.add(true, "convolution over " + std::to_string(conv.kernel) + " tokens");
}

void describe(const Mamba2& m, Description& d) {
  d.add(true, "Mamba-2");
  d.add(m.layout.groups > 1, "groups of B and C");
  describe(m.conv, d);
  d.add(!m.norm, "no gated norm");
  d.add(m.norm && !m.gate_first, "gate behind its norm");
  d.add(m.multipliers != std::array{1.0f, 1.0f, 1.0f, 1.0f, 1.0f}, "scaled z, x, B, C, Δ");
}

void describe(const Mamba& m, Description& d) {
  d.add(true, "Mamba");
  describe(m.conv, d);
  d.add(m.dt_norm.has_value(), "norms of Δ, B, C");
}

void describe(const ShortConv& s, Description& d) {
  d.add(true, "gated short convolution");
  describe(s.conv, d);
}

void describe(const AttentionBesideMamba2& both, Description& d) {
  describe(both.attention, d);
  describe(both.mamba, d);
  d.add(true, "both on one norm");
}

void describe(const Mlp& m, Description& d) {
  d.add(true, m.xielu ? "plain MLP with xIELU" : m.gated ? "gated MLP" : "plain MLP");
  d.add(!m.xielu && m.activation == Activation::relu2, "squared ReLU");
  d.add(m.gated && m.in.size() == 1, "fused gate and up");
}

void describe(const Experts& e, Description& d) {
  const RouteOptions& o = e.router.options;
  d.add(true, std::to_string(o.top_k) + " of " + std::to_string(e.experts.size()) + " experts");
  d.add(o.scoring == Scoring::sigmoid, "sigmoid router");
  d.add(o.scoring == Scoring::sparse_mixer, "sparse mixer");
  d.add(!e.router.correction.empty(), "corrected choice of experts");
  d.add(o.groups > 1, "groups of experts");
  d.add(e.shared.has_value(), e.shared_gate ? "shared expert behind a gate" : "shared expert");
  d.add(e.scales_inputs, "scaled inputs of experts");
  d.add(e.norm.has_value(), "experts beside the MLP with norms of their own");
  describe(e.experts.front(), d);
}

void describe_norms(const LayerSpec& spec, Description& d) {
  const std::optional<NormSpec>& norm = spec.mixer_norm    ? spec.mixer_norm
                                        : spec.mlp_norm    ? spec.mlp_norm
                                        : spec.after_mixer ? spec.after_mixer
                                                           : spec.after_mlp;
  if (norm) {
    d.add(norm->kind == NormKind::layer, "layer norm");
    d.add(norm->offset != 0.0f, "norms stored as w − 1");
    d.add(!norm->weight, "norms without weights");
  }
  const bool before = spec.mixer_norm || spec.mlp_norm;
  const bool after = spec.after_mixer || spec.after_mlp;
  d.add(after && before, "norms before and behind the blocks");
  d.add(after && !before,
        spec.residual == Residual::normed ? "norms of the sums" : "norms behind the blocks");
  d.add(spec.residual == Residual::parallel,
        spec.mlp_norm ? "parallel blocks with two norms" : "parallel blocks");
}

Words describe(const LayerSpec& spec) {
  Description d;
  if (const auto* a = std::get_if<Attention>(&spec.mixer)) describe(*a, d);
  if (const auto* a = std::get_if<LatentAttention>(&spec.mixer)) describe(*a, d);
  if (const auto* n = std::get_if<DeltaNet>(&spec.mixer)) describe(*n, d);
  if (const auto* m = std::get_if<Mamba2>(&spec.mixer)) describe(*m, d);
  if (const auto* m = std::get_if<Mamba>(&spec.mixer)) describe(*m, d);
  if (const auto* s = std::get_if<ShortConv>(&spec.mixer)) describe(*s, d);
  if (const auto* b = std::get_if<AttentionBesideMamba2>(&spec.mixer)) describe(*b, d);
  d.add(std::holds_alternative<SingleLinear>(spec.mixer), "a linear in place of attention");
  d.add(std::holds_alternative<Nothing>(spec.mixer), "no attention");
  if (const auto* m = std::get_if<Mlp>(&spec.mlp)) describe(*m, d);
  if (const auto* e = std::get_if<Experts>(&spec.mlp)) describe(*e, d);
  d.add(std::holds_alternative<SingleLinear>(spec.mlp), "a linear in place of the MLP");
  d.add(std::holds_alternative<Nothing>(spec.mlp), "no MLP");
  describe_norms(spec, d);
  d.add(spec.per_layer.has_value(), "per-layer embeddings");
  d.add(!spec.scalar.empty(), "scaled output");
  const std::vector<LinearSpec> linears = layer_linears(spec);
  d.add(std::any_of(linears.begin(), linears.end(), [](const auto& l) { return l.transposed; }),
        "weights stored [in, out]");
  d.add(spec.residual_multiplier != 1.0f, "residual multiplier");
  return d.words();
}

}  // namespace

Words describe_kinds(const Architecture& a) {
  std::vector<Words> kinds;
  for (const LayerSpec& kind : a.kinds) kinds.push_back(describe(kind));
  Words all;
  for (const Words& kind : kinds)
    for (const std::string& words : kind)
      if (std::find(all.begin(), all.end(), words) == all.end()) all.push_back(words);
  for (std::string& words : all)
    if (!std::all_of(kinds.begin(), kinds.end(), [&](const Words& kind) {
          return std::find(kind.begin(), kind.end(), words) != kind.end();
        }))
      words += " (some layers)";
  Description outside;
  outside.add(!a.embedding.positions.empty(), "learned positions");
  outside.add(a.embedding.norm.has_value(), "norm of the embedding");
  outside.add(a.embedding.projection.has_value(), "projected embedding");
  outside.add(a.head.soft_cap > 0.0f, "soft cap on logits");
  outside.add(a.head.tied, "tied head");
  for (const std::string& words : outside.words()) all.push_back(words);
  return all;
}

}  // namespace qpipe
