// Which pairs a layer has, by what it computes. The pairs of the families' own layers, and that
// folding leaves those unchanged: tests/pipeline/awq_fold_mpi_test.cpp.
#include "stages/awq_pairs.h"

#include <gtest/gtest.h>

#include <functional>

namespace qpipe {
namespace {

NormSpec rms(const std::string& name) { return {name, 64}; }

// A Llama layer of four heads of 16, with `kv_heads` of keys and values.
LayerSpec llama(std::int64_t kv_heads = 4) {
  LayerSpec spec;
  spec.hidden = 64;
  Attention a;
  a.heads = {4, kv_heads, 16, 64 / kv_heads, 16, 64, 64 + 16 * kv_heads};
  a.qkv = {{"q", 64, 64}, {"k", 16 * kv_heads, 64}, {"v", 16 * kv_heads, 64}};
  a.out = {"o", 64, 64};
  spec.mixer = a;
  Mlp m;
  m.in = {{"gate", 96, 64}, {"up", 96, 64}};
  m.out = {"down", 64, 96};
  spec.mlp = m;
  spec.mixer_norm = rms("norm");
  spec.mlp_norm = rms("mlp_norm");
  return spec;
}

// "norm > q k v", "v[0] > o": source, its first row where it is a linear, and what takes it in.
std::vector<std::string> pairs_of(const LayerSpec& spec) {
  std::vector<std::string> texts;
  for (const ScalingPair& pair : scaling_pairs(spec)) {
    std::string text = source_name(spec, pair);
    if (!pair.norm) text.append("[").append(std::to_string(pair.source_first_row)).append("]");
    text += " >";
    for (const std::size_t i : pair.linears) text.append(" ").append(layer_linears(spec)[i].name);
    texts.push_back(text);
  }
  return texts;
}

using Texts = std::vector<std::string>;

Attention& attention(LayerSpec& spec) { return std::get<Attention>(spec.mixer); }
Mlp& mlp(LayerSpec& spec) { return std::get<Mlp>(spec.mlp); }

bool has(const LayerSpec& spec, const std::string& pair) {
  const Texts pairs = pairs_of(spec);
  return std::find(pairs.begin(), pairs.end(), pair) != pairs.end();
}

TEST(AwqPairs, OfALlamaLayer) {
  EXPECT_EQ(pairs_of(llama()),
            (Texts{"norm > q k v", "v[0] > o", "mlp_norm > gate up", "up[0] > down"}));
  EXPECT_EQ(pairs_of(llama(2)), (Texts{"norm > q k v", "mlp_norm > gate up", "up[0] > down"}));
}

// What stands between v and o, or reads v besides.
TEST(AwqPairs, ValuesOfWhichMoreThanTheOutputProjectionIsMadeTakeNoFactor) {
  const std::vector<std::function<void(Attention&)>> changes = {
      [](Attention& a) { a.clip_qkv = 1.0f; },
      [](Attention& a) { a.v_norm = HeadNorm{rms("v_norm")}; },
      [](Attention& a) { a.keeps_kv = 0; }, [](Attention& a) { a.takes_kv = 0; },
      [](Attention& a) { a.values_are_keys = true; },
      // v's rows lie among those of q and k: BLOOM, GPT-NeoX.
      [](Attention& a) {
        a.heads = {4, 4, 16, 48, 48, 16, 32};
        a.qkv = {{"qkv", 192, 64}};
      }};
  for (std::size_t i = 0; i < changes.size(); ++i) {
    LayerSpec spec = llama();
    changes[i](attention(spec));
    for (const std::string& pair : pairs_of(spec)) EXPECT_FALSE(pair.ends_with("> o")) << i;
  }
  LayerSpec fused = llama();
  attention(fused).qkv = {{"qkv", 192, 64}};
  EXPECT_TRUE(has(fused, "qkv[128] > o"));
  LayerSpec grouped = llama(2);
  attention(grouped).qkv = {{"qkv", 128, 64}};
  EXPECT_FALSE(has(grouped, "qkv[96] > o"));
}

// Gates and scales multiply each of o's inputs by itself; a gate reads the norm, too.
TEST(AwqPairs, AGateReadsTheNormAndLeavesValuesTheirFactor) {
  for (const std::int64_t outputs : {4, 64}) {
    LayerSpec spec = llama();
    attention(spec).gate = {"gate", outputs, 64};
    attention(spec).sinks = "sinks";
    attention(spec).value_scale = 0.5f;
    EXPECT_EQ(pairs_of(spec),
              (Texts{"norm > q k v gate", "v[0] > o", "mlp_norm > gate up", "up[0] > down"}));
    EXPECT_EQ(inspected_linears(spec, scaling_pairs(spec).front()).size(), 5u);
  }
}

// Values of another width than keys lie one behind the other all the same.
TEST(AwqPairs, ValuesOfAnotherWidth) {
  LayerSpec spec = llama();
  Attention& a = attention(spec);
  a.heads.v_dim = 24;
  EXPECT_FALSE(has(spec, "v[0] > o"));  // 16 columns apart
  a.heads.kv_block = 4;
  a.qkv[2] = {"v", 96, 64};
  a.out = {"o", 64, 96};
  EXPECT_TRUE(has(spec, "v[0] > o"));
  a.qkv = {{"qkv", 224, 64}};
  EXPECT_TRUE(has(spec, "qkv[128] > o"));
}

// The exact search runs a part of the layer alone, which those that share keys and values cannot.
TEST(AwqPairs, LayersThatShareKeysAreComparedByTheirLinears) {
  LayerSpec spec = llama();
  EXPECT_EQ(scaling_pairs(spec).front().inspected, Inspected::mixer);
  attention(spec).keeps_kv = 0;
  EXPECT_EQ(scaling_pairs(spec).front().inspected, Inspected::linears);
  EXPECT_TRUE(has(spec, "norm > q k v"));
}

TEST(AwqPairs, EveryReaderOfASharedNormTakesItsFactor) {
  LayerSpec spec = llama(2);
  spec.residual = Residual::parallel;
  EXPECT_EQ(pairs_of(spec), (Texts{"norm > q k v", "mlp_norm > gate up", "up[0] > down"}));
  spec.mlp_norm.reset();
  EXPECT_EQ(pairs_of(spec), (Texts{"norm > q k v gate up", "up[0] > down"}));
  EXPECT_EQ(scaling_pairs(spec).front().inspected, Inspected::mixer_and_mlp);
  EXPECT_EQ(inspected_linears(spec, scaling_pairs(spec).front()).size(), 7u);
}

// A norm without a weight has nothing to divide; one behind a block makes a sum, not an input.
TEST(AwqPairs, NormsThatMakeNoInputOrStoreNoWeightAreLeftAlone) {
  LayerSpec spec = llama(2);
  spec.mixer_norm->weight = false;
  spec.after_mlp = spec.mlp_norm;
  spec.mlp_norm.reset();
  EXPECT_EQ(pairs_of(spec), (Texts{"up[0] > down"}));
}

TEST(AwqPairs, OnlyReluAndGatedMlpsPassAFactorOn) {
  LayerSpec spec = llama(2);
  mlp(spec).in = {{"fc1", 96, 64}};
  mlp(spec).gated = false;
  for (const Activation other : {Activation::gelu, Activation::relu2, Activation::silu}) {
    mlp(spec).activation = other;
    EXPECT_FALSE(has(spec, "fc1[0] > down"));
  }
  mlp(spec).activation = Activation::relu;
  EXPECT_TRUE(has(spec, "fc1[0] > down"));
  mlp(spec).xielu = Xielu{};
  EXPECT_FALSE(has(spec, "fc1[0] > down"));

  spec = llama(2);
  mlp(spec).in = {{"gate_up", 192, 64}};
  EXPECT_TRUE(has(spec, "gate_up[96] > down"));
}

// Gemma 4: what a norm of the experts' own makes is read by them alone, and what the layer's makes
// by the MLP beside them. The router's norm makes nothing that is stored.
TEST(AwqPairs, ExpertsBesideAnMlpHaveANormOfTheirOwn) {
  LayerSpec spec = llama(2);
  Experts experts;
  experts.router.linear = {"router", 2, 64};
  experts.router.norm = rms("router_scale");
  for (const char* name : {"e0", "e1"}) {
    Mlp expert;
    const std::string prefix = std::string(name) + ".";
    expert.in = {{prefix + "gate", 32, 64}, {prefix + "up", 32, 64}};
    expert.out = {prefix + "down", 64, 32};
    experts.experts.push_back(expert);
  }
  experts.shared = mlp(spec);
  experts.norm = rms("experts_norm");
  spec.mlp = experts;
  EXPECT_EQ(pairs_of(spec), (Texts{"norm > q k v", "experts_norm > e0.gate e0.up e1.gate e1.up",
                                   "mlp_norm > gate up", "e0.up[0] > e0.down", "e1.up[0] > e1.down",
                                   "up[0] > down"}));
  const std::vector<ScalingPair> pairs = scaling_pairs(spec);
  EXPECT_EQ(pairs[1].inspected, Inspected::linears);
  EXPECT_EQ(pairs[2].inspected, Inspected::linears);
  const std::vector<Step> steps = layer_steps(spec);
  EXPECT_EQ(steps[2].width, 128);
  EXPECT_EQ(steps[2].groups[0].panel, 0u);
  EXPECT_EQ(steps[2].groups[2].panel, 1u);
  EXPECT_EQ(steps[2].runs.size(), 7u);  // the router, too
}

TEST(AwqPairs, ALinearInPlaceOfABlockReadsTheNorm) {
  LayerSpec spec = llama();
  spec.mixer = SingleLinear{{"mixer", 64, 64}};
  spec.mlp = Nothing{};
  spec.mlp_norm.reset();
  EXPECT_EQ(pairs_of(spec), (Texts{"norm > mixer"}));
  spec.mixer = Nothing{};
  EXPECT_EQ(pairs_of(spec), Texts{});
}

}  // namespace
}  // namespace qpipe
