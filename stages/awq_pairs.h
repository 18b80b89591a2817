// Where AWQ may move a factor: from the inputs of some linears into what makes those inputs.
// Source: formats.md §2, scaling mappings; pairs that would change what the layer computes are left
// out.
#pragma once

#include <string>
#include <vector>

#include "stages/layer.h"

namespace qpipe {

// Whose output the exact search compares.
enum class Inspected { mixer, mlp, mixer_and_mlp, linears };

// All linears that read the input's columns: none may be left with an input that another's factor
// has changed. Those of one group; with experts below a norm, those of all groups of the step, the
// router and the shared experts' gate among them.
struct ScalingPair {
  std::size_t step = 0;
  std::vector<std::size_t> groups = {0};
  // What takes the factor out of the input: a norm, or rows of a linear.
  std::optional<NormSpec> norm;
  std::size_t source_linear = 0;
  std::int64_t source_first_row = 0;  // its rows from here on are the input's columns
  std::vector<std::size_t> linears;   // as indices into Layer::linears
  Inspected inspected = Inspected::linears;
};

// At most one pair for a group, in the order of the steps. Pairs:
//   the norm before a half of the layer → the linears that read it, and the experts' own norm →
//     those of the experts; not a norm that stores no weight
//   the norms of latents → q_b, kv_b
//   v → o, where one key and value head serves one query head and nothing stands between: no
//   norm
//     of v, no clipping, no other layer that reads v; v a module of its own or the last rows of one
//   up, or the second half of a fused gate_up → down, of each expert, too, where up is neither
//     limited nor shifted; a plain MLP's first linear → its second where f(a x) = a f(x) for a > 0
//     (ReLU)
std::vector<ScalingPair> scaling_pairs(const LayerSpec& spec);

// The linears that run in what the exact search compares.
std::vector<std::size_t> inspected_linears(const LayerSpec& spec, const ScalingPair& pair);

// "post_attention_layernorm" or "mlp.up_proj": what the pair's factor goes into, as the layer's
// tensors are named.
std::string source_name(const LayerSpec& spec, const ScalingPair& pair);

// Whether a step of that part runs in what the search compares.
bool is_inspected(Inspected inspected, Part part);

}  // namespace qpipe
