// Everything that is not quantized is named, in the way of each format's loaders.
#include "pipeline/plan/quantization_config.h"

#include <gtest/gtest.h>

#include <fstream>
#include <regex>

#include "pipeline/model/model.h"
#include "tests/paths.h"
#include "tests/pipeline/extra_tensors.h"

namespace qpipe {
namespace {

using Json = nlohmann::json;
using Names = std::vector<std::string>;

class QuantizationConfig : public testing::Test {
 protected:
  QuantizationConfig() {
    std::ifstream file(tests_folder() / "golden/models/llama/config.json");
    source_config = Json::parse(file);
    options.quantize.group_size = 32;
  }

  QuantizePlan plan(bool extras) const {
    Architecture architecture = read_architecture(source_config, "config.json");
    for (LayerSpec& kind : architecture.kinds)
      std::get<Attention>(kind.mixer).out.kept = keeps_o_proj;
    std::vector<TensorInfo> tensors = expected_tensors(architecture, DType::bf16);
    if (extras) {
      TensorMap more;
      add_extras(more);
      for (const auto& [name, tensor] : more) tensors.push_back(tensor.info);
    }
    return plan_quantization(options, architecture, Checkpoint("model", source_config, tensors));
  }
  Json config(bool extras) const { return quantization_config(options, plan(extras)); }

  void skip(const std::string& match) {
    options.quantize.overrides.push_back({match, true, 0, 0, ""});
  }

  // What GPTQModel and vLLM make of a module's name: the first rule that matches from its start.
  static std::string rule_for(const Json& dynamic, const std::string& module) {
    for (const auto& [rule, value] : dynamic.items())
      if (std::regex_search(module, std::regex(rule.substr(2)),
                            std::regex_constants::match_continuous))
        return rule.substr(0, 2) + (value.empty() ? "" : value.dump());
    return "";
  }

  Options options;
  Json source_config;
  bool keeps_o_proj = false;
};

// The matrices of add_extras that are no tables.
const Names extra_linears{"model.layers.1.self_attn.indexer.wk",
                          "model.layers.3.eh_proj",
                          "model.layers.3.mlp.experts.0.gate_proj",
                          "model.layers.3.mlp.experts.0.up_proj",
                          "model.layers.3.mlp.experts.1.gate_proj",
                          "model.layers.3.mlp.experts.1.up_proj",
                          "model.layers.3.mlp.gate",
                          "model.layers.3.shared_head.head",
                          "mtp.fc",
                          "visual.blocks.0.attn.k_proj",
                          "visual.blocks.0.attn.q_proj",
                          "visual.blocks.0.attn.v_proj",
                          "visual.blocks.0.mlp.fc1",
                          "visual.blocks.1.attn.k_proj",
                          "visual.blocks.1.attn.q_proj",
                          "visual.blocks.1.attn.v_proj",
                          "visual.blocks.1.mlp.fc1",
                          "visual.merger.mlp.0",
                          "visual.merger.mlp.2"};

TEST_F(QuantizationConfig, OfAPlainModelNamesTheHeadAlone) {
  EXPECT_TRUE(plan(false).unquantized.empty());
  EXPECT_FALSE(config(false).contains("dynamic"));
  options.quantize.method = "awq";
  EXPECT_TRUE(config(false)["modules_to_not_convert"].is_null());
  EXPECT_FALSE(config(false).contains("dynamic"));
  options.quantize.method = "fp8";
  EXPECT_EQ(config(false)["ignore"], Json({"lm_head"}));
  options.quantize.method = "fp8-block";
  EXPECT_EQ(config(false)["modules_to_not_convert"], Json({"lm_head"}));
  options.quantize.method = "bnb-nf4";
  EXPECT_TRUE(config(false)["llm_int8_skip_modules"].is_null());
}

TEST_F(QuantizationConfig, PlanNamesEveryMatrixThatPassesThrough) {
  EXPECT_EQ(plan(true).unquantized, extra_linears);
}

TEST_F(QuantizationConfig, IgnoreNamesEachAndWhatLiesBesideTheLayers) {
  options.quantize.method = "fp8";
  skip("layers\\.1\\.mlp\\.down_proj");
  Names expected{"model.layers.1.mlp.down_proj"};
  expected.insert(expected.end(), extra_linears.begin(), extra_linears.end());
  expected.push_back(R"(re:(?:.*\.)?(?:layers\.3|mtp|visual)(?:\..*)?$)");
  expected.push_back("lm_head");
  EXPECT_EQ(config(true)["ignore"], Json(expected));
}

TEST_F(QuantizationConfig, ModulesToNotConvert) {
  Names expected = extra_linears;
  // Loaders call the inside of a tower as they like.
  for (const char* tower : {"mtp", "model.mtp", "visual", "model.visual", "lm_head"})
    expected.emplace_back(tower);
  options.quantize.method = "fp8-block";
  EXPECT_EQ(config(true)["modules_to_not_convert"], Json(expected));
  options.quantize.method = "awq";
  const Json awq = config(true);
  EXPECT_EQ(awq["modules_to_not_convert"], Json(expected));
  for (const std::string& module : extra_linears)
    EXPECT_EQ(rule_for(awq["dynamic"], module), "-:") << module;
  EXPECT_EQ(rule_for(awq["dynamic"], "model.layers.1.mlp.up_proj"), "");
}

TEST_F(QuantizationConfig, SkipModulesHaveTheFusedNames) {
  options.quantize.method = "bnb-nf4";
  skip("layers\\.1\\.mlp\\.(gate|up)_proj");
  skip("layers\\.2\\.self_attn\\.q_proj");
  EXPECT_EQ(
      config(false)["llm_int8_skip_modules"],
      Json({"model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj",
            "model.layers.2.self_attn.q_proj", "model.layers.1.mlp.gate_up_proj", "lm_head"}));
  const Json list = config(true)["llm_int8_skip_modules"];
  for (const char* name : {"visual.blocks.1.attn.qkv_proj", "model.layers.3.mlp.experts",
                           "model.layers.1.mlp.gate_up_proj", "mtp.fc", "lm_head"})
    EXPECT_NE(std::find(list.begin(), list.end(), name), list.end()) << name;
  for (const char* name : {"model.layers.2.self_attn.qkv_proj", "visual.pos_embed",
                           "model.layers.3.embed_tokens", "model.layers.0.mlp.gate_up_proj"})
    EXPECT_EQ(std::find(list.begin(), list.end(), name), list.end()) << name;
}

TEST_F(QuantizationConfig, DynamicNamesEachAndTheFusedOnes) {
  const Json dynamic = config(true)["dynamic"];
  for (const std::string& module : extra_linears)
    EXPECT_EQ(rule_for(dynamic, module), "-:") << module;
  for (const char* module : {"visual.blocks.1.attn.qkv_proj", "model.layers.3.mlp.experts"})
    EXPECT_EQ(rule_for(dynamic, module), "-:") << module;
  const QuantizePlan decoder = plan(true);
  for (const auto& [module, settings] : decoder.modules)
    EXPECT_EQ(rule_for(dynamic, module), "") << module;
}

TEST_F(QuantizationConfig, DynamicOfOverridesHasTheFusedNames) {
  options.quantize.overrides.push_back({"layers\\.0\\.self_attn\\.[qkv]_proj", false, 8, 0, ""});
  options.quantize.overrides.push_back({"layers\\.1\\.mlp\\.(gate|up)_proj", true, 0, 0, ""});
  options.quantize.overrides.push_back({"layers\\.2\\.self_attn\\.q_proj", false, 8, 0, ""});
  const Json dynamic = config(false)["dynamic"];
  EXPECT_EQ(rule_for(dynamic, "model.layers.0.self_attn.qkv_proj"), "+:{\"bits\":8}");
  EXPECT_EQ(rule_for(dynamic, "model.layers.0.self_attn.o_proj"), "");
  EXPECT_EQ(rule_for(dynamic, "model.layers.1.mlp.gate_up_proj"), "-:");
  EXPECT_EQ(rule_for(dynamic, "model.layers.1.mlp.down_proj"), "");
  EXPECT_EQ(rule_for(dynamic, "model.layers.2.self_attn.qkv_proj"), "");  // they do not agree
  EXPECT_EQ(dynamic.size(), 5u);
}

// An override of the decoder's linears must not make a tower's of the same name quantized ones.
TEST_F(QuantizationConfig, OverridesDoNotReachTheTowers) {
  options.quantize.overrides.push_back({"[qkv]_proj", false, 8, 0, ""});
  const Json dynamic = config(true)["dynamic"];
  EXPECT_EQ(rule_for(dynamic, "model.layers.2.self_attn.q_proj"), "+:{\"bits\":8}");
  EXPECT_EQ(rule_for(dynamic, "model.layers.2.self_attn.qkv_proj"), "+:{\"bits\":8}");
  for (const char* part : {"q_proj", "k_proj", "v_proj", "qkv_proj"})
    EXPECT_EQ(rule_for(dynamic, std::string("model.visual.blocks.1.attn.") + part), "-:") << part;
}

// Routers and small gates are no linears to any loader; o_proj stands for them.
TEST_F(QuantizationConfig, KeptLinearsStayWhateverIsAskedFor) {
  keeps_o_proj = true;
  options.quantize.overrides.push_back({"o_proj", false, 8, 0, ""});  // counts as used
  options.quantize.overrides.push_back({"self_attn", false, 8, 0, ""});
  const Architecture llama = read_architecture(source_config, "config.json");
  const QuantizePlan kept = plan(true);
  EXPECT_TRUE(kept.skipped().empty());  // nobody asked for it
  for (std::int64_t layer = 0; layer < llama.layers; ++layer) {
    const std::string module = layer_prefix(llama, layer) + "self_attn.o_proj";
    EXPECT_TRUE(kept.modules.at(module).skip);
    const auto is_weight = [&](const TensorInfo& info) { return info.name == module + ".weight"; };
    EXPECT_TRUE(std::any_of(kept.kept.begin(), kept.kept.end(), is_weight));
    EXPECT_TRUE(std::any_of(kept.tensors.begin(), kept.tensors.end(), is_weight));
  }
}

TEST_F(QuantizationConfig, EachFormatNamesKeptLinears) {
  keeps_o_proj = true;
  const std::string kept = "model.layers.1.self_attn.o_proj";
  const auto names = [&](const Json& list) {
    return std::find(list.begin(), list.end(), kept) != list.end();
  };
  for (const bool extras : {false, true}) {
    options.quantize.method = "gptq";
    const Json dynamic = config(extras)["dynamic"];
    EXPECT_EQ(rule_for(dynamic, kept), "-:");
    EXPECT_EQ(rule_for(dynamic, "model.layers.1.self_attn.q_proj"), "");
    options.quantize.method = "awq";
    EXPECT_EQ(rule_for(config(extras)["dynamic"], kept), "-:");
    EXPECT_TRUE(names(config(extras)["modules_to_not_convert"]));
    options.quantize.method = "fp8";
    EXPECT_TRUE(names(config(extras)["ignore"]));
    options.quantize.method = "fp8-block";
    EXPECT_TRUE(names(config(extras)["modules_to_not_convert"]));
    options.quantize.method = "bnb-nf4";
    EXPECT_TRUE(names(config(extras)["llm_int8_skip_modules"]));
  }
}

// The first entry that matches counts, but GPTQModel's rules are sorted by their text: one must not
// match what another decides, or what stays.
TEST_F(QuantizationConfig, OverridesOfOneModuleDoNotMeet) {
  options.quantize.overrides.push_back({"[qkv]_proj", false, 8, 0, ""});
  options.quantize.overrides.push_back({"0.*", false, 3, 0, ""});
  for (const bool extras : {false, true}) {
    const Json dynamic = config(extras)["dynamic"];
    for (const char* part : {"q_proj", "k_proj", "v_proj", "qkv_proj"})
      EXPECT_EQ(rule_for(dynamic, std::string("model.layers.0.self_attn.") + part),
                "+:{\"bits\":8}")
          << part;
    EXPECT_EQ(rule_for(dynamic, "model.layers.0.self_attn.o_proj"), "+:{\"bits\":3}");
  }
}

TEST_F(QuantizationConfig, OverridesDoNotReachWhatStays) {
  keeps_o_proj = true;
  options.quantize.overrides.push_back({"layers\\.1\\.self_attn\\.k_proj", true, 0, 0, ""});
  options.quantize.overrides.push_back({"self_attn", false, 8, 0, ""});
  for (const bool extras : {false, true}) {
    const Json dynamic = config(extras)["dynamic"];
    for (const char* layer : {"0", "1", "2"}) {
      const std::string attention = std::string("model.layers.") + layer + ".self_attn.";
      EXPECT_EQ(rule_for(dynamic, attention + "q_proj"), "+:{\"bits\":8}");
      EXPECT_EQ(rule_for(dynamic, attention + "o_proj"), "-:");
      EXPECT_EQ(rule_for(dynamic, "language_model." + attention + "o_proj"), "-:");
      EXPECT_EQ(rule_for(dynamic, attention + "k_proj"), *layer == '1' ? "-:" : "+:{\"bits\":8}");
    }
  }
}

}  // namespace
}  // namespace qpipe
