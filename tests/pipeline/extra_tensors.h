// A copy of an oracle's checkpoint with tensors that its decoder doesn't read: a vision tower, MTP,
// buffers of odd types and shapes.
#pragma once

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "pipeline/model/checkpoint.h"

namespace qpipe {

struct StoredBytes {
  TensorInfo info;
  std::vector<unsigned char> bytes;
};
using TensorMap = std::map<std::string, StoredBytes>;

inline TensorMap read_tensors(const std::filesystem::path& folder) {
  const Checkpoint checkpoint(folder);
  TensorMap tensors;
  for (const std::string& name : checkpoint.names()) {
    StoredBytes& tensor = tensors[name];
    tensor.info = checkpoint.info(name);
    tensor.bytes.resize(static_cast<std::size_t>(tensor.info.bytes()));
    checkpoint.read(name, tensor.bytes.data());
  }
  return tensors;
}

// Bytes that no float type has only finite values for.
inline void add_tensor(TensorMap& tensors, const std::string& name, DType dtype,
                       const std::vector<std::int64_t>& shape) {
  StoredBytes& tensor = tensors[name];
  tensor.info = {name, dtype, shape};
  tensor.bytes.resize(static_cast<std::size_t>(tensor.info.bytes()));
  for (std::size_t i = 0; i < tensor.bytes.size(); ++i)
    tensor.bytes[i] = static_cast<unsigned char>(
        dtype == DType::boolean ? i % 2 : 255 - (i * 7 + name.size()) % 251);
}

// For a decoder of three layers "model.layers.".
inline void add_extras(TensorMap& tensors) {
  for (const char* block : {"visual.blocks.0.", "visual.blocks.1."}) {
    for (const char* part : {"attn.q_proj", "attn.k_proj", "attn.v_proj", "mlp.fc1"})
      add_tensor(tensors, std::string(block) + part + ".weight", DType::bf16, {8, 6});
    add_tensor(tensors, std::string(block) + "norm1.weight", DType::bf16, {6});
    add_tensor(tensors, std::string(block) + "attn.bias", DType::f32, {6});  // no mask
  }
  add_tensor(tensors, "visual.patch_embed.proj.weight", DType::bf16, {4, 3, 2, 2, 2});
  add_tensor(tensors, "visual.pos_embed.weight", DType::f32, {5, 6});
  add_tensor(tensors, "visual.merger.mlp.0.weight", DType::f16, {6, 6});
  add_tensor(tensors, "visual.merger.mlp.2.weight", DType::f32, {6, 6});
  add_tensor(tensors, "mtp.fc.weight", DType::bf16, {4, 8});
  for (const char* part :
       {"eh_proj", "shared_head.head", "mlp.gate", "mlp.experts.0.up_proj",
        "mlp.experts.0.gate_proj", "mlp.experts.1.up_proj", "mlp.experts.1.gate_proj"})
    add_tensor(tensors, std::string("model.layers.3.") + part + ".weight", DType::bf16, {4, 8});
  add_tensor(tensors, "model.layers.3.embed_tokens.weight", DType::bf16, {9, 4});
  add_tensor(tensors, "model.layers.3.enorm.weight", DType::f32, {4});
  add_tensor(tensors, "model.layers.3.mlp.gate.e_score_correction_bias", DType::f32, {2});
  add_tensor(tensors, "model.layers.1.self_attn.indexer.wk.weight", DType::bf16, {4, 4});
  add_tensor(tensors, "extra.counter", DType::i64, {});
  add_tensor(tensors, "extra.none", DType::f32, {0, 3});
  add_tensor(tensors, "extra.table", DType::i64, {3, 5});
  add_tensor(tensors, "extra.mask", DType::boolean, {1, 1, 3, 3});
  add_tensor(tensors, "extra.bytes", DType::u8, {7});
  add_tensor(tensors, "extra.eighths", DType::f8_e4m3, {3, 3, 3});
  add_tensor(tensors, "extra.powers", DType::f8_e8m0, {3});
  add_tensor(tensors, "extra.wide", DType::f64, {2});
  add_tensor(tensors, "extra.infinite", DType::f32, {2});
  tensors["extra.infinite"].bytes = {0, 0, 0x80, 0xff, 0, 0, 0xc0, 0x7f};  // -inf, NaN
}

// The constants that are not copied.
inline void add_constants(TensorMap& tensors) {
  add_tensor(tensors, "model.layers.0.self_attn.rotary_emb.inv_freq", DType::f32, {8});
  add_tensor(tensors, "model.layers.0.attn.bias", DType::u8, {1, 1, 4, 4});
  add_tensor(tensors, "model.layers.0.attn.masked_bias", DType::f32, {});
}

// config.json and model.safetensors.
inline void write_checkpoint(const std::filesystem::path& folder, const nlohmann::json& config,
                             const TensorMap& tensors) {
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "config.json") << config.dump();
  std::vector<TensorInfo> infos;
  for (const auto& [name, tensor] : tensors) {
    infos.push_back(tensor.info);
    infos.back().name = name;
  }
  SafetensorsWriter writer(folder / "model.safetensors", infos);
  for (const auto& [name, tensor] : tensors) writer.write(name, tensor.bytes.data());
  writer.finish();
}

}  // namespace qpipe
