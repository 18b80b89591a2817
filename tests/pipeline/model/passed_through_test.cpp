#include "pipeline/model/passed_through.h"

#include <gtest/gtest.h>

#include <fstream>

#include "pipeline/model/model.h"
#include "tests/paths.h"

namespace qpipe {
namespace {

Architecture llama(bool tied = false) {
  std::ifstream file(tests_folder() / "golden/models/llama/config.json");
  nlohmann::json config = nlohmann::json::parse(file);
  config["tie_word_embeddings"] = tied;
  return read_architecture(config, "config.json");
}

std::vector<std::string> passed(const nlohmann::json& config,
                                const std::vector<TensorInfo>& extras) {
  std::vector<TensorInfo> tensors = expected_tensors(llama(), DType::bf16);
  tensors.insert(tensors.end(), extras.begin(), extras.end());
  return passed_through(llama(), Checkpoint("model", config, tensors));
}

TEST(DecoderTensors, HoldTheHeadWhetherItIsTiedOrNot) {
  const std::set<std::string> names = decoder_tensors(llama());
  EXPECT_EQ(names.size(), 3 * 9 + 3u);
  EXPECT_TRUE(names.contains("lm_head.weight"));
  EXPECT_TRUE(names.contains("model.layers.2.mlp.down_proj.weight"));
  EXPECT_EQ(decoder_tensors(llama(true)), names);
}

TEST(PassedThrough, IsWhatNeitherTheDecoderReadsNorReadersRecompute) {
  const std::vector<TensorInfo> extras{
      {"model.layers.0.self_attn.rotary_emb.inv_freq", DType::f32, {8}},
      {"h.0.attn.bias", DType::u8, {1, 1, 4, 4}},
      {"h.0.attn.masked_bias", DType::f32, {}},
      {"visual.blocks.0.attn.bias", DType::f32, {8}},  // a bias and no mask
      {"model.layers.3.eh_proj.weight", DType::bf16, {4, 4}},
      {"model.layers.0.self_attn.q_proj.bias", DType::bf16, {64}},
      {"counter", DType::i64, {}}};
  EXPECT_EQ(
      passed(nlohmann::json::object(), extras),
      (std::vector<std::string>{"counter", "model.layers.0.self_attn.q_proj.bias",
                                "model.layers.3.eh_proj.weight", "visual.blocks.0.attn.bias"}));
}

TEST(PassedThrough, LeavesThePartsOfQuantizedLinears) {
  const std::vector<TensorInfo> parts{
      {"model.layers.0.mlp.up_proj.weight_scale_inv", DType::f32, {1, 1}},
      {"model.layers.0.mlp.up_proj.qweight", DType::i32, {8, 8}},
      {"model.layers.3.mlp.up_proj.weight_scale_inv", DType::f32, {1, 1}}};
  EXPECT_EQ(passed({{"quantization_config", {{"quant_method", "fp8"}}}}, parts),
            (std::vector<std::string>{"model.layers.3.mlp.up_proj.weight_scale_inv"}));
  EXPECT_EQ(passed(nlohmann::json::object(), parts).size(), 3u);
}

TEST(LinearOf, FindsTheModuleOfEveryPart) {
  const std::set<std::string> decoder = decoder_tensors(llama());
  const std::string module = "model.layers.1.mlp.up_proj";
  for (const char* part :
       {".weight", ".qweight", ".qzeros", ".scales", ".g_idx", ".SCB", ".weight_packed",
        ".weight.absmax", ".weight_format", ".weight.quant_state.bitsandbytes__nf4"})
    EXPECT_EQ(linear_of(module + part, decoder), module) << part;
  EXPECT_EQ(linear_of(module + ".bias", decoder), "");
  EXPECT_EQ(linear_of("model.layers.3.mlp.up_proj.qweight", decoder), "");
  EXPECT_EQ(linear_of("weight", decoder), "");
}

}  // namespace
}  // namespace qpipe
