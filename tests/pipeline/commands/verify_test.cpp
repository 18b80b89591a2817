// qpipe verify: peers' checkpoints have no faults, and faults planted into copies of them are each
// told in one line.
#include "pipeline/commands/verify.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <set>

#include "kernels/float8.h"
#include "stages/formats/fp8_format.h"
#include "tests/paths.h"
#include "tests/pipeline/file_faults.h"

namespace qpipe {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

struct Planted {
  TensorInfo info;
  std::vector<unsigned char> bytes;
};
using Tensors = std::map<std::string, Planted>;

class VerifyTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!fs::exists(oracles)) GTEST_SKIP() << "no oracles at " << oracles;
  }

  // A copy of checkpoints/NAME in folder.path().
  void copy(const std::string& name, const std::function<void(Tensors&)>& change_tensors = {},
            const std::function<void(Json&)>& change_config = {}) {
    const Checkpoint peer(oracles / "checkpoints" / name);
    Tensors tensors;
    for (const std::string& tensor : peer.names()) {
      Planted& planted = tensors[tensor];
      planted.info = peer.info(tensor);
      planted.bytes.resize(static_cast<std::size_t>(planted.info.bytes()));
      peer.read(tensor, planted.bytes.data());
    }
    if (change_tensors) change_tensors(tensors);
    Json config = peer.config();
    if (change_config) change_config(config);
    folder.write("config.json", config.dump());
    std::vector<TensorInfo> infos;
    for (auto& [tensor, planted] : tensors) {
      planted.info.name = tensor;
      infos.push_back(planted.info);
    }
    SafetensorsWriter writer(folder.path() / "model.safetensors", infos);
    for (const auto& [tensor, planted] : tensors) writer.write(tensor, planted.bytes.data());
    writer.finish();
  }

  Verification verify() const { return verify_checkpoint(folder.path()); }

  // Exactly one fault, of one line with every part.
  static void expect_only(const Verification& result, const std::vector<std::string>& parts) {
    ASSERT_EQ(result.faults.size(), 1u)
        << (result.faults.empty() ? "" : result.faults[0] + "\n" + result.faults.back());
    for (const std::string& part : parts)
      EXPECT_NE(result.faults[0].find(part), std::string::npos)
          << "'" << part << "' is not in: " << result.faults[0];
    EXPECT_EQ(result.faults[0].find('\n'), std::string::npos);
  }
  static void expect_among(const Verification& result, const std::string& text) {
    for (const std::string& fault : result.faults)
      if (fault.find(text) != std::string::npos) return;
    ADD_FAILURE() << "no fault says: " << text;
  }

  static const Loader& loader(const Verification& result, const std::string& name) {
    for (const Loader& one : result.loaders)
      if (one.name == name) return one;
    throw std::runtime_error("no loader " + name);
  }

  const fs::path oracles = shared_folder() / "oracles";
  const std::string module = "model.layers.1.self_attn.k_proj";
  TemporaryFolder folder;
};

template <class T>
void set_element(Tensors& tensors, const std::string& name, std::size_t index, T value) {
  std::memcpy(tensors.at(name).bytes.data() + index * sizeof(T), &value, sizeof(T));
}

TEST_F(VerifyTest, PeersCheckpointsHaveNoFaults) {
  std::size_t count = 0;
  for (const auto& entry : fs::directory_iterator(oracles / "checkpoints")) {
    const Verification result = verify_checkpoint(entry.path(), oracles / "models" / "llama-mha");
    EXPECT_TRUE(result.faults.empty()) << entry.path() << ": " << result.faults.front();
    EXPECT_EQ(result.linears.size(), 21u);
    const bool rescaled =
        entry.path().filename() == "awq-gemm-g32" || entry.path().filename() == "ct-awq-w4-asym";
    EXPECT_EQ(!result.notes.empty(), rescaled) << entry.path();
    for (const LinearReport& linear : result.linears) {
      ASSERT_TRUE(linear.packed) << linear.name;
      EXPECT_EQ(linear.relative_error.has_value(), !rescaled);
    }
    EXPECT_EQ(result.loaders.size(), 4u);
    ++count;
  }
  EXPECT_EQ(count, 19u);
}

// b bits, and in each group a float16 scale, b bits of zero; 32 bits of g_idx for each of the 64 or
// 128 inputs.
TEST_F(VerifyTest, BitsPerWeightCountEveryByte) {
  const Verification gptq = verify_checkpoint(oracles / "checkpoints" / "gptq-sym3-g32");
  EXPECT_DOUBLE_EQ(gptq.linears[0].bits_per_weight,
                   3 + (16 + 3) / 32.0 + 32 / 64.0);  // q_proj [64, 64]
  const Verification nvfp4 = verify_checkpoint(oracles / "checkpoints" / "ct-nvfp4a16");
  EXPECT_DOUBLE_EQ(nvfp4.linears[0].bits_per_weight, 4 + 8 / 16.0 + 32.0 / (64 * 64));
}

// Step s = 2a/(2^b − 1) of a grid over ±a: rounding errs by s/√12, with a = 2.1 standard deviations
// (the largest of 32 normal weights). GPTQ trades a little more error of weights for less of
// outputs.
TEST_F(VerifyTest, WeightErrorsAreThoseOfTheBits) {
  const fs::path original = oracles / "models" / "llama-mha";
  std::map<std::string, double> mean;
  for (const char* name : {"gptq-sym2-g32", "gptq-sym3-g32", "gptq-sym4-g32", "gptq-sym8-col",
                           "ct-rtn-w8", "bnb-nf4"}) {
    const Verification result = verify_checkpoint(oracles / "checkpoints" / name, original);
    for (const LinearReport& linear : result.linears)
      mean[name] += linear.relative_error.value() / 21;
  }
  const auto expected = [](int bits) { return 2 * 2.1 / ((1 << bits) - 1) / std::sqrt(12.0); };
  EXPECT_GT(mean["gptq-sym2-g32"], 0.8 * expected(2));
  EXPECT_LT(mean["gptq-sym2-g32"], 1.6 * expected(2));
  EXPECT_GT(mean["gptq-sym3-g32"], 0.8 * expected(3));
  EXPECT_LT(mean["gptq-sym3-g32"], 1.6 * expected(3));
  EXPECT_GT(mean["gptq-sym4-g32"], 0.8 * expected(4));
  EXPECT_LT(mean["gptq-sym4-g32"], 1.6 * expected(4));
  EXPECT_LT(mean["ct-rtn-w8"], 0.01);
  EXPECT_NEAR(mean["bnb-nf4"], 0.09,
              0.02);  // of normal weights in blocks of 64: 0.0956 of the QLoRA authors' code
}

// No peer's folder of this format is at hand: the original's weights, rounded block by block. e4m3
// has 3 bits of mantissa: an error uniform over ±2^-4 of the power of two below the value, 2^-4/√3
// · (0.72 ± 0.03 of values spread evenly over a binade), plus the few values below 2^-6 of the
// scale.
TEST_F(VerifyTest, BlockwiseFloat8) {
  const fs::path original = oracles / "models" / "llama-mha";
  const Checkpoint source(original);
  Stream stream(Backend::cpu, 0);
  std::vector<PackedTensor> tensors;
  for (const std::string& name : source.names()) {
    const TensorInfo& info = source.info(name);
    std::vector<unsigned char> bytes(static_cast<std::size_t>(info.bytes()));
    source.read(name, bytes.data());
    if (!name.ends_with("_proj.weight")) {
      tensors.push_back({{name, info.dtype, info.shape}, bytes});
      continue;
    }
    const Array<std::uint8_t> code(info.rows(), info.cols(), stream);
    const Array<float> scale(1, 1, stream);  // 128 × 128 is larger than every weight here
    quantize_float8_blocks(view_of(info, bytes.data()), code, scale, stream);
    for (PackedTensor& part : pack_fp8(name.substr(0, name.rfind('.')), code, scale, stream))
      tensors.push_back(std::move(part));
  }
  std::vector<TensorInfo> infos;
  for (const PackedTensor& tensor : tensors)
    infos.push_back({tensor.info.name, tensor.info.dtype, tensor.info.shape});
  SafetensorsWriter writer(folder.path() / "model.safetensors", infos);
  for (const PackedTensor& tensor : tensors) writer.write(tensor.info.name, tensor.data.data());
  writer.finish();
  Json config = source.config();
  config["quantization_config"] = fp8_config_json({"lm_head"});
  folder.write("config.json", config.dump());

  const Verification result = verify_checkpoint(folder.path(), original);
  EXPECT_TRUE(result.faults.empty()) << result.faults.front();
  EXPECT_EQ(result.format, StoredFormat::fp8);
  for (const LinearReport& linear : result.linears)
    EXPECT_NEAR(linear.relative_error.value(), 0.026, 0.003) << linear.name;

  config["quantization_config"]["modules_to_not_convert"] = Json::array();
  folder.write("config.json", config.dump());
  expect_only(verify(), {"modules_to_not_convert = []", "lm_head"});
}

TEST_F(VerifyTest, ScaleThatIsNan) {
  copy("gptq-sym4-g32", [&](Tensors& t) { set_element(t, module + ".scales", 5, to_f16(NAN)); });
  expect_only(verify(), {"'" + module + ".scales' has an element that is not finite", "number 5"});
  copy("bnb-nf4", [&](Tensors& t) { set_element(t, module + ".weight.absmax", 3, INFINITY); });
  expect_only(verify(), {"'" + module + ".weight.absmax'", "number 3"});
  copy("ct-nvfp4a16",
       [&](Tensors& t) { set_element(t, module + ".weight_scale", 7, std::uint8_t{0x7f}); });
  expect_only(verify(), {"'" + module + ".weight_scale'", "number 7"});
  copy("ct-mxfp4a16",
       [&](Tensors& t) { set_element(t, module + ".weight_scale", 9, std::uint8_t{255}); });
  expect_only(verify(), {"'" + module + ".weight_scale'", "number 9"});
  copy("ct-rtn-w8", [&](Tensors& t) { set_element(t, "model.norm.weight", 0, NAN); });
  expect_only(verify(), {"'model.norm.weight'", "not finite"});
}

TEST_F(VerifyTest, EveryMissingTensorHasItsLine) {
  copy("ct-fp8-dynamic", [&](Tensors& t) {
    t.erase(module + ".weight_scale");
    t.erase("model.layers.2.input_layernorm.weight");
  });
  const Verification result = verify();
  EXPECT_EQ(result.faults.size(), 2u);
  expect_among(result, "'" + module + ".weight_scale' is missing");
  expect_among(result, "'model.layers.2.input_layernorm.weight' is missing");
}

// k_proj [64, 64] of one group of 64 beside q_proj and v_proj of two groups of 32.
TEST_F(VerifyTest, FusedLinearsOfDifferentGroups) {
  copy("ct-gptq-w4-sym", [&](Tensors& t) {
    Planted& scale = t.at(module + ".weight_scale");
    scale.info.shape = {64, 1};
    scale.bytes.resize(64 * 4);
  });
  const Verification result = verify();
  EXPECT_EQ(result.faults.size(), 2u);
  expect_among(result, "linear '" + module +
                           "' is 4 bits in groups of 64, but 'model.layers.1.self_attn.q_proj' is "
                           "4 bits in groups of 32");
  expect_among(result, "linear '" + module + "' has groups of 64, but quantization_config says 32");
}

TEST_F(VerifyTest, FusedLinearsOfWhichOneIsNotPacked) {
  const auto unpack = [&](Tensors& t) {
    for (const char* part : {".weight_packed", ".weight_scale"}) t.erase(module + part);
    t[module + ".weight"] = {{"", DType::bf16, {64, 64}},
                             std::vector<unsigned char>(64 * 64 * 2, 0)};
  };
  copy("ct-mxfp4a16", unpack);
  Verification result = verify();
  EXPECT_EQ(result.faults.size(), 2u);
  expect_among(result, "linear '" + module + "' is unpacked, but");
  expect_among(result,
               "linear '" + module + "' is not packed, but quantization_config does not say so");
  copy("ct-mxfp4a16", unpack, [&](Json& c) {
    c["quantization_config"]["ignore"] = {"lm_head", "re:.*layers\\.1\\.self_attn\\.k_proj"};
  });
  expect_only(verify(), {"is unpacked, but"});
  copy("ct-mxfp4a16", unpack, [&](Json& c) {
    c["quantization_config"]["config_groups"]["group_0"]["targets"] = {
        "re:.*(q|v|o|gate|up|down)_proj", "re:.*[02].self_attn.k_proj"};
  });
  expect_only(verify(), {"is unpacked, but"});
  copy("ct-mxfp4a16", {}, [&](Json& c) {
    c["quantization_config"]["ignore"] = {"lm_head", "model.layers.1.mlp.down_proj"};
  });
  expect_only(
      verify(),
      {"'model.layers.1.mlp.down_proj' is packed, but quantization_config says that it is not"});
}

TEST_F(VerifyTest, GlobalScaleOfFusedLinears) {
  copy("ct-nvfp4a16",
       [&](Tensors& t) { set_element(t, module + ".weight_global_scale", 0, 1000.0f); });
  expect_only(verify(), {"'" + module + ".weight_global_scale' differs", "q_proj", "vLLM"});
  copy("ct-nvfp4a16", [&](Tensors& t) {
    set_element(t, "model.layers.1.mlp.down_proj.weight_global_scale", 0, 1000.0f);
  });
  EXPECT_TRUE(verify().faults.empty());  // not fused
}

TEST_F(VerifyTest, ZerosThatWrap) {
  copy(
      "gptq-sym4-g32", [&](Tensors& t) { set_element(t, module + ".qzeros", 1, 0x777f7777u); },
      [](Json& c) { c["quantization_config"]["sym"] = false; });
  expect_only(verify(), {"'" + module + ".qzeros' has a zero point of 0", "gptq_v2"});
  copy("gptq-sym4-g32", [&](Tensors& t) { set_element(t, module + ".qzeros", 1, 0x77717777u); });
  expect_only(verify(), {"'" + module + ".qzeros' has zero points other than 8", "sym is true"});
  copy("gptq-sym4-g32", {},
       [](Json& c) { c["quantization_config"]["checkpoint_format"] = "gptq_v2"; });
  EXPECT_EQ(verify().faults.size(), 21u);  // v1 zeros read as v2
}

TEST_F(VerifyTest, ConfigurationAndTensors) {
  const auto without = [](const char* key) {
    return [key](Json& c) { c["quantization_config"].erase(key); };
  };
  copy("gptq-sym4-g32", {}, without("desc_act"));
  expect_only(verify(), {"config.json: quantization_config.desc_act is missing"});
  copy("awq-gemm-g32", {}, without("zero_point"));
  expect_only(verify(), {"quantization_config.zero_point is missing"});
  copy("ct-rtn-w8", {}, without("ignore"));
  expect_only(verify(), {"quantization_config.ignore is missing"});
  copy("bnb-nf4", {}, without("bnb_4bit_quant_storage"));
  EXPECT_EQ(verify().faults.size(), 22u);  // the key, and each linear's storage
  copy("bnb-int8", {}, [](Json& c) { c["quantization_config"]["llm_int8_threshold"] = 6; });
  expect_only(verify(), {"llm_int8_threshold = 6", "a float"});
  copy("bnb-nf4", {},
       [](Json& c) { c["quantization_config"]["llm_int8_skip_modules"] = {"other"}; });
  expect_only(verify(), {"llm_int8_skip_modules does not name lm_head"});
  copy("gptq-sym4-g32", {}, [](Json& c) { c["quantization_config"]["bits"] = 8; });
  EXPECT_EQ(verify().faults.size(), 21u);
  expect_among(verify(), "linear '" + module + "' has bits 4, but quantization_config says 8");
  copy("bnb-nf4", {}, [](Json& c) { c["quantization_config"]["bnb_4bit_quant_type"] = "fp4"; });
  EXPECT_EQ(verify().faults.size(), 21u);
}

TEST_F(VerifyTest, FilesBesideTheCheckpoint) {
  copy("gptq-sym4-g32");
  fs::copy(oracles / "checkpoints" / "gptq-sym4-g32" / "quantize_config.json", folder.path());
  EXPECT_TRUE(verify().faults.empty());
  fs::copy(folder.path() / "model.safetensors", folder.path() / "model-00001-of-00002.safetensors");
  expect_only(verify(), {"model-00001-of-00002.safetensors", "is stale"});
  fs::remove(folder.path() / "model-00001-of-00002.safetensors");
  copy("gptq-sym4-g32", {}, [](Json& c) { c["quantization_config"]["meta"]["mse"] = 2.0; });
  expect_only(verify(), {"quantize_config.json: differs", "'meta'"});
}

TEST_F(VerifyTest, IndexAndItsSize) {
  copy("ct-rtn-w8");
  const Checkpoint checkpoint(folder.path());
  Json index{{"metadata", {{"total_size", checkpoint.total_bytes()}}},
             {"weight_map", Json::object()}};
  for (const std::string& name : checkpoint.names())
    index["weight_map"][name] = "model.safetensors";
  folder.write("model.safetensors.index.json", index.dump());
  EXPECT_TRUE(verify().faults.empty());
  index["metadata"]["total_size"] = 1;
  folder.write("model.safetensors.index.json", index.dump());
  expect_only(verify(), {"metadata.total_size = 1"});
  index["metadata"]["total_size"] = checkpoint.total_bytes();
  index["weight_map"].erase("model.norm.weight");
  folder.write("model.safetensors.index.json", index.dump());
  expect_only(verify(), {"model.norm.weight", "does not name"});
  index["weight_map"]["model.norm.weight"] = "model.safetensors";
  index["weight_map"]["visual.weight"] = "model.safetensors";
  folder.write("model.safetensors.index.json", index.dump());
  EXPECT_TRUE(verify().faults.empty());
  ASSERT_EQ(verify().notes.size(), 1u);
  EXPECT_NE(verify().notes[0].find("'visual.weight', which nobody needs"), std::string::npos);
}

TEST_F(VerifyTest, LoadersOfEachFormat) {
  const auto loads = [&](const char* name, const char* program) {
    return loader(verify_checkpoint(oracles / "checkpoints" / name), program).loads;
  };
  EXPECT_TRUE(loads("gptq-sym4-g32", "vLLM"));
  EXPECT_TRUE(loads("gptq-sym8-col", "vLLM"));
  EXPECT_FALSE(loads("gptq-sym3-g32", "vLLM"));
  EXPECT_FALSE(loads("gptq-sym4-g32-desc", "vLLM"));
  EXPECT_FALSE(loads("gptqv2-asym4-g32", "vLLM"));
  EXPECT_TRUE(loads("gptqv2-asym4-g32", "GPTQModel"));
  EXPECT_TRUE(loads("gptq-sym3-g32", "transformers"));
  EXPECT_FALSE(loads("gptq-sym4-g32", "AutoAWQ"));
  EXPECT_TRUE(loads("awq-gemm-g32", "AutoAWQ"));
  EXPECT_TRUE(loads("awq-gemm-g32", "vLLM"));
  EXPECT_FALSE(loads("bnb-nf4", "vLLM"));
  EXPECT_TRUE(loads("bnb-nf4", "transformers"));
  EXPECT_TRUE(loads("ct-nvfp4a16", "vLLM"));
  EXPECT_FALSE(loads("ct-nvfp4a16", "GPTQModel"));
}

TEST_F(VerifyTest, ExitCodeAndReportFile) {
  copy("gptq-sym4-g32", [&](Tensors& t) { set_element(t, module + ".scales", 5, to_f16(NAN)); });
  const fs::path report = folder.path() / "report.json";
  EXPECT_EQ(run_verify({folder.path(), oracles / "models" / "llama-mha", report}), 65);
  const Json json = Json::parse(read_bytes(report));
  EXPECT_EQ(json["faults"].size(), 1u);
  EXPECT_EQ(json["worst"]["name"], module);  // its weights are NaN, which JSON writes as null
  EXPECT_TRUE(json["worst"]["relative_error"].is_null());
  EXPECT_EQ(json["linears"].size(), 21u);
  EXPECT_EQ(run_verify({oracles / "checkpoints" / "gptq-sym4-g32", {}, {}}), 0);
}

}  // namespace
}  // namespace qpipe
