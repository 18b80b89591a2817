// A checkpoint's tensors against the architecture: planted faults in copies of a small checkpoint.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>

#include "pipeline/files/error.h"
#include "pipeline/model/model.h"
#include "stages/layer.h"
#include "tests/paths.h"

namespace qpipe {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using Shape = std::vector<std::int64_t>;
using Tensors = std::map<std::string, TensorInfo>;

Json config_of(const std::string& model) {
  std::ifstream file(tests_folder() / "golden" / "models" / model / "config.json");
  return Json::parse(file);
}

class CheckTensors : public testing::Test {
 protected:
  CheckTensors()
      : folder(fs::temp_directory_path() / ("qpipe_check_tensors_" + std::to_string(getpid()))) {}
  ~CheckTensors() override { fs::remove_all(folder); }

  // Writes the checkpoint, all zeros but for the bytes of `filled`, and checks it.
  void check(const Json& config, const Tensors& tensors,
             const std::map<std::string, unsigned char>& filled = {}) {
    fs::remove_all(folder);
    fs::create_directories(folder);
    std::ofstream(folder / "config.json") << config.dump();
    std::vector<TensorInfo> infos;
    for (const auto& [name, info] : tensors) infos.push_back(info);
    SafetensorsWriter writer(folder / "model.safetensors", infos);
    for (const TensorInfo& info : infos) {
      const auto found = filled.find(info.name);
      const std::vector<unsigned char> bytes(static_cast<std::size_t>(info.bytes()),
                                             found == filled.end() ? 0 : found->second);
      writer.write(info.name, bytes.data());
    }
    writer.finish();
    const Checkpoint checkpoint(folder);
    check_tensors(read_architecture(checkpoint.config(), "config.json"), checkpoint);
  }

  std::string fault(const Json& config, const Tensors& tensors,
                    const std::map<std::string, unsigned char>& filled = {}) {
    try {
      check(config, tensors, filled);
    } catch (const UserError& error) {
      EXPECT_EQ(error.code, ExitCode::data);
      return error.what();
    }
    return "no fault";
  }

  void expect_fault(const Json& config, const Tensors& tensors,
                    std::initializer_list<const char*> parts) {
    const std::string message = fault(config, tensors);
    EXPECT_NE(message.find(folder.string()), std::string::npos) << message;
    for (const char* part : parts)
      EXPECT_NE(message.find(part), std::string::npos) << "'" << part << "' is not in: " << message;
  }

  fs::path folder;
};

void put(Tensors& tensors, const std::string& name, const Shape& shape, DType dtype = DType::bf16) {
  tensors[name] = {name, dtype, shape};
}

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

Json quantized(const Json& quantization) {
  Json config = config_of("llama");
  config["quantization_config"] = quantization;
  return config;
}

Json gptq() { return quantized({{"quant_method", "gptq"}, {"bits", 4}}); }

TEST_F(CheckTensors, CompleteCheckpointsPass) {
  EXPECT_EQ(fault(config_of("llama"), llama()), "no fault");
  EXPECT_EQ(fault(gptq(), packed()), "no fault");
  Tensors old = llama();
  put(old, "model.layers.0.self_attn.rotary_emb.inv_freq", {8}, DType::f32);
  EXPECT_EQ(fault(config_of("llama"), old), "no fault");
}

TEST_F(CheckTensors, OracleModelsPass) {
  const fs::path models = shared_folder() / "oracles" / "models";
  if (!fs::exists(models)) GTEST_SKIP() << "no oracles at " << models;
  for (const fs::directory_entry& model :
       fs::directory_iterator(tests_folder() / "golden" / "models")) {
    if (!fs::exists(models / model.path().filename())) continue;
    const Checkpoint checkpoint(models / model.path().filename());
    EXPECT_NO_THROW(check_tensors(read_architecture(checkpoint), checkpoint)) << model;
  }
}

TEST_F(CheckTensors, AHeadIsTiedByWhatIsStoredWhereNothingSaysSo) {
  Json config = config_of("llama");
  const auto is_tied = [&](const Tensors& tensors) {
    std::vector<TensorInfo> infos;
    for (const auto& [name, info] : tensors) infos.push_back(info);
    return read_architecture(Checkpoint(folder, config, infos)).head.tied;
  };
  Tensors headless = llama();
  headless.erase("lm_head.weight");
  EXPECT_FALSE(is_tied(headless));  // config.json says that it isn't
  config.erase("tie_word_embeddings");
  EXPECT_TRUE(is_tied(headless));
  EXPECT_FALSE(is_tied(llama()));
  Tensors quantized_head = headless;
  put(quantized_head, "lm_head.qweight", {8, 320}, DType::i32);
  EXPECT_FALSE(is_tied(quantized_head));
  // The two parts of a vision-language model's config.json disagree.
  config = {{"tie_word_embeddings", true}, {"text_config", config_of("llama")}};
  EXPECT_FALSE(is_tied(llama()));
  EXPECT_TRUE(is_tied(headless));
}

TEST_F(CheckTensors, ConstantsOfXieluAreThoseOfTheFamily) {
  const Json config = config_of("apertus");
  Tensors t;
  for (const TensorInfo& info :
       expected_tensors(read_architecture(config, "config.json"), DType::bf16))
    t[info.name] = info;
  EXPECT_EQ(fault(config, t), "no fault");
  const std::string beta = "model.layers.1.mlp.act_fn.beta";
  put(t, beta, {});
  EXPECT_NE(fault(config, t, {{beta, 0x3f}}).find("beta' is 0.746"), std::string::npos);
  put(t, beta, {1}, DType::i32);
  EXPECT_NE(fault(config, t).find("beta' is nan"), std::string::npos);
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
  expect_fault(config_of("llama"), transposed,
               {"down_proj.weight' has shape [128, 64]", "makes it [64, 128]"});
}

TEST_F(CheckTensors, WhatTheDecoderDoesNotNeedIsNoFault) {
  Tensors t = llama();
  put(t, "model.layers.3.input_layernorm.weight", {64});  // a layer past the last
  put(t, "model.layers.0.self_attn.q_proj.bias", {64});   // attention_bias is false
  put(t, "model.layers.0.self_attn.q_proj.qweight", {8, 32}, DType::i32);
  put(t, "score.weight", {2, 64});
  put(t, "visual.patch_embed.proj.weight", {2, 3, 4, 4, 4}, DType::f8_e5m2);
  put(t, "step", {}, DType::i64);
  EXPECT_EQ(fault(config_of("llama"), t), "no fault");
  t.erase("model.layers.2.mlp.up_proj.weight");
  put(t, "model.layers.2.mlp.upp_proj.weight", {128, 64});
  expect_fault(config_of("llama"), t,
               {"'model.layers.2.mlp.up_proj.weight' is missing",
                "nearest name is 'model.layers.2.mlp.upp_proj.weight'"});
}

TEST_F(CheckTensors, StrayPartsOfAQuantizedLinear) {
  Tensors t = packed();
  put(t, "model.layers.1.self_attn.k_proj.bias", {32});
  put(t, "model.layers.3.self_attn.k_proj.qweight", {8, 32}, DType::i32);
  EXPECT_EQ(fault(gptq(), t), "no fault");
  t = packed();
  put(t, "model.layers.0.mlp.up_proj.qweight", {8, 32}, DType::i32);
  expect_fault(gptq(), t, {"model.layers.0.mlp.up_proj."});
  t = packed();
  put(t, "lm_head.weight_scale", {320, 1});
  expect_fault(gptq(), t, {"'lm_head.weight_scale' is unknown"});
}

TEST_F(CheckTensors, TypesAndOptions) {
  Tensors t;
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
  expect_fault(gptq(), changed(".qweight", {10, 32}, DType::i32),
               {"k_proj.qweight", "2, 3, 4 or 8 bits"});
  expect_fault(gptq(), changed(".qweight", {8, 32}, DType::f32),
               {"k_proj.qweight", "dtype F32", "I32"});
  expect_fault(gptq(), changed(".qzeros", {2, 8}, DType::i32),
               {"k_proj.qzeros", "[2, 8]", "[2, 4]"});
  expect_fault(gptq(), changed(".scales", {4, 32}, DType::f16),
               {"k_proj.qzeros", "[2, 4]", "[4, 4]"});
  expect_fault(gptq(), changed(".scales", {2, 64}, DType::f16), {"k_proj.scales", "[2, 64]"});
  expect_fault(gptq(), changed(".scales", {2, 32}, DType::i32), {"k_proj.scales", "dtype I32"});
  expect_fault(gptq(), changed(".g_idx", {32}, DType::i32), {"k_proj.g_idx", "[32]", "[64]"});
  Tensors t = packed();
  t.erase(module + ".g_idx");
  expect_fault(gptq(), t, {"k_proj.g_idx' is missing"});
  t = packed();
  put(t, module + ".weight", {32, 64});
  expect_fault(gptq(), t, {"is unknown"});  // both packed and not
  expect_fault(config_of("llama"), packed(),
               {"linear 'model.layers.1.self_attn.k_proj' is packed", "no quantization_config"});
}

// Oracle checkpoints with one thing changed: tensors keep their bytes where they can.
class PeerFaults : public CheckTensors {
 protected:
  void SetUp() override {
    if (!fs::exists(checkpoints)) GTEST_SKIP() << "no oracles at " << checkpoints;
  }

  using Change = std::function<void(Tensors&)>;
  // The fault of checkpoints/NAME after `change`, with the bytes of tensors in `filled` all set.
  std::string fault_of(const std::string& name, const Change& change,
                       const std::map<std::string, unsigned char>& filled = {}) {
    const Checkpoint peer(checkpoints / name);
    Tensors tensors;
    for (const std::string& tensor : peer.names()) tensors[tensor] = peer.info(tensor);
    change(tensors);
    fs::remove_all(folder);
    fs::create_directories(folder);
    fs::copy(checkpoints / name / "config.json", folder / "config.json");
    std::vector<TensorInfo> infos;
    for (const auto& [tensor, info] : tensors) infos.push_back(info);
    SafetensorsWriter writer(folder / "model.safetensors", infos);
    for (const TensorInfo& info : infos) {
      std::vector<unsigned char> bytes(static_cast<std::size_t>(info.bytes()), 0);
      if (peer.contains(info.name) && peer.info(info.name).bytes() == info.bytes())
        peer.read(info.name, bytes.data());
      if (filled.count(info.name) != 0) std::fill(bytes.begin(), bytes.end(), filled.at(info.name));
      writer.write(info.name, bytes.data());
    }
    writer.finish();
    try {
      const Checkpoint checkpoint(folder);
      check_tensors(read_architecture(checkpoint.config(), "config.json"), checkpoint);
    } catch (const UserError& error) {
      EXPECT_EQ(error.code, ExitCode::data);
      return error.what();
    }
    return "no fault";
  }

  const fs::path checkpoints = shared_folder() / "oracles" / "checkpoints";
  const std::string module = "model.layers.1.mlp.up_proj";  // [128, 64]
};

struct PeerParts {
  const char* checkpoint;
  std::vector<const char*> parts;
};

// Every part of every format: absent, with one element more, and of another dtype.
TEST_F(PeerFaults, EachPartMustBeThereWithItsShapeAndDtype) {
  const std::vector<PeerParts> peers{
      {"gptq-sym3-g32", {".qweight", ".qzeros", ".scales", ".g_idx"}},
      {"awq-gemm-g32", {".qweight", ".qzeros", ".scales"}},
      {"ct-gptq-w4-sym", {".weight_packed", ".weight_scale", ".weight_shape"}},
      {"ct-awq-w4-asym",
       {".weight_packed", ".weight_scale", ".weight_shape", ".weight_zero_point"}},
      {"ct-fp8-dynamic", {".weight", ".weight_scale"}},
      {"ct-nvfp4a16", {".weight_packed", ".weight_scale", ".weight_global_scale"}},
      {"ct-mxfp4a16", {".weight_packed", ".weight_scale"}},
      {"bnb-fp4",
       {".weight", ".weight.absmax", ".weight.quant_map", ".weight.quant_state.bitsandbytes__fp4"}},
      {"bnb-nf4-double",
       {".weight", ".weight.absmax", ".weight.quant_map", ".weight.nested_absmax",
        ".weight.nested_quant_map"}},
      {"bnb-nf4-bf16storage", {".weight", ".weight.absmax"}},
      {"bnb-int8", {".weight", ".SCB"}}};
  for (const PeerParts& peer : peers) {
    EXPECT_EQ(fault_of(peer.checkpoint, [](Tensors&) {}), "no fault") << peer.checkpoint;
    for (const char* part : peer.parts) {
      const std::string name = module + part;
      const std::string trace = std::string(peer.checkpoint) + part;
      const auto expect_named = [&](const std::string& message) {
        EXPECT_NE(message.find("'" + name + "'"), std::string::npos) << trace << ": " << message;
        EXPECT_EQ(message.find('\n'), std::string::npos);
      };
      const bool optional =
          std::string(part) == ".weight_zero_point";  // without it the linear is symmetric
      const bool is_state = std::string(part).find("quant_state") != std::string::npos;
      const std::string absent = fault_of(peer.checkpoint, [&](Tensors& t) { t.erase(name); });
      if (optional)
        EXPECT_EQ(absent, "no fault");
      else if (is_state)
        EXPECT_NE(absent.find("quant_state.bitsandbytes__nf4' (or ..._fp4) is missing"),
                  std::string::npos)
            << absent;
      else
        expect_named(absent);
      const std::string longer =
          fault_of(peer.checkpoint, [&](Tensors& t) { t.at(name).shape.front() += 1; });
      if (!is_state) {
        // A scale of another group count is told with the tensor that no longer agrees.
        EXPECT_NE(longer.find("tensor '" + module + "."), std::string::npos)
            << trace << ": " << longer;
      } else {
        EXPECT_NE(longer.find("cannot be read"), std::string::npos) << longer;
      }
      expect_named(fault_of(peer.checkpoint, [&](Tensors& t) { t.at(name).dtype = DType::f64; }));
    }
    const std::string stray = fault_of(
        peer.checkpoint, [&](Tensors& t) { put(t, module + ".weight_g_idx", {64}, DType::i32); });
    EXPECT_NE(stray.find("'" + module + ".weight_g_idx' is unknown"), std::string::npos)
        << peer.checkpoint << ": " << stray;
  }
}

TEST_F(PeerFaults, ContentsOfSmallParts) {
  const auto expect = [&](const std::string& checkpoint, const std::string& part,
                          unsigned char fill, const char* text) {
    const std::string message = fault_of(checkpoint, [](Tensors&) {}, {{module + part, fill}});
    EXPECT_NE(message.find("'" + module + part + "' " + text), std::string::npos) << message;
  };
  expect("ct-gptq-w4-sym", ".weight_shape", 1, "says another shape than [128, 64]");
  expect("bnb-nf4", ".weight.quant_map", 0, "has other values than NF4");
  expect("bnb-fp4", ".weight.quant_map", 0, "has other values than FP4");
  expect("bnb-nf4", ".weight.quant_state.bitsandbytes__nf4", ' ', "cannot be read");
  expect("bnb-int8", ".weight_format", 1, "is not 0");
}

TEST_F(PeerFaults, WhatCannotBeReadIsSaidOfTheConfiguration) {
  const Json ct{{"quant_method", "compressed-tensors"}, {"format", "pack-quantized"}};
  const auto with = [](Json base, const Json& more) {
    base.update(more);
    return base;
  };
  const std::vector<std::pair<Json, std::vector<const char*>>> cases{
      {{{"quant_method", "gptq"}, {"checkpoint_format", "gptq_p"}},
       {"checkpoint_format 'gptq_p'", "gptq, gptq_v2"}},
      {{{"quant_method", "gptq"}, {"checkpoint_format", "marlin"}}, {"checkpoint_format 'marlin'"}},
      {{{"quant_method", "gptq"}, {"lm_head", true}}, {"lm_head"}},
      {{{"quant_method", "awq"}, {"version", "gemv"}}, {"version 'gemv'", "supported: gemm"}},
      {{{"quant_method", "awq"}, {"version", "exllama"}}, {"version 'exllama'"}},
      {{{"quant_method", "hqq"}},
       {"quant_method 'hqq'", "gptq, awq, compressed-tensors, bitsandbytes, fp8"}},
      {{{"quant_method", "fp8"}, {"weight_block_size", {64, 64}}},
       {"weight_block_size = [64,64]", "[128, 128]"}},
      {with(ct, {{"format", "int-quantized"}}), {"format 'int-quantized'", "nvfp4-pack-quantized"}},
      {with(ct, {{"kv_cache_scheme", {{"num_bits", 8}}}}), {"kv_cache_scheme"}},
      {with(ct, {{"sparsity_config", {{"format", "sparse-24-bitmask"}}}}),
       {"sparsity_config: format"}},
      {with(ct, {{"quantization_status", "frozen"}}), {"quantization_status", "not packed"}},
      {with(ct, {{"config_groups", {{"group_0", {{"weights", {{"actorder", "group"}}}}}}}}),
       {"config_groups.group_0.weights: actorder"}},
  };
  for (const auto& [quantization, parts] : cases) {
    try {
      check(quantized(quantization), llama());
      ADD_FAILURE() << quantization << " is accepted";
    } catch (const UserError& error) {
      const std::string message = error.what();
      EXPECT_EQ(error.code, ExitCode::unavailable) << message;
      EXPECT_NE(message.find("config.json: quantization_config: "), std::string::npos) << message;
      for (const char* part : parts)
        EXPECT_NE(message.find(part), std::string::npos)
            << "'" << part << "' is not in: " << message;
    }
  }
}

TEST_F(CheckTensors, ATiedHeadIsStoredInEitherPlaceOrInBoth) {
  Json tied = config_of("llama");
  tied["tie_word_embeddings"] = true;
  const auto head_is_tied = [&] { return read_architecture(Checkpoint(folder)).head.tied; };
  const std::string head = "lm_head.weight";
  const std::string embedding = "model.embed_tokens.weight";

  Tensors without_head = llama();
  without_head.erase(head);
  EXPECT_EQ(fault(tied, without_head), "no fault");
  EXPECT_TRUE(head_is_tied());

  // Under the head's name alone: it goes by the embedding's.
  Tensors without_embedding = llama();
  without_embedding.erase(embedding);
  EXPECT_EQ(fault(tied, without_embedding, {{head, 0x3f}}), "no fault");
  EXPECT_TRUE(head_is_tied());
  const Checkpoint renamed(folder);
  EXPECT_FALSE(renamed.contains(head));
  EXPECT_EQ(renamed.info(embedding).name, embedding);
  std::vector<unsigned char> bytes(static_cast<std::size_t>(renamed.info(embedding).bytes()));
  renamed.read(embedding, bytes.data());
  EXPECT_EQ(bytes, std::vector<unsigned char>(bytes.size(), 0x3f));
  EXPECT_NE(fault(config_of("llama"), without_embedding).find("'" + embedding + "' is missing"),
            std::string::npos);  // not tied: it is another tensor

  EXPECT_EQ(fault(tied, llama(), {{head, 0x3f}, {embedding, 0x3f}}), "no fault");
  EXPECT_TRUE(head_is_tied());
  EXPECT_FALSE(is_untied(read_architecture(Checkpoint(folder)), tied));

  // Both, with other values: transformers runs both.
  EXPECT_EQ(fault(tied, llama(), {{head, 0x3f}}), "no fault");
  EXPECT_FALSE(head_is_tied());
  EXPECT_TRUE(is_untied(read_architecture(Checkpoint(folder)), tied));
}

TEST_F(CheckTensors, TheEmbeddingAmongNamesWithoutABeginning) {
  Json tied = config_of("llama");
  tied["tie_word_embeddings"] = true;
  Tensors t;
  for (const auto& [name, info] : llama()) {
    if (name == "model.embed_tokens.weight") continue;
    put(t, name.starts_with("model.") ? name.substr(6) : name, info.shape);
  }
  fault(tied, t);
  const Checkpoint checkpoint(folder);
  EXPECT_TRUE(checkpoint.contains("embed_tokens.weight"));
  EXPECT_NO_THROW(check_tensors(read_architecture(checkpoint), checkpoint));
}

// A tensor that the index promises and no shard has.
TEST_F(CheckTensors, PromisesAreKeptWhereTheDecoderNeedsThem) {
  const auto fault_of = [&](const std::string& promised, bool tied) {
    Tensors t = llama();
    t.erase(promised);
    fault(config_of("llama"), t);
    fs::rename(folder / "model.safetensors", folder / "model-00001-of-00002.safetensors");
    Json map;
    for (const auto& [name, info] : t) map[name] = "model-00001-of-00002.safetensors";
    map[promised] = "model-00002-of-00002.safetensors";
    std::ofstream(folder / "model.safetensors.index.json") << Json{{"weight_map", map}}.dump();
    Json config = config_of("llama");
    config["tie_word_embeddings"] = tied;
    std::ofstream(folder / "config.json") << config.dump();
    const Checkpoint checkpoint(folder);
    try {
      check_tensors(read_architecture(checkpoint), checkpoint);
    } catch (const UserError& error) {
      EXPECT_EQ(error.code, ExitCode::no_input);
      return std::string(error.what());
    }
    return std::string("no fault");
  };
  EXPECT_EQ(fault_of("lm_head.weight", true), "no fault");
  EXPECT_EQ(fault_of("model.layers.7.mlp.up_proj.weight", true), "no fault");
  for (const std::string name : {"lm_head.weight", "model.layers.1.mlp.up_proj.weight"})
    EXPECT_NE(fault_of(name, false).find("shard \"model-00002-of-00002.safetensors\" is missing"),
              std::string::npos)
        << name;
}

}  // namespace
}  // namespace qpipe
