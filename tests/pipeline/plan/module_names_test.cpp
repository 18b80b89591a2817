#include "pipeline/plan/module_names.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <regex>

namespace qpipe {
namespace {

using Names = std::vector<std::string>;

bool matches(const std::string& pattern, const std::string& name) {
  return std::regex_search(name, std::regex(pattern), std::regex_constants::match_continuous);
}

bool any_matches(const Names& patterns, const std::string& name) {
  return std::any_of(patterns.begin(), patterns.end(),
                     [&](const std::string& pattern) { return matches(pattern, name); });
}

TEST(FloatLinears, AreMatricesOfFloatsThatAreNoTables) {
  EXPECT_EQ(float_linears({{"a.proj.weight", DType::bf16, {2, 3}},
                           {"b.fc.weight", DType::f8_e4m3, {2, 3}},
                           {"a.proj.bias", DType::bf16, {2}},
                           {"a.norm.weight", DType::bf16, {2}},
                           {"a.conv.weight", DType::bf16, {2, 3, 1}},
                           {"a.codes.weight", DType::i32, {2, 3}},
                           {"a.embed_tokens.weight", DType::bf16, {2, 3}},
                           {"a.position_embedding.weight", DType::bf16, {2, 3}},
                           {"a.embed_out.weight", DType::bf16, {2, 3}},
                           {"a.patch_embedding.weight", DType::bf16, {2, 3}},
                           {"weight", DType::bf16, {2, 3}},
                           {"mtp.0.mlp.experts.gate_up_proj", DType::bf16, {2, 8, 4}},
                           {"mtp.0.mlp.experts.down_proj", DType::bf16, {2, 4, 4}}}),
            (Names{"a.embed_out", "a.patch_embedding", "a.proj", "b.fc",
                   "mtp.0.mlp.experts.0.down_proj", "mtp.0.mlp.experts.0.gate_proj",
                   "mtp.0.mlp.experts.0.up_proj", "mtp.0.mlp.experts.1.down_proj",
                   "mtp.0.mlp.experts.1.gate_proj", "mtp.0.mlp.experts.1.up_proj"}));
}

TEST(FusedModules, NeedAllTheirMembers) {
  const auto fused = fused_modules({"l.0.q_proj", "l.0.k_proj", "l.0.v_proj", "l.0.o_proj",
                                    "l.1.q_proj", "l.1.v_proj", "l.0.gate_proj", "l.0.up_proj",
                                    "l.2.experts.0.gate_proj", "l.2.experts.0.up_proj",
                                    "l.2.experts.1.up_proj", "l.2.shared_experts.up_proj"});
  ASSERT_EQ(fused.size(), 3u);
  EXPECT_EQ(fused[0].name, "l.0.gate_up_proj");
  EXPECT_EQ(fused[0].members, (Names{"l.0.gate_proj", "l.0.up_proj"}));
  EXPECT_EQ(fused[1].name, "l.0.qkv_proj");
  EXPECT_EQ(fused[1].members.size(), 3u);
  EXPECT_EQ(fused[2].name, "l.2.experts");
  EXPECT_EQ(fused[2].members.size(), 3u);
}

TEST(RootsBeside, AreTheFirstPartsThatTheLayersDoNotHave) {
  const Names decoder{"model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"};
  EXPECT_EQ(roots_beside({"model.visual.blocks.0.fc", "mtp.fc", "model.layers.2.eh_proj",
                          "model.layers.0.mlp.gate", "score"},
                         "model.layers.", decoder),
            (Names{"layers.2", "mtp", "score", "visual"}));
  // A name that is part of the decoder's own would match these.
  EXPECT_EQ(roots_beside({"layers.0.fc", "mlp.fc"}, "model.layers.", decoder), Names{});
  const std::string root = has_root({"layers.2", "visual"});
  EXPECT_TRUE(matches(root, "model.visual.blocks.0.fc"));
  EXPECT_TRUE(matches(root, "visual"));
  EXPECT_TRUE(matches(root, "model.language_model.layers.2.eh_proj"));
  EXPECT_FALSE(matches(root, "model.layers.20.eh_proj"));
  EXPECT_FALSE(matches(root, "model.visualize.fc"));
}

TEST(PatternsOf, NameEachModuleAndNoOther) {
  const Names modules{"model.visual.blocks.0.fc",   "model.visual.blocks.1.fc",
                      "model.visual.blocks.10.fc",  "model.visual.merger.mlp.0",
                      "model.visual.merger.mlp.2",  "mtp.fc",
                      "model.layers.3.experts.0.w", "model.layers.3.experts.1.w"};
  const Names patterns = patterns_of(modules, "model.layers.", {"model.layers.0.mlp.up_proj"});
  EXPECT_EQ(patterns, (Names{R"((?:.*\.)?layers\.3\.experts\.(?:0|1)\.w$)", R"((?:.*\.)?mtp\.fc$)",
                             R"((?:.*\.)?visual\.blocks\.(?:0|1|10)\.fc$)",
                             R"((?:.*\.)?visual\.merger\.mlp\.(?:0|2)$)"}));
  for (const std::string& module : modules) EXPECT_TRUE(any_matches(patterns, module)) << module;
  for (const char* other : {"visual.blocks.1.fc", "language_model.layers.3.experts.1.w"})
    EXPECT_TRUE(any_matches(patterns, other)) << other;
  for (const char* other :
       {"model.visual.blocks.11.fc", "model.visual.blocks.1.fc2", "model.visual.merger.mlp.1",
        "model.layers.13.experts.0.w", "model.layers.0.mlp.up_proj", "model.visual.blocks.1xfc"})
    EXPECT_FALSE(any_matches(patterns, other)) << other;
}

TEST(PatternsOf, DoNotHideALinearOfTheDecoder) {
  const Names patterns =
      patterns_of({"layers.0.fc"}, "model.layers.", {"model.layers.0.fc", "model.layers.1.fc"});
  EXPECT_TRUE(any_matches(patterns, "layers.0.fc"));
  EXPECT_FALSE(any_matches(patterns, "model.layers.0.fc"));
}

TEST(PatternsOf, CallLayersAsEveryLoaderDoes) {
  const Names patterns =
      patterns_of({"model.language_model.layers.7.mlp.gate"}, "model.language_model.layers.", {});
  for (const char* name : {"model.language_model.layers.7.mlp.gate",
                           "language_model.model.layers.7.mlp.gate", "model.layers.7.mlp.gate"})
    EXPECT_TRUE(any_matches(patterns, name)) << name;
}

}  // namespace
}  // namespace qpipe
