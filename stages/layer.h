// One decoder layer as a short list of steps.
//
// A step has one stored input and the way from its linears' outputs to the next step's input. Of an
// attention layer with an MLP:
//   mixer, 0:  q, k, v = x Wᵀ, norms, rope, attention          → x = the heads' outputs
//   mixer, 1:  h += x Wᵀ, norm                                 → x = input of the MLP
//   mlp, 0:    gate, up, activation                            → x = input of its last linear
//   mlp, 1:    h += x Wᵀ                                       → the layer is done
// Other mixers have steps of their own (stages/mixers.h), the last of them like attention's.
// Experts in place of the MLP have the same two steps, the first with the shared experts' beside
// theirs; their rows of the second step's input are sorted by expert (stages/experts.h).
//
// A step's groups are what is solved together: linears that read the same columns of the input, and
// the same rows of it, and so share a Hessian. Calibration walks the steps: sum the Hessians of x
// over all tokens, solve the groups' linears, put the quantized weights in place, advance. Every
// linear runs once per token, and the linears of later steps see the quantized ones before them
// (true sequential order).
//
// layer_tensors(), layer_steps() and advance() alone look into the variants of a LayerSpec, the
// mixer's by the functions of stages/mixers.h.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/stream.h"
#include "stages/access.h"
#include "stages/architecture.h"

namespace qpipe {

// What a tensor of a layer is for.
// vector: of float32, whatever the checkpoint has (routers' corrections).
enum class TensorRole { weight, linear_bias, norm, constant, vector };

struct TensorSpec {
  std::string name;                 // within the layer: "self_attn.q_proj.weight"
  std::vector<std::int64_t> shape;  // as stored
  TensorRole role = TensorRole::norm;
  std::size_t linear = 0;  // of a weight or its bias, as an index into layer_linears()
  bool operator==(const TensorSpec&) const = default;
};

// The rotary positions of its mixer; nullptr where it has none.
const Rope* rope_of(const LayerSpec& spec);

// The linears of a layer, in the order of Layer::linears.
std::vector<LinearSpec> layer_linears(const LayerSpec& spec);

// THE list of a layer's tensors, linears first: reading, checks, sizes and output follow from it.
// A constant's shape may be [] or [1], a vector's [n] or [1, n], or the like with more axes.
std::vector<TensorSpec> layer_tensors(const LayerSpec& spec);

// A norm of a layer and the tensors that hold it: [rows, width], in one tensor or in one a row.
struct NormTensors {
  std::string name;  // NormSpec::name
  std::int64_t rows = 1;
  std::int64_t width = 0;
  std::vector<std::string> weights;  // empty: none is stored
  std::vector<std::string> biases;
};
std::vector<NormTensors> layer_norms(const LayerSpec& spec);

// Those outside of the layers, with their full names: what makes the first layer's input, and what
// makes logits of the last layer's output. A tied head has none of its own.
std::vector<TensorSpec> embedding_tensors(const Architecture& architecture);
std::vector<TensorSpec> head_tensors(const Architecture& architecture);

// A linear on the device. `stored` is the weight as the checkpoint has it (what is quantized),
// `weight` is in the compute type, for the forward pass: the same memory where the types are the
// same. Quantization overwrites `weight` with the dequantized codes; `stored` is not to be used any
// more then.
struct Linear {
  std::string name;         // full module name: "model.layers.3.self_attn.q_proj"
  bool transposed = false;  // in the checkpoint; here it is [out, in] as all others
  ConstTensor stored;       // [out, in]; empty when the checkpoint is packed
  Tensor weight;            // [out, in]; without memory while it waits (stages/waiting_weights.h)
  ConstTensor bias;         // [1, out] or empty, compute type
  ConstTensor stored_bias;  // as the checkpoint has it
};

struct Norm {
  ConstTensor weight;  // [1, d], or [heads, d]; compute type; empty where none is stored
  ConstTensor bias;
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

// A forward pass whose experts come to the device a few at a time (stages/waiting_weights.h).
struct ExpertWaves {
  std::int64_t at_once = 0;  // 0: all weights are there
  // These linears are on the device while what it returns lives.
  std::function<std::shared_ptr<const void>(const std::vector<std::size_t>& linears)> bring;
};

struct Layer {
  std::int64_t index = 0;
  std::size_t kind = 0;                                // as an index into Architecture::kinds
  const LayerSpec* spec = nullptr;                     // of that kind
  std::vector<Linear> linears;                         // in the order of layer_linears()
  std::map<std::string, Norm> norms;                   // by NormSpec::name
  std::map<std::string, Norm> constants;               // [1, 1] each, by the tensor's name
  std::map<std::string, Matrix<const float>> vectors;  // all elements in a row, by tensor's name
  std::vector<Buffer> memory;
  std::vector<WaitingWeight> waiting;  // one for each linear; empty when all weights stay on the
                                       // device
  ExpertWaves waves;

  // The linear of that spec.
  const Linear& linear(const LinearSpec& wanted) const;
};

// Which half of a layer a step belongs to.
enum class Part { mixer, mlp, per_layer };

// A matrix [tokens · per_token, columns] of a step's input. The panels of a block lie one behind
// the other in its memory.
struct Panel {
  std::int64_t columns = 0;
  std::int64_t per_token = 1;
  bool sorted = false;  // its rows are those of Routes, sorted by expert
};

// Linears that read the same columns of a panel and the same of its rows: solved together, with one
// Hessian.
struct Group {
  std::int64_t begin = 0;  // first column of the panel
  std::int64_t width = 0;
  std::vector<std::size_t> linears;  // as indices into Layer::linears
  std::size_t panel = 0;
  std::int64_t expert = -1;  // whose tokens it reads; −1: it reads all
  bool weighted = false;     // the rows are multiplied with the routing weights
};

// What is to be known of a step without looking into its layer.
struct Step {
  Part part = Part::mixer;
  int number = 0;                 // within its part
  std::int64_t width = 0;         // of the stored input, elements a token
  std::vector<Panel> panels;      // that it consists of
  std::vector<Group> groups;      // with a shared norm the mixer's first step has the MLP's, too
  std::vector<std::size_t> runs;  // the linears that advance() runs
  Access hidden = Access::none;   // what advance() does to the residual stream,
  Access input = Access::update;  // and to the input: update where the next step's takes its place
  std::int64_t attention_width = 0;  // heads · (d + V) / 2 where it runs attention: 2 · tokens ·
                                     // seqlen · width FLOP
  std::int64_t state_width = 0;  // of products with a state that goes along a sequence, and inside
                                 // of its chunks: 2 · tokens · width FLOP

  // Columns of all panels side by side, as the maxima of an input are kept; a panel's first of
  // them.
  std::int64_t columns() const;
  std::int64_t first_column(std::size_t panel) const;
  bool is_for_experts() const;  // some group is an expert's
};

// A panel of a block's input.
template <class Void>
AnyMatrix<Void> panel_of(const Step& step, std::size_t panel, AnyMatrix<Void> input) {
  std::int64_t first = 0;
  for (std::size_t i = 0; i < panel; ++i)
    first += input.rows * step.panels.at(i).per_token * step.panels[i].columns;
  const Panel& p = step.panels.at(panel);
  return input.part(first, input.rows * p.per_token, p.columns);
}

std::vector<Step> layer_steps(const LayerSpec& spec);

// Most columns of a step's input; those of the residual stream where there is no step.
std::int64_t widest_input(const Architecture& architecture);
// Most steps that a layer has, and the most columns that step `index` has in any layer.
std::size_t most_steps(const Architecture& architecture);
std::int64_t widest_input(const Architecture& architecture, std::size_t step);
// Columns of the scratch matrix that advance() needs, per token.
std::int64_t scratch_width(const Architecture& architecture);

// Device tables that the layers of a kind share, for one sequence length.
struct KindTables {
  Array<float> inverse_frequencies;  // [1, rotated / 2]
  Array<float> key_bias;             // [heads, seqlen], ALiBi
  Array<float> query_scale;          // [1, seqlen]
  Array<std::uint32_t> selected;     // [seqlen, words]: memory for the tokens that one sequence's
                                     // indexer chooses
};
struct DecoderTables {
  std::vector<KindTables> kinds;
  const KindTables& of(const Layer& layer) const { return kinds.at(layer.kind); }
};
DecoderTables make_tables(const Architecture& architecture, std::int64_t seqlen, Stream& stream);
std::int64_t table_bytes(const Architecture& architecture, std::int64_t seqlen);

// A block of whole sequences: its residual stream and the current step's input, in the compute
// type. The bfloat16 residual stream of the CUDA backend is what bf16 inference has: the error that
// calibration sees is the error that is served.
struct Routes;
struct Block {
  Tensor hidden;             // [tokens, hidden + carried]
  Tensor input;              // [tokens, step's width]; memory for widest_input columns
  Routes* routes = nullptr;  // of a layer with experts: where its tokens go (stages/experts.h)
};

// block.input = the input of the first step.
void start_layer(const Layer& layer, Block& block, Stream& stream);

// y = the output of a half of the layer for its first step's input x, without the last linear's
// bias (experts have theirs), after-norm and residual: what AWQ compares. routes: of the block, for
// experts. between: memory for widest_input columns; scratch as advance(). Not for layers that
// share keys and values, nor for Part::per_layer.
void part_output(const Layer& layer, const DecoderTables& tables, Part part, std::int64_t seqlen,
                 ConstTensor x, const Routes* routes, Tensor between, Tensor scratch,
                 Matrix<float> y, bool add, Stream& stream);

// Runs the step's linears on block.input and leaves the next step's input there (after the last
// step: the layer's output in block.hidden). scratch: compute type, at least [tokens,
// scratch_width].
void advance(const Layer& layer, const DecoderTables& tables, const std::vector<Step>& steps,
             std::size_t step, std::int64_t seqlen, Block& block, Tensor scratch, Stream& stream);

// start_layer and all steps.
void forward_layer(const Layer& layer, const DecoderTables& tables, std::int64_t seqlen,
                   Block& block, Tensor scratch, Stream& stream);

void apply_norm(const NormSpec& spec, const Norm& norm, ConstTensor x, Tensor y, Stream& stream);

}  // namespace qpipe
