// How quantization_config names modules for its loaders: pure functions of names.
#pragma once

#include <string>
#include <vector>

#include "pipeline/model/safetensors.h"

namespace qpipe {

// Modules that a loader could take for linears to quantize, of tensors that are stored as floats:
// those of a matrix NAME.weight that is no embedding, and each expert of a stack
// NAME.experts.gate_up_proj or .down_proj [experts, …, …]. Sorted.
std::vector<std::string> float_linears(const std::vector<TensorInfo>& tensors);

// Whether it is a linear of a single expert: "….experts.3.up_proj".
bool is_of_an_expert(const std::string& module);

// Linears that servers run as one, under the name that vLLM and SGLang give it.
struct FusedModule {
  std::string name;                  // "model.layers.0.self_attn.qkv_proj"
  std::vector<std::string> members;  // "model.layers.0.self_attn.q_proj", …
};

// q_proj, k_proj, v_proj → qkv_proj and the like, and MLP.experts.* → MLP.experts, where all
// members are among `modules`, which are all of the checkpoint's linears. Sorted by name.
std::vector<FusedModule> fused_modules(const std::vector<std::string>& modules);

// The top-most names that lie beside the decoder layers: "visual" of "model.visual.blocks.0.mlp"
// where layers are "model.layers.", "layers.61" of an MTP layer behind the last. None that is part
// of a decoder linear's name, too. Sorted.
std::vector<std::string> roots_beside(const std::vector<std::string>& modules,
                                      const std::string& layer_prefix,
                                      const std::vector<std::string>& decoder_linears);

// Whether a name has one of `roots` as a part, as a regular expression for the name's start.
std::string has_root(const std::vector<std::string>& roots);

// Regular expressions, to be matched from a name's start, that match the modules and none of
// `others`: also under other names of the model around them ("language_model.layers.3.x" for
// "model.layers.3.x"), as loaders differ in it. Modules that differ in one number share one
// expression, so that a loader has few to try.
std::vector<std::string> patterns_of(const std::vector<std::string>& modules,
                                     const std::string& layer_prefix,
                                     const std::vector<std::string>& others);

}  // namespace qpipe
