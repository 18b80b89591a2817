// A checkpoint's tensors against the architecture: planted faults in copies of a small checkpoint.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "pipeline/error.h"
#include "pipeline/layer_source.h"
#include "pipeline/model.h"

namespace qpipe {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using Shape = std::vector<std::int64_t>;
using Tensors = std::map<std::string, TensorInfo>;

Json config_of(const std::string& model) {
  std::ifstream file(fs::path(QPIPE_TESTS) / "golden" / "models" / model / "config.json");
  return Json::parse(file);
}

class CheckTensors : public testing::Test {
 protected:
  CheckTensors() : folder(fs::temp_directory_path() / ("qpipe_check_tensors_" + std::to_string(getpid()))) {}
  ~CheckTensors() override { fs::remove_all(folder); }

  // Writes the checkpoint, all zeros but for the bytes of `filled`, and checks it.
  void check(const Json& config, const Tensors& tensors, const std::map<std::string, unsigned char>& filled = {}) {
    fs::remove_all(folder);
    fs::create_directories(folder);
    std::ofstream(folder / "config.json") << config.dump();
    std::vector<TensorInfo> infos;
    for (const auto& [name, info] : tensors) infos.push_back(info);
    SafetensorsWriter writer(folder / "model.safetensors", infos);
    for (const TensorInfo& info : infos) {
      const auto found = filled.find(info.name);
      const std::vector<unsigned char> bytes(static_cast<std::size_t>(info.bytes()), found == filled.end() ? 0 : found->second);
      writer.write(info.name, bytes.data());
    }
    writer.finish();
    const Checkpoint checkpoint(folder);
    check_tensors(read_architecture(checkpoint.config(), "config.json"), checkpoint);
  }

  std::string fault(const Json& config, const Tensors& tensors, const std::map<std::string, unsigned char>& filled = {}) {
    try {
      check(config, tensors, filled);
    } catch (const UserError& error) {
      EXPECT_EQ(error.code, ExitCode::data);
      return error.what();
    }
    return "no fault";
  }

  void expect_fault(const Json& config, const Tensors& tensors, std::initializer_list<const char*> parts) {
    const std::string message = fault(config, tensors);
    EXPECT_NE(message.find(folder.string()), std::string::npos) << message;
    for (const char* part : parts) EXPECT_NE(message.find(part), std::string::npos) << "'" << part << "' is not in: " << message;
  }

  fs::path folder;
};

void put(Tensors& tensors, const std::string& name, const Shape& shape, DType dtype = DType::bf16) { tensors[name] = {name, dtype, shape}; }

// The tensors of tests/golden/models/llama (GQA: 4 heads, 2 of keys and values, of 16).
Tensors llama() {
  Tensors t;
  put(t, "model.embed_tokens.weight", {320, 64});
  put(t, "model.norm.weight", {64});
  put(t, "lm_head.weight", {320, 64});
  for (int layer = 0; layer < 3; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    put(t, prefix + "input_layernorm.weight", {64});
    put(t, prefix + "post_attention_layernorm.weight", {64});
    put(t, prefix + "self_attn.q_proj.weight", {64, 64});
    put(t, prefix + "self_attn.k_proj.weight", {32, 64});
    put(t, prefix + "self_attn.v_proj.weight", {32, 64});
    put(t, prefix + "self_attn.o_proj.weight", {64, 64});
    put(t, prefix + "mlp.gate_proj.weight", {128, 64});
    put(t, prefix + "mlp.up_proj.weight", {128, 64});
    put(t, prefix + "mlp.down_proj.weight", {64, 128});
  }
  return t;
}

// Layer 1's k_proj [32, 64] as 4-bit codes in groups of 32.
Tensors packed() {
  Tensors t = llama();
  const std::string module = "model.layers.1.self_attn.k_proj";
  t.erase(module + ".weight");
  put(t, module + ".qweight", {8, 32}, DType::i32);
  put(t, module + ".qzeros", {2, 4}, DType::i32);
  put(t, module + ".scales", {2, 32}, DType::f16);
  put(t, module + ".g_idx", {64}, DType::i32);
  return t;
}

TEST_F(CheckTensors, CompleteCheckpointsPass) {
  EXPECT_EQ(fault(config_of("llama"), llama()), "no fault");
  EXPECT_EQ(fault(config_of("llama"), packed()), "no fault");
  Tensors old = llama();
  put(old, "model.layers.0.self_attn.rotary_emb.inv_freq", {8}, DType::f32);
  EXPECT_EQ(fault(config_of("llama"), old), "no fault");
}

TEST_F(CheckTensors, OracleModelsPass) {
  const fs::path models = fs::path(QPIPE_SHARED) / "oracles" / "models";
  if (!fs::exists(models)) GTEST_SKIP() << "no oracles at " << models;
  for (const fs::directory_entry& model : fs::directory_iterator(fs::path(QPIPE_TESTS) / "golden" / "models")) {
    const Checkpoint checkpoint(models / model.path().filename());
    EXPECT_NO_THROW(check_tensors(read_architecture(checkpoint.config(), "config.json"), checkpoint)) << model;
  }
}

TEST_F(CheckTensors, EachMissingTensorIsNamed) {
  for (const auto& [name, info] : llama()) {
    Tensors t = llama();
    t.erase(name);
    expect_fault(config_of("llama"), t, {("tensor '" + name + "' is missing").c_str()});
  }
}

TEST_F(CheckTensors, EachWrongShapeIsNamed) {
  for (const auto& [name, info] : llama()) {
    Tensors t = llama();
    t[name].shape.back() += 1;
    expect_fault(config_of("llama"), t, {("tensor '" + name + "' has shape").c_str()});
  }
  Tensors transposed = llama();
  put(transposed, "model.layers.2.mlp.down_proj.weight", {128, 64});
  expect_fault(config_of("llama"), transposed, {"down_proj.weight' has shape [128, 64]", "makes it [64, 128]"});
}

TEST_F(CheckTensors, UnknownTensorsAndTypes) {
  Tensors t = llama();
  put(t, "model.layers.3.input_layernorm.weight", {64});
  expect_fault(config_of("llama"), t, {"'model.layers.3.input_layernorm.weight' is unknown", "llama of 3 layers"});
  t = llama();
  put(t, "model.layers.0.self_attn.q_proj.bias", {64});  // attention_bias is false
  expect_fault(config_of("llama"), t, {"'model.layers.0.self_attn.q_proj.bias' is unknown"});
  t = llama();
  put(t, "score.weight", {2, 64});
  expect_fault(config_of("llama"), t, {"'score.weight' is unknown"});
  t = llama();
  put(t, "model.layers.0.mlp.up_proj.weight", {128, 64}, DType::f8_e4m3);
  expect_fault(config_of("llama"), t, {"'model.layers.0.mlp.up_proj.weight' has dtype F8_E4M3"});
  Json biased = config_of("llama");
  biased["attention_bias"] = true;
  expect_fault(biased, llama(), {"'model.layers.0.self_attn.q_proj.bias' is missing"});
}

TEST_F(CheckTensors, PackedPartsMustAgree) {
  const std::string module = "model.layers.1.self_attn.k_proj";
  const auto changed = [&](const std::string& part, const Shape& shape, DType dtype) {
    Tensors t = packed();
    put(t, module + part, shape, dtype);
    return t;
  };
  expect_fault(config_of("llama"), changed(".qweight", {10, 32}, DType::i32), {"k_proj.qweight", "2, 3, 4 or 8 bits"});
  expect_fault(config_of("llama"), changed(".qweight", {8, 32}, DType::f32), {"k_proj.qweight", "dtype F32", "I32"});
  expect_fault(config_of("llama"), changed(".qzeros", {2, 8}, DType::i32), {"k_proj.qzeros", "[2, 8]", "[2, 4]"});
  expect_fault(config_of("llama"), changed(".scales", {4, 32}, DType::f16), {"k_proj.qzeros", "[2, 4]", "[4, 4]"});
  expect_fault(config_of("llama"), changed(".scales", {2, 64}, DType::f16), {"k_proj.scales", "[2, 64]"});
  expect_fault(config_of("llama"), changed(".scales", {2, 32}, DType::i32), {"k_proj.scales", "dtype I32"});
  expect_fault(config_of("llama"), changed(".g_idx", {32}, DType::i32), {"k_proj.g_idx", "[32]", "[64]"});
  Tensors t = packed();
  t.erase(module + ".g_idx");
  expect_fault(config_of("llama"), t, {"k_proj.g_idx' is missing"});
  t = packed();
  put(t, module + ".weight", {32, 64});
  expect_fault(config_of("llama"), t, {"is unknown"});  // both packed and not
}

TEST_F(CheckTensors, TiedHeadMustEqualTheEmbedding) {
  Json tied = config_of("llama");
  tied["tie_word_embeddings"] = true;
  EXPECT_EQ(fault(tied, llama(), {{"lm_head.weight", 1}, {"model.embed_tokens.weight", 1}}), "no fault");
  Tensors without_head = llama();
  without_head.erase("lm_head.weight");
  EXPECT_EQ(fault(tied, without_head), "no fault");
  const std::string message = fault(tied, llama(), {{"lm_head.weight", 1}});
  EXPECT_NE(message.find("tie_word_embeddings is true, but 'lm_head.weight' differs"), std::string::npos) << message;
}

}  // namespace
}  // namespace qpipe
