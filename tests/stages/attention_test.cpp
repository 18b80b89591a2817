// Attention as data says it, from the input of q, k and v to the heads' outputs, in double
// precision: norms, rope, scales, sinks and gates, for heads of values as wide as keys or not, and
// wherever they lie in a row.
#include "stages/attention.h"

#include <cmath>
#include <functional>

#include "tests/kernels/backends.h"

namespace qpipe {
namespace {

using Exact = std::vector<double>;
using Values = std::vector<float>;

constexpr std::int64_t hidden = 48;

std::size_t at(std::int64_t row, std::int64_t col, std::int64_t cols) {
  return static_cast<std::size_t>(row * cols + col);
}

// q|k|v side by side, or for each kv head its q heads, k, v.
HeadLayout side_by_side(std::int64_t heads, std::int64_t kv_heads, std::int64_t d, std::int64_t v) {
  HeadLayout h{heads, kv_heads, d};
  h.q_group_stride = h.group() * d;
  h.kv_stride = d;
  h.kv_block = kv_heads;
  h.k_begin = heads * d;
  h.v_begin = h.k_begin + kv_heads * d;
  h.v_dim = v;
  return h;
}
HeadLayout by_group(std::int64_t heads, std::int64_t kv_heads, std::int64_t d, std::int64_t v) {
  HeadLayout h{heads, kv_heads, d};
  h.k_begin = h.group() * d;
  h.v_begin = h.k_begin + d;
  h.q_group_stride = h.kv_stride = h.v_begin + v;
  h.v_dim = v;
  return h;
}

Rope rope_of(std::int64_t rotated, bool interleaved = false) {
  Rope rope;
  rope.enabled = true;
  rope.interleaved = interleaved;
  for (std::int64_t i = 0; i < rotated; i += 2)
    rope.inverse_frequencies.push_back(
        std::pow(100.0f, -static_cast<float>(i) / static_cast<float>(rotated)));
  return rope;
}

// q, k and v of their own where `layout` has them side by side.
Attention make_attention(const HeadLayout& layout, bool fused) {
  Attention a;
  a.heads = layout;
  const std::int64_t q = layout.heads * layout.head_dim;
  const std::int64_t k = layout.kv_heads * layout.head_dim;
  const std::int64_t v = layout.kv_heads * layout.value_dim();
  if (fused)
    a.qkv = {{"qkv", q + k + v, hidden, true}};
  else
    a.qkv = {{"q", q, hidden, true}, {"k", k, hidden}, {"v", v, hidden, true}};
  a.out = {"o", hidden, layout.heads * layout.value_dim()};
  a.scale = 1.0f / std::sqrt(static_cast<float>(layout.head_dim));
  return a;
}

HeadNorm norm_of(const std::string& name, std::int64_t width, bool weight = true) {
  HeadNorm norm;
  norm.norm = {name, width};
  norm.norm.weight = weight;
  norm.norm.offset = weight ? 1.0f : 0.0f;
  return norm;
}

class AttentionHeads : public BackendTest {
 protected:
  // The layer's tensors by name, as the device has them.
  std::map<std::string, Values> tensors;
  std::vector<Buffer> memory;
  LayerSpec spec;

  ConstTensor put(const std::string& name, std::int64_t rows, std::int64_t cols) {
    TensorArray array = upload(tensors.at(name), rows, cols);
    memory.push_back(std::move(array.memory));
    return array.view;
  }

  Layer make_layer(const Attention& a) {
    spec.hidden = hidden;
    spec.mixer = a;
    spec.mlp = Nothing{};
    tensors.clear();
    unsigned seed = 10;
    for (const TensorSpec& tensor : layer_tensors(spec)) {
      std::int64_t size = 1;
      for (const std::int64_t n : tensor.shape) size *= n;
      const bool matrix = tensor.role == TensorRole::weight;
      tensors[tensor.name] = random_normal(size, ++seed, matrix ? 0.2f : 1.0f);
      if (tensor.role != TensorRole::vector)
        tensors[tensor.name] = round_to_compute(tensors[tensor.name]);
    }
    Layer layer;
    layer.spec = &spec;
    for (const LinearSpec& l : layer_linears(spec)) {
      Linear& linear = layer.linears.emplace_back();
      linear.name = "layers.0." + l.name;
      const ConstTensor weight = put(l.name + ".weight", l.out_features, l.in_features);
      linear.weight = {const_cast<void*>(weight.data), weight.dtype, weight.rows, weight.cols};
      if (l.bias) linear.bias = put(l.name + ".bias", 1, l.out_features);
    }
    for (const NormTensors& norm : layer_norms(spec)) {
      Norm& made = layer.norms[norm.name];
      if (!norm.weights.empty()) made.weight = put(norm.weights.front(), norm.rows, norm.width);
    }
    if (!a.sinks.empty()) {
      Array<float> sinks = upload_as(tensors.at(a.sinks), 1, a.heads.heads);
      layer.vectors[a.sinks] = {sinks.view.data, 1, a.heads.heads};
      layer.memory.push_back(std::move(sinks.memory));
    }
    return layer;
  }

  Exact project(const LinearSpec& l, const Values& x, std::int64_t tokens) const {
    const Values& weight = tensors.at(l.name + ".weight");
    Exact y;
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t o = 0; o < l.out_features; ++o) {
        double sum = l.bias ? tensors.at(l.name + ".bias")[at(0, o, l.out_features)] : 0.0;
        for (std::int64_t i = 0; i < hidden; ++i)
          sum += double{x[at(t, i, hidden)]} * weight[at(o, i, hidden)];
        y.push_back(sum);
      }
    return y;
  }

  // In place, on one head.
  void norm(const std::optional<HeadNorm>& spec_of, std::int64_t head, Exact& x) const {
    if (!spec_of) return;
    double squares = 0.0;
    for (const double value : x) squares += value * value;
    const double rms = std::sqrt(squares / static_cast<double>(x.size()) + spec_of->norm.eps);
    const bool rows = spec_of->layout == HeadNorm::Weight::per_head;
    for (std::size_t i = 0; i < x.size(); ++i) {
      x[i] /= rms;
      if (spec_of->norm.weight)
        x[i] *= spec_of->norm.offset +
                tensors.at(spec_of->norm.name +
                           ".weight")[(rows ? static_cast<std::size_t>(head) * x.size() : 0) + i];
    }
  }

  static void turn(const Rope& rope, std::int64_t seqlen, std::int64_t position, Exact& x) {
    if (!rope.enabled) return;
    const bool longer = rope.longest > 0 && seqlen > rope.longest;
    const Values& f = longer ? rope.longer_frequencies : rope.inverse_frequencies;
    const double amplitude = longer ? rope.longer_amplitude : rope.amplitude;
    for (std::size_t i = 0; i < f.size(); ++i) {
      const std::size_t first = rope.interleaved ? 2 * i : i;
      const std::size_t second = rope.interleaved ? first + 1 : i + f.size();
      const double angle = static_cast<double>(static_cast<float>(position) * f[i]);
      const double c = amplitude * std::cos(angle);
      const double s = amplitude * std::sin(angle);
      const double kept = x[first];
      x[first] = kept * c - x[second] * s;
      x[second] = x[second] * c + kept * s;
    }
  }

  // [tokens, heads · V]
  Exact reference(const Attention& a, const Values& x, std::int64_t samples,
                  std::int64_t seqlen) const {
    const HeadLayout& h = a.heads;
    const std::int64_t tokens = samples * seqlen;
    const std::int64_t width = h.width();
    Exact qkv(at(tokens, 0, width));
    std::int64_t column = 0;
    for (const LinearSpec& l : a.qkv) {
      const Exact y = project(l, x, tokens);
      for (std::int64_t t = 0; t < tokens; ++t)
        for (std::int64_t o = 0; o < l.out_features; ++o)
          qkv[at(t, column + o, width)] = y[at(t, o, l.out_features)];
      column += l.out_features;
    }
    const auto head_at = [&](std::int64_t t, std::int64_t first, std::int64_t count) {
      const auto begin = qkv.begin() + t * width + first;
      return Exact(begin, begin + count);
    };
    const auto normed_and_turned = [&](const std::optional<HeadNorm>& its, std::int64_t head,
                                       std::int64_t t, Exact y) {
      if (!a.norms_after_rope) norm(its, head, y);
      turn(a.rope, seqlen, t % seqlen, y);
      if (a.norms_after_rope) norm(its, head, y);
      return y;
    };
    const Exact gates = a.gate ? project(*a.gate, x, tokens) : Exact{};
    const std::int64_t gate_width =
        a.gate ? h.heads * h.value_dim() / a.gate->out_features : 1;  // columns of one gate
    Exact out;
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t head = 0; head < h.heads; ++head) {
        const std::int64_t g = head / h.group();
        const std::int64_t i = t % seqlen;
        Exact q = normed_and_turned(a.q_norm, head, t, head_at(t, h.q_column(head), h.head_dim));
        if (a.query_scale.beta != 0.0f)
          for (double& value : q)
            value *=
                1.0 + a.query_scale.beta *
                          std::log(1.0 + std::floor(static_cast<double>(i + a.query_scale.first) /
                                                    static_cast<double>(a.query_scale.positions)));
        double sum = a.sinks.empty()
                         ? 0.0
                         : std::exp(double{tensors.at(a.sinks)[static_cast<std::size_t>(head)]});
        Exact y(static_cast<std::size_t>(h.value_dim()));
        for (std::int64_t j = 0; j <= i; ++j) {
          if (a.window > 0 && j <= i - a.window) continue;
          if (a.chunk > 0 && j / a.chunk != i / a.chunk) continue;
          const std::int64_t row = t - i + j;
          const Exact k =
              normed_and_turned(a.k_norm, g, row, head_at(row, h.k_column(g), h.head_dim));
          Exact v = head_at(row, h.v_column(g), h.value_dim());
          norm(a.v_norm, g, v);
          double score = 0.0;
          for (std::size_t e = 0; e < q.size(); ++e) score += q[e] * k[e];
          const double p = std::exp(a.scale * score);
          sum += p;
          for (std::size_t e = 0; e < y.size(); ++e) y[e] += p * a.value_scale * v[e];
        }
        for (std::size_t e = 0; e < y.size(); ++e) {
          const std::int64_t c = head * h.value_dim() + static_cast<std::int64_t>(e);
          const double gate =
              a.gate ? 1.0 / (1.0 + std::exp(-gates[at(t, c / gate_width, a.gate->out_features)]))
                     : 1.0;
          out.push_back(y[e] / sum * gate);
        }
      }
    return out;
  }

  // y in x's memory, as advance() has it; NaN behind the scratch columns that are asked for.
  Values run(const Attention& a, const Layer& layer, const Values& x, std::int64_t samples,
             std::int64_t seqlen) {
    const std::int64_t tokens = samples * seqlen;
    const std::int64_t out = a.heads.heads * a.heads.value_dim();
    const std::int64_t scratch_size = tokens * mixer_scratch_width(a);
    constexpr std::int64_t behind = 256;
    Values input = x;
    input.resize(at(tokens, 0, std::max(hidden, out)));
    const TensorArray shared = upload(input, tokens, std::max(hidden, out));
    const TensorArray scratch =
        upload(Values(static_cast<std::size_t>(scratch_size + behind), std::nanf("")), 1,
               scratch_size + behind);
    const Tensor y = shared.view.part(0, tokens, out);
    const KindTables tables = make_mixer_tables(a, seqlen, stream);
    run_mixer(a,
              {layer,
               tables,
               0,
               seqlen,
               shared.view.part(0, tokens, hidden),
               {},
               y,
               scratch.view.part(0, tokens, mixer_scratch_width(a))},
              stream);
    for (const float value : download(scratch.view.part(scratch_size, 1, behind)))
      EXPECT_TRUE(std::isnan(value)) << "written behind the scratch columns";
    return download(y);
  }

  // ‖got − want‖ / ‖want‖ of the head that is worst.
  static double error(const Attention& a, const Values& got, const Exact& want) {
    const auto v = static_cast<std::size_t>(a.heads.value_dim());
    const auto heads = static_cast<std::size_t>(a.heads.heads);
    Exact difference(heads);
    Exact norm(heads);
    EXPECT_EQ(got.size(), want.size());
    for (std::size_t i = 0; i < want.size(); ++i) {
      difference[i / v % heads] += std::pow(got[i] - want[i], 2);
      norm[i / v % heads] += std::pow(want[i], 2);
    }
    double worst = 0.0;
    for (std::size_t h = 0; h < heads; ++h)
      worst = std::max(worst, std::sqrt(difference[h] / norm[h]));
    return std::isfinite(worst) ? worst : 1e9;
  }

  // `without`: changes of the attention that must show, each by itself. A dozen roundings of
  // relative size ε, of which scores of up to five take their share: 32 ε; on CUDA q, k and v are
  // rounded to bfloat16 in between.
  using Change = std::function<void(Attention&)>;
  void check(const Attention& a, const std::vector<Change>& without, std::int64_t samples = 2,
             std::int64_t seqlen = 41) {
    const Layer layer = make_layer(a);
    const Values x = round_to_compute(random_normal(samples * seqlen * hidden, 3));
    const Values got = run(a, layer, x, samples, seqlen);
    EXPECT_LT(error(a, got, reference(a, x, samples, seqlen)),
              stream.on_cuda() ? 0.04 : 32.0 * epsilon());
    for (std::size_t i = 0; i < without.size(); ++i) {
      Attention changed = a;
      without[i](changed);
      EXPECT_GT(error(a, got, reference(changed, x, samples, seqlen)), 0.08) << "change " << i;
    }
  }

  static void no_sinks(Attention& a) { a.sinks.clear(); }
  static void no_gate(Attention& a) { a.gate.reset(); }
  static void no_value_scale(Attention& a) { a.value_scale = 1.0f; }
  static void no_rope(Attention& a) { a.rope.enabled = false; }
  static void no_q_norm(Attention& a) { a.q_norm.reset(); }
  static void no_k_norm(Attention& a) { a.k_norm.reset(); }
  static void no_v_norm(Attention& a) { a.v_norm.reset(); }
};

TEST_P(AttentionHeads, Sinks) {
  for (const std::int64_t window : {0, 8}) {
    Attention a = make_attention(side_by_side(6, 2, 16, 16), false);
    a.rope = rope_of(16);
    a.window = window;
    a.sinks = "sinks";
    check(a, {no_sinks, no_rope});
  }
}

// A gate for each column, or one for each head.
TEST_P(AttentionHeads, Gates) {
  for (const std::int64_t gates : {96, 6}) {
    Attention a = make_attention(side_by_side(6, 2, 16, 16), false);
    a.rope = rope_of(16);
    a.q_norm = norm_of("q_norm", 16);
    a.k_norm = norm_of("k_norm", 16);
    a.gate = {"gate", gates, hidden, gates == 6};
    check(a, {no_gate, no_rope, no_q_norm, no_k_norm});
  }
}

// MiMo-V2-Flash and what else may come with it.
TEST_P(AttentionHeads, ValuesOfAnotherWidth) {
  for (const auto& [d, v] : {std::pair<std::int64_t, std::int64_t>{24, 16}, {16, 40}})
    for (const std::int64_t gates : {std::int64_t{6}, 6 * v})
      for (const bool fused : {false, true}) {
        Attention a = make_attention(side_by_side(6, 2, d, v), fused);
        a.rope = rope_of(8);
        a.window = 16;
        a.sinks = "sinks";
        a.value_scale = 0.707f;
        a.q_norm = norm_of("q_norm", d);
        a.k_norm = norm_of("k_norm", d);
        a.v_norm = norm_of("v_norm", v);
        a.v_norm->layout = HeadNorm::Weight::per_head;
        a.gate = {"gate", gates, hidden};
        check(a, {no_sinks, no_gate, no_value_scale, no_rope, no_q_norm, no_k_norm, no_v_norm});
      }
}

// q, k and v of each head beside one another; and q's heads of a kv head, k, v.
TEST_P(AttentionHeads, ValuesOfAnotherWidthByGroup) {
  for (const auto& [heads, kv_heads] :
       {std::pair<std::int64_t, std::int64_t>{4, 4}, {6, 2}, {3, 1}})
    for (const auto& [d, v] : {std::pair<std::int64_t, std::int64_t>{24, 16}, {16, 40}, {16, 16}}) {
      Attention a = make_attention(by_group(heads, kv_heads, d, v), true);
      a.rope = rope_of(8);
      a.sinks = "sinks";
      a.value_scale = 0.707f;
      a.k_norm = norm_of("k_norm", d);
      a.v_norm = norm_of("v_norm", v);
      a.gate = {"gate", heads, hidden};
      std::vector<Change> changes{no_sinks, no_gate, no_value_scale, no_rope, no_k_norm, no_v_norm};
      if (kv_heads != 2) {
        a.q_norm = norm_of("q_norm", d);
        changes.emplace_back(no_q_norm);
      }
      check(a, changes);
    }
}

// With two groups of q heads something lies between the third and the fourth.
TEST_P(AttentionHeads, NormsOfHeadsThatAreNotEvenlyApartAreRefused) {
  Attention a = make_attention(by_group(6, 2, 16, 16), true);
  a.q_norm = norm_of("q_norm", 16);
  const Layer layer = make_layer(a);
  EXPECT_THROW(run(a, layer, random_normal(8 * hidden, 3), 1, 8), std::invalid_argument);
}

// The layers of Llama 4: with rope, chunks and norms without weights behind it; and without, where
// queries grow with the position.
TEST_P(AttentionHeads, Llama4) {
  Attention a = make_attention(side_by_side(4, 2, 16, 16), false);
  a.rope = rope_of(16, true);
  a.chunk = 16;
  a.q_norm = norm_of("qk_norm", 16, false);
  a.k_norm = a.q_norm;
  a.norms_after_rope = true;
  a.rope.amplitude = 1.5f;  // it shows which comes first
  const auto norms_first = [](Attention& x) { x.norms_after_rope = false; };
  check(a, {no_rope, no_q_norm, no_k_norm, norms_first,
            [](Attention& x) { x.rope.interleaved = false; }, [](Attention& x) { x.chunk = 0; }});

  Attention without = make_attention(side_by_side(4, 2, 16, 16), false);
  without.query_scale.beta = 1.5f;
  without.query_scale.positions = 8;
  without.query_scale.first = 1;
  check(without, {[](Attention& x) { x.query_scale.beta = 0.0f; }});
}

// ln(1 + ⌊(position + 1) / 8⌋) · 0.1 + 1, by hand.
TEST_P(AttentionHeads, QueriesAreScaledByTheirPosition) {
  Attention a = make_attention(side_by_side(4, 2, 16, 16), false);
  a.query_scale.beta = 0.1f;
  a.query_scale.positions = 8;
  for (const std::int64_t first : {0, 1}) {
    a.query_scale.first = first;
    const KindTables tables = make_mixer_tables(a, 17, stream);
    const auto scale = download_as(tables.query_scale.view);
    ASSERT_EQ(scale.size(), 17u);
    const std::size_t step = first == 1 ? 7 : 8;
    EXPECT_EQ(scale[step - 1], 1.0f);
    EXPECT_FLOAT_EQ(scale[step], 1.0693147f);
    EXPECT_FLOAT_EQ(scale[15], first == 1 ? 1.1098612f : 1.0693147f);
    EXPECT_FLOAT_EQ(scale[16], 1.1098612f);
    EXPECT_EQ(mixer_table_bytes(a, 17), 17 * 4);
  }
}

// Sequences beyond `longest` have frequencies and an amplitude of their own (PhiMoE).
TEST_P(AttentionHeads, LongerSequencesHaveAnAmplitudeOfTheirOwn) {
  Attention a = make_attention(side_by_side(4, 2, 16, 16), false);
  a.rope = rope_of(16);
  a.rope.longest = 32;
  a.rope.amplitude = 1.2f;
  a.rope.longer_amplitude = 1.6f;
  for (const float f : a.rope.inverse_frequencies) a.rope.longer_frequencies.push_back(f / 3.0f);
  const Change all_one = [](Attention& x) { x.rope.amplitude = x.rope.longer_amplitude = 1.0f; };
  const Change others = [](Attention& x) { std::swap(x.rope.amplitude, x.rope.longer_amplitude); };
  check(a, {all_one, others}, 2, 32);
  check(a, {all_one, others}, 2, 33);
}

INSTANTIATE_TEST_SUITE_P(Backends, AttentionHeads, testing::ValuesIn(backends()), backend_name);

LayerSpec gated_layer() {
  LayerSpec spec;
  spec.hidden = hidden;
  Attention a = make_attention(side_by_side(6, 2, 16, 24), false);
  a.gate = {"gate", 6, hidden};
  a.sinks = "sinks";
  spec.mixer = a;
  spec.mlp = Nothing{};
  return spec;
}

TEST(AttentionLayer, TheGateIsALinearOfTheFirstStep) {
  const LayerSpec spec = gated_layer();
  std::vector<std::string> names;
  for (const LinearSpec& linear : layer_linears(spec)) names.push_back(linear.name);
  EXPECT_EQ(names, (std::vector<std::string>{"q", "k", "v", "gate", "o"}));
  const std::vector<Step> steps = layer_steps(spec);
  ASSERT_EQ(steps.size(), 2u);
  using Indices = std::vector<std::size_t>;
  EXPECT_EQ(steps[0].runs, (Indices{0, 1, 2, 3}));
  ASSERT_EQ(steps[0].groups.size(), 1u);
  EXPECT_EQ(steps[0].groups[0].linears, (Indices{0, 1, 2, 3}));
  EXPECT_EQ(steps[1].runs, (Indices{4}));
  EXPECT_EQ(steps[0].attention_width, 6 * 20);
}

TEST(AttentionLayer, SinksAreAVectorAmongItsTensors) {
  const std::vector<TensorSpec> tensors = layer_tensors(gated_layer());
  EXPECT_EQ(
      std::count(tensors.begin(), tensors.end(), TensorSpec{"sinks", {6}, TensorRole::vector}), 1);
}

TEST(AttentionLayer, ScratchHoldsTheGatesBehindTheHeads) {
  Architecture a;
  a.hidden = hidden;
  a.kinds = {gated_layer()};
  EXPECT_EQ(scratch_width(a), 6 * 16 + 2 * 16 + 2 * 24 + 6);
}

}  // namespace
}  // namespace qpipe
