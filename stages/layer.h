// One decoder layer as a short list of steps.
//
// A step is the group of linears that read one input, and the function that leads from their
// outputs to the next step's input:
//   attention_in:   qkv = x Wᵀ, q/k norms, rope, attention      → x = heads' outputs
//   attention_out:  h += x Wᵀ, norm                             → x = input of the MLP
//   mlp_in:         gate, up, activation                        → x = input of the MLP's last
//   linear mlp_out:        h += x Wᵀ                                   → the layer is done
// Calibration walks the steps: sum the Hessian of x over all tokens, solve the step's linears, put
// the quantized weights in place, advance. Every linear runs once per token, and the linears of
// later steps see the quantized ones before them (true sequential order).
#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "kernels/stream.h"
#include "stages/architecture.h"

namespace qpipe {

// A linear on the device. `stored` is the weight as the checkpoint has it (what is quantized),
// `weight` is in the compute type, for the forward pass: the same memory where the types are the
// same. Quantization overwrites `weight` with the dequantized codes; `stored` is not to be used any
// more then.
struct Linear {
  std::string name;         // full module name: "model.layers.3.self_attn.q_proj"
  ConstTensor stored;       // [out, in]; empty when the checkpoint is packed
  Tensor weight;            // [out, in]; without memory while it waits (stages/waiting_weights.h)
  ConstTensor bias;         // [1, out] or empty, compute type
  ConstTensor stored_bias;  // as the checkpoint has it
};

struct Norm {
  ConstTensor weight;         // [1, d], compute type
  ConstTensor bias;           // [1, d] or empty
  ConstTensor stored_weight;  // as the checkpoint has them
  ConstTensor stored_bias;
};

// Where a linear's weight is while no step needs it.
struct WaitingWeight {
  unsigned char* host = nullptr;  // page-locked memory of the layer's source
  DType dtype =
      DType::f32;  // the checkpoint's, the compute type once the weight has been overwritten
  bool overwritten = false;
  HostBuffer wider;  // for an overwritten weight that is larger than the checkpoint's
  Buffer stored;     // on the device
  Buffer weight;
};

struct Layer {
  std::int64_t index = 0;
  std::vector<Linear> linears;  // qkv…, attention_out, mlp_in…, mlp_out: the order of all_linears()
  Norm attention_norm;
  Norm mlp_norm;  // empty with a shared norm
  ConstTensor q_norm;
  ConstTensor k_norm;
  std::vector<Buffer> memory;
  std::vector<WaitingWeight>
      waiting;  // one for each linear; empty when all weights stay on the device
};

enum class StepKind { attention_in, attention_out, mlp_in, mlp_out };
inline constexpr std::array step_kinds{StepKind::attention_in, StepKind::attention_out,
                                       StepKind::mlp_in, StepKind::mlp_out};

struct Step {
  StepKind kind;
  std::vector<std::size_t> linears;  // those whose input is this step's x, as indices into
                                     // Layer::linears: solved together
};

// The layer's linears in the order of Layer::linears.
std::vector<LinearSpec> all_linears(const Architecture& architecture);

// With a shared norm (Falcon-7B) attention_in also lists the mlp_in linears: one Hessian serves
// both, and mlp_in lists none.
std::vector<Step> layer_steps(const Architecture& architecture);

// The linears that advance() runs, as indices into Layer::linears.
std::vector<std::size_t> run_linears(const Architecture& architecture, StepKind kind);

std::int64_t input_width(const Architecture& architecture, StepKind kind);
std::int64_t widest_input(const Architecture& architecture);
// Columns of the scratch matrix that advance() needs, per token.
std::int64_t scratch_width(const Architecture& architecture);

// Device tables that every layer shares, for one sequence length.
struct DecoderTables {
  Array<float> inverse_frequencies;  // [1, rotated / 2]
  Array<float> key_bias;             // [heads, seqlen], ALiBi
};
DecoderTables make_tables(const Architecture& architecture, std::int64_t seqlen, Stream& stream);

// A block of whole sequences: its residual stream and the current step's input, in the compute
// type. The bfloat16 residual stream of the CUDA backend is what bf16 inference has: the error that
// calibration sees is the error that is served.
struct Block {
  Tensor hidden;  // [tokens, hidden]
  Tensor input;   // [tokens, input_width(step)]; memory for widest_input columns
};

// block.input = norm(block.hidden): the input of the first step.
void start_layer(const Architecture& architecture, const Layer& layer, Block& block,
                 Stream& stream);

// y = the heads' outputs, or the input of the MLP's last linear, for the step's input x: what
// attention_in and mlp_in do. y may lie in x's memory; scratch as advance().
void attention_heads(const Architecture& architecture, const DecoderTables& tables,
                     const Layer& layer, std::int64_t seqlen, ConstTensor x, Tensor y,
                     Tensor scratch, Stream& stream);
void mlp_activations(const Architecture& architecture, const Layer& layer, ConstTensor x, Tensor y,
                     Tensor scratch, Stream& stream);

// Runs the step's linears on block.input and leaves the next step's input there (after mlp_out: the
// layer's output in block.hidden). scratch: compute type, at least [tokens, scratch_width].
void advance(const Architecture& architecture, const DecoderTables& tables, const Layer& layer,
             StepKind kind, std::int64_t seqlen, Block& block, Tensor scratch, Stream& stream);

// start_layer and all four steps.
void forward_layer(const Architecture& architecture, const DecoderTables& tables,
                   const Layer& layer, std::int64_t seqlen, Block& block, Tensor scratch,
                   Stream& stream);

void apply_norm(const Architecture& architecture, const Norm& norm, ConstTensor x, Tensor y,
                Stream& stream);

}  // namespace qpipe
