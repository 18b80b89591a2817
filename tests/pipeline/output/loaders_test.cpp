// Who loads what: settings and families that a program does not load are told with the reason.
#include "pipeline/output/loaders.h"

#include <gtest/gtest.h>

namespace qpipe {
namespace {

using Json = nlohmann::json;

const Json gptq{{"bits", 4}, {"group_size", 32}, {"sym", true}, {"desc_act", false}};
const Json awq{{"bits", 4}, {"group_size", 32}, {"zero_point", true}};
const QuantizedLinears four_bits{{4, 4}, true};

Loader loader(const std::string& program, StoredFormat format, const std::string& family,
              const Json& quantization, const QuantizedLinears& linears = four_bits,
              const Json& more = Json::object()) {
  Json config = more;
  config["model_type"] = family;
  config["quantization_config"] = quantization;
  for (const Loader& one : loaders_of(format, config, linears))
    if (one.name == program) return one;
  ADD_FAILURE() << program;
  return {};
}

TEST(Loaders, OfLlamaAll) {
  for (const char* program : {"transformers", "vLLM", "GPTQModel"}) {
    EXPECT_TRUE(loader(program, StoredFormat::gptq_v1, "llama", gptq).loads) << program;
    EXPECT_TRUE(loader(program, StoredFormat::awq, "llama", awq).loads) << program;
  }
}

// transformers makes every linear of a decoder layer a quantized one, all with the same bits.
TEST(Loaders, TransformersReadsNoSettingsOfSingleLinears) {
  const auto loads = [](const QuantizedLinears& linears) {
    return loader("transformers", StoredFormat::gptq_v1, "llama", gptq, linears).loads;
  };
  EXPECT_FALSE(loads({{4, 8}, true}));
  EXPECT_FALSE(loads({{4, 4}, false}));
  EXPECT_TRUE(loader("GPTQModel", StoredFormat::gptq_v1, "llama", gptq, {{4, 4}, false}).loads);
}

TEST(Loaders, AsymmetricCodesAreDequantizedByTransformers) {
  Json quantization;
  quantization["config_groups"]["group_0"]["weights"]["symmetric"] = true;
  const auto transformers = [&] {
    return loader("transformers", StoredFormat::ct_integer, "llama", quantization);
  };
  EXPECT_FALSE(transformers().dequantizes);
  quantization["config_groups"]["group_0"]["weights"]["symmetric"] = false;
  EXPECT_TRUE(transformers().loads && transformers().dequantizes);
}

// What is wrong in config.json is verify's to tell.
TEST(Loaders, GroupsThatAreNoneAreNotAsymmetric) {
  for (const Json& groups : {Json(false), Json(7), Json::array({1}), Json{{"group_0", 1}},
                             Json{{"group_0", {{"weights", true}}}}, Json()})
    EXPECT_FALSE(
        loader("transformers", StoredFormat::ct_integer, "llama", Json{{"config_groups", groups}})
            .dequantizes)
        << groups;
}

TEST(Loaders, FamiliesThatAProgramDoesNotLoad) {
  EXPECT_FALSE(loader("transformers", StoredFormat::gptq_v2, "falcon", gptq).loads);
  EXPECT_TRUE(loader("GPTQModel", StoredFormat::gptq_v2, "falcon", gptq).loads);
  EXPECT_FALSE(loader("transformers", StoredFormat::bnb_four_bit, "falcon", Json::object()).loads);
  EXPECT_TRUE(loader("transformers", StoredFormat::bnb_four_bit, "bloom", Json::object()).loads);
  const Loader falcon = loader("transformers", StoredFormat::ct_integer, "falcon", Json::object());
  EXPECT_TRUE(falcon.loads && falcon.dequantizes);
  for (const char* family :
       {"bloom", "falcon", "gpt2", "gpt_bigcode", "gpt_neox", "gptj", "mpt", "starcoder2"}) {
    EXPECT_FALSE(loader("transformers", StoredFormat::awq, family, awq).loads) << family;
    EXPECT_EQ(loader("GPTQModel", StoredFormat::awq, family, awq).loads,
              std::string(family) != "gpt_neox");
  }
  EXPECT_FALSE(loader("GPTQModel", StoredFormat::gptq_v1, "mistral3", gptq, four_bits,
                      {{"vision_config", Json::object()}})
                   .loads);
}

}  // namespace
}  // namespace qpipe
