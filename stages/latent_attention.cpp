#include "stages/latent_attention.h"

#include <algorithm>

#include "kernels/linear.h"
#include "kernels/multiply.h"
#include "kernels/shared_key.h"
#include "kernels/token_selection.h"
#include "stages/attention.h"
#include "stages/layer_lists.h"
#include "stages/rope_table.h"

namespace qpipe {

namespace {

std::int64_t q_width(const LatentAttention& a) { return a.heads * a.head_dim(); }

// What the second step reads of q: its latent, or q itself.
std::int64_t q_columns(const LatentAttention& a) {
  return a.q_a ? a.q_a->out_features : q_width(a);
}

std::int64_t kv_columns(const LatentAttention& a) { return a.latent() + a.rope_dim; }

// The indexer's key, and behind it its weights.
std::int64_t index_columns(const LatentAttention& a) {
  return a.indexer ? a.indexer->head_dim + a.indexer->heads : 0;
}

bool selects(const LatentAttention& a, std::int64_t seqlen) {
  return a.indexer && seqlen > a.indexer->top_k;
}

// The panels of the second step's input.
template <class Void>
struct Latents {
  AnyMatrix<Void> q;
  AnyMatrix<Void> kv;     // normed
  AnyMatrix<Void> key;    // the shared one, not yet rotated
  AnyMatrix<Void> index;  // the indexer's
};

template <class Void>
Latents<Void> panels(const LatentAttention& a, AnyMatrix<Void> input) {
  const AnyMatrix<Void> q = input.part(0, input.rows, q_columns(a));
  const AnyMatrix<Void> kv = input.part(q.size(), input.rows, kv_columns(a));
  const AnyMatrix<Void> index = input.part(q.size() + kv.size(), input.rows, index_columns(a));
  return {q, kv.col_range(0, a.latent()), kv.col_range(a.latent(), a.rope_dim), index};
}

// q of all heads, then k and v of each.
HeadLayout fused_heads(const LatentAttention& a) {
  HeadLayout h;
  h.heads = a.heads;
  h.kv_heads = a.heads;
  h.head_dim = a.head_dim();
  h.v_dim = a.value_dim;
  h.q_group_stride = a.head_dim();
  h.kv_stride = a.head_dim() + a.value_dim;
  h.k_begin = q_width(a);
  h.v_begin = q_width(a) + a.head_dim();
  return h;
}

// The columns of q and k that are rotated, for a view that begins `nope` columns later. Nobody
// reads v there.
HeadLayout rotated_heads(const LatentAttention& a) {
  HeadLayout h = fused_heads(a);
  h.head_dim = a.rope_dim;
  h.q_block = 1;
  h.kv_block = 1;
  h.v_dim = a.rope_dim;
  h.v_begin = h.k_begin;
  return h;
}

void make_latents(const LatentAttention& a, const MixerRun& run, Stream& stream) {
  const Layer& layer = run.layer;
  const std::int64_t tokens = run.x.rows;
  const Tensor q = run.scratch.part(0, tokens, q_columns(a));
  const Tensor kv = run.scratch.part(q.size(), tokens, kv_columns(a));
  project({a.q_a ? *a.q_a : a.q}, layer, run.x, q, stream);
  project({a.kv_a}, layer, run.x, kv, stream);
  const Tensor index = run.scratch.part(q.size() + kv.size(), tokens, index_columns(a));
  if (a.indexer) project({a.indexer->k, a.indexer->weights}, layer, run.x, index, stream);
  const Latents<void> y = panels(a, run.y);
  if (a.q_norm)
    apply_norm(*a.q_norm, layer.norms.at(a.q_norm->name), q, y.q, stream);
  else
    convert(q, y.q, stream);
  apply_norm(a.kv_norm, layer.norms.at(a.kv_norm.name), kv.col_range(0, a.latent()), y.kv, stream);
  convert(kv.col_range(a.latent(), a.rope_dim), y.key, stream);
  if (!a.indexer) return;
  const TokenIndexer& i = *a.indexer;
  const Tensor key = y.index.col_range(0, i.head_dim);
  convert(index.col_range(0, i.head_dim), key, stream);
  apply_norm(i.k_norm, layer.norms.at(i.k_norm.name), key, key, stream);
  convert(index.col_range(i.head_dim, i.heads), y.index.col_range(i.head_dim, i.heads), stream);
}

// The indexer's heads of q, its key and its weights side by side, rotated.
Tensor index_heads(const LatentAttention& a, const MixerRun& run, const Latents<const void>& x,
                   Tensor memory, Stream& stream) {
  const TokenIndexer& i = *a.indexer;
  const std::int64_t width = i.q.out_features;
  project({i.q}, run.layer, x.q, memory.col_range(0, width), stream);
  convert(x.index, memory.col_range(width, index_columns(a)), stream);
  HeadLayout h;
  h.heads = i.heads;
  h.kv_heads = 1;
  h.head_dim = a.rope_dim;
  h.q_block = 1;
  h.q_group_stride = i.head_dim;
  h.kv_stride = i.head_dim;
  h.k_begin = width;
  h.v_begin = width;
  if (a.rope.enabled)
    rope(memory, h, run.tables.inverse_frequencies, amplitude_of(a.rope, run.seqlen), i.interleaved,
         run.seqlen, stream);
  return memory;
}

// Sequence by sequence, as the choice of one is in memory at a time.
void attend_selected(const LatentAttention& a, const MixerRun& run, ConstTensor fused,
                     ConstTensor index, AttentionOptions options, Stream& stream) {
  const TokenIndexer& i = *a.indexer;
  const std::int64_t n = run.seqlen;
  options.selected = run.tables.selected;
  for (std::int64_t begin = 0; begin < fused.rows; begin += n) {
    const ConstTensor one = index.row_range(begin, n);
    select_tokens(one.col_range(0, i.q.out_features), one.col_range(i.q.out_features, i.head_dim),
                  one.col_range(i.q.out_features + i.head_dim, i.heads), i.top_k,
                  run.tables.selected, stream);
    attention(fused.row_range(begin, n), fused_heads(a), n, options, run.y.row_range(begin, n),
              stream);
  }
}

void attend(const LatentAttention& a, const MixerRun& run, Stream& stream) {
  const Layer& layer = run.layer;
  const std::int64_t tokens = run.x.rows;
  const Latents<const void> x = panels(a, run.x);
  const HeadLayout heads = fused_heads(a);
  const Tensor fused = run.scratch.part(0, tokens, heads.width());
  const Tensor kv = run.scratch.part(fused.size(), tokens, a.kv_b.out_features);
  const Tensor q = fused.col_range(0, q_width(a));
  if (a.q_a)
    project({a.q}, layer, x.q, q, stream);
  else
    convert(x.q, q, stream);
  project({a.kv_b}, layer, x.kv, kv, stream);
  insert_shared_key(kv, x.key, a.heads, a.nope,
                    fused.col_range(heads.k_begin, heads.width() - heads.k_begin), stream);
  if (a.rope.enabled)
    rope(fused.col_range(a.nope, fused.cols - a.nope), rotated_heads(a),
         run.tables.inverse_frequencies, amplitude_of(a.rope, run.seqlen), a.rope.interleaved,
         run.seqlen, stream);
  if (!run.tables.query_scale.empty()) scale_rows(q, run.tables.query_scale, stream);
  AttentionOptions options;
  options.scale = a.scale;
  if (!selects(a, run.seqlen)) return attention(fused, heads, run.seqlen, options, run.y, stream);
  const Tensor memory = run.scratch.part(fused.size() + kv.size(), tokens,
                                         a.indexer->q.out_features + index_columns(a));
  attend_selected(a, run, fused, index_heads(a, run, x, memory, stream), options, stream);
}

}  // namespace

std::vector<LinearSpec> mixer_linears(const LatentAttention& a) {
  std::vector<LinearSpec> linears;
  if (a.q_a) linears.push_back(*a.q_a);
  if (!a.q_a) linears.push_back(a.q);
  linears.push_back(a.kv_a);
  if (a.indexer) linears.insert(linears.end(), {a.indexer->k, a.indexer->weights});
  if (a.q_a) linears.push_back(a.q);
  if (a.indexer) linears.push_back(a.indexer->q);
  linears.insert(linears.end(), {a.kv_b, a.out});
  return linears;
}

const LinearSpec& last_linear(const LatentAttention& a) { return a.out; }

void add_mixer_norms(const LatentAttention& a, std::vector<NormTensors>& norms) {
  add_norm(a.q_norm, norms);
  add_norm(std::optional(a.kv_norm), norms);
  if (a.indexer) add_norm(std::optional(a.indexer->k_norm), norms);
}

std::vector<TensorSpec> mixer_vectors(const LatentAttention&) { return {}; }

void add_mixer_steps(const LatentAttention& a, std::int64_t hidden, std::vector<Step>& steps) {
  const std::size_t in = a.indexer ? 4 : 2;
  const std::size_t of_q = (a.q_a ? 1 : 0) + (a.indexer ? 1 : 0);  // linears that read q's latent
  steps.push_back(make_step(Part::mixer, 0, hidden, 0, in));
  Step latents =
      make_step(Part::mixer, 1, q_columns(a) + kv_columns(a) + index_columns(a), in, of_q + 1);
  latents.panels = {{q_columns(a), 1, false}, {kv_columns(a), 1, false}};
  if (a.indexer) latents.panels.push_back({index_columns(a), 1, false});
  const std::size_t kv_b = latents.runs.back();
  latents.groups.clear();
  if (a.q_a)
    latents.groups.push_back({0, q_columns(a), {latents.runs.begin(), latents.runs.end() - 1}, 0});
  latents.groups.push_back({0, a.latent(), {kv_b}, 1});
  latents.attention_width = a.heads * (a.head_dim() + a.value_dim) / 2;
  steps.push_back(std::move(latents));
  steps.push_back(make_step(Part::mixer, 2, a.out.in_features, kv_b + 1, 1));
}

std::int64_t mixer_scratch_width(const LatentAttention& a) {
  const std::int64_t index = a.indexer ? a.indexer->q.out_features + index_columns(a) : 0;
  return std::max(q_columns(a) + kv_columns(a) + index_columns(a),
                  fused_heads(a).width() + a.kv_b.out_features + index);
}

KindTables make_mixer_tables(const LatentAttention& a, std::int64_t seqlen, Stream& stream) {
  KindTables tables;
  tables.inverse_frequencies = rope_table(a.rope, seqlen, stream);
  tables.query_scale = query_scale_table(a.query_scale, seqlen, stream);
  if (selects(a, seqlen))
    tables.selected = Array<std::uint32_t>(seqlen, selection_words(seqlen), stream);
  return tables;
}

std::int64_t mixer_table_bytes(const LatentAttention& a, std::int64_t seqlen) {
  return rope_table_bytes(a.rope, seqlen) + query_scale_table_bytes(a.query_scale, seqlen) +
         (selects(a, seqlen) ? 4 * seqlen * selection_words(seqlen) : 0);
}

void run_mixer(const LatentAttention& a, const MixerRun& run, Stream& stream) {
  if (run.number == 0) return make_latents(a, run, stream);
  attend(a, run, stream);
}

}  // namespace qpipe
