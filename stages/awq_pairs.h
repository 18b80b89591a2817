// Where AWQ may move a factor: from the inputs of some linears into what makes those inputs.
// Source: formats.md §2, scaling mappings.
#pragma once

#include <string>
#include <vector>

#include "stages/layer.h"

namespace qpipe {

// What produces the input and takes the factor out of it.
enum class ScaleSource { attention_norm, mlp_norm, linear };

// Whose output the exact search compares.
enum class Inspected { attention, mlp, attention_and_mlp, linears };

// Linears of one step, all of those that read its input: none may be left with an input that
// another's factor has changed.
struct ScalingPair {
  StepKind step;
  ScaleSource source;
  std::size_t source_linear = 0;      // for ScaleSource::linear
  std::int64_t source_first_row = 0;  // its rows from here on are the input's columns
  std::vector<std::size_t> linears;   // as indices into Layer::linears
  Inspected inspected;
};

// At most one pair for each step, in the order of the steps. Pairs:
//   attention norm → q, k, v;                   with a shared norm → qkv and the MLP's first
//   linears v → o, where v is a module of its own and one key and value head serves one query head
//   (both weights have one shape) MLP norm → the MLP's first linears up (or the second half of a
//   fused gate_up) → down; a plain MLP's first linear → its second where f(a x) = a f(x) for a > 0
//   (ReLU)
std::vector<ScalingPair> scaling_pairs(const Architecture& architecture);

// The linears that run in what the exact search compares.
std::vector<std::size_t> inspected_linears(const Architecture& architecture,
                                           const ScalingPair& pair);

// "post_attention_layernorm" or "mlp.up_proj": what the pair's factor goes into, as the layer's
// tensors are named.
std::string source_name(const Architecture& architecture, const ScalingPair& pair);

}  // namespace qpipe
