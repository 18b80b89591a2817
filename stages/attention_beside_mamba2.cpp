#include "stages/attention_beside_mamba2.h"

#include "stages/attention.h"
#include "stages/layer_lists.h"
#include "stages/mamba2.h"

namespace qpipe {

namespace {

// Of attention, those in front of its last.
std::size_t qkv_linears(const AttentionBesideMamba2& b) {
  return mixer_linears(b.attention).size() - 1;
}

}  // namespace

std::vector<LinearSpec> mixer_linears(const AttentionBesideMamba2& b) {
  std::vector<LinearSpec> linears = mixer_linears(b.attention);
  linears.insert(linears.end() - 1, b.mamba.in);
  linears.push_back(b.mamba.out);
  return linears;
}

std::vector<MixerOutput> mixer_outputs(const AttentionBesideMamba2& b) {
  return {{b.attention.out, b.attention_multiplier}, {b.mamba.out, b.mamba_multiplier}};
}

void add_mixer_norms(const AttentionBesideMamba2& b, std::vector<NormTensors>& norms) {
  add_mixer_norms(b.attention, norms);
  add_mixer_norms(b.mamba, norms);
}

std::vector<TensorSpec> mixer_vectors(const AttentionBesideMamba2& b) {
  std::vector<TensorSpec> tensors = mixer_vectors(b.attention);
  const std::vector<TensorSpec> of_mamba = mixer_vectors(b.mamba);
  tensors.insert(tensors.end(), of_mamba.begin(), of_mamba.end());
  return tensors;
}

void add_mixer_steps(const AttentionBesideMamba2& b, std::int64_t hidden,
                     std::vector<Step>& steps) {
  std::vector<Step> of_attention;
  add_mixer_steps(b.attention, hidden, of_attention);
  const std::size_t first_out = qkv_linears(b) + 1;
  Step in = make_step(Part::mixer, 0, hidden, 0, first_out);
  in.attention_width = of_attention.front().attention_width;
  const std::int64_t heads = b.attention.out.in_features;
  const std::int64_t inner = b.mamba.out.in_features;
  Step out = make_step(Part::mixer, 1, heads + inner, first_out, 2);
  out.panels = {{heads, 1, false}, {inner, 1, false}};
  out.groups = {{0, heads, {first_out}, 0}, {0, inner, {first_out + 1}, 1}};
  steps.push_back(std::move(in));
  steps.push_back(std::move(out));
}

std::int64_t mixer_scratch_width(const AttentionBesideMamba2& b) {
  return mixer_scratch_width(b.mamba) + mixer_scratch_width(b.attention);
}

KindTables make_mixer_tables(const AttentionBesideMamba2& b, std::int64_t seqlen, Stream& stream) {
  return make_mixer_tables(b.attention, seqlen, stream);
}

std::int64_t mixer_table_bytes(const AttentionBesideMamba2& b, std::int64_t seqlen) {
  return mixer_table_bytes(b.attention, seqlen);
}

// y may lie where x does: it is written when both have read.
void run_mixer(const AttentionBesideMamba2& b, const MixerRun& run, Stream& stream) {
  const std::int64_t tokens = run.x.rows;
  const Tensor of_mamba = run.scratch.part(0, tokens, mixer_scratch_width(b.mamba));
  const StateSpaceOutput states =
      run_state_space(b.mamba, run.layer, run.seqlen, run.x, of_mamba, stream);
  MixerRun attention = run;
  attention.y = run.y.part(0, tokens, b.attention.out.in_features);
  attention.scratch = run.scratch.part(of_mamba.size(), tokens, mixer_scratch_width(b.attention));
  run_mixer(b.attention, attention, stream);
  gate_output(b.mamba, run.layer, states,
              run.y.part(attention.y.size(), tokens, b.mamba.out.in_features), stream);
}

}  // namespace qpipe
