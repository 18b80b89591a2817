// A mixture of experts on a block of whole sequences.
//
// The experts' first step reads x [tokens, hidden]; what it leaves is the input of the second, in
// two panels: the experts' activations [tokens · k, ffn], whose rows are sorted by expert (Routes),
// and those of the shared experts [tokens, their width]. The router's choice is made before the
// first step and holds for both: experts are solved with the tokens that the layer sends them.
// Where the experts have a norm of their own, the first step's input has two panels as well: what
// the experts read, and what the shared ones do.
#pragma once

#include "launch/share.h"
#include "stages/layer.h"

namespace qpipe {

// Where a block's tokens go (kernels/route.h, kernels/expert_rows.h).
struct Routes {
  Array<std::int32_t> expert;           // [tokens, k], a token's in ascending order
  Array<float> weight;                  // [tokens, k]
  Array<float> shared;                  // [tokens, 1], of the shared experts' output; empty: 1
  Array<std::int32_t> source;           // [1, tokens · k]: row → token · k + slot
  Array<std::int32_t> place;            // [tokens, k]: the row of a token's slot
  std::vector<std::int64_t> first_row;  // on the host, of each expert, and the number of rows

  RowRange rows_of(std::int64_t expert_index) const;
};
// Bytes on the device for a token.
std::int64_t route_bytes(const Experts& experts);

// The linears of a layer with experts: the router; each expert's; the shared ones'; their gate.
std::vector<LinearSpec> expert_linears(const Experts& experts);

// Both steps' panels, groups and columns of scratch. first: the index of the router in
// Layer::linears. The group without an expert comes last.
void add_expert_steps(const Experts& experts, std::int64_t hidden, std::size_t first,
                      std::vector<Step>& steps);
std::int64_t experts_scratch_width(const Experts& experts, std::int64_t hidden);

// y = the input of the experts' first step, of hidden [tokens, hidden] columns of the stream, and
// where their tokens go. norm: the layer's before its MLP.
void read_experts_input(const Experts& experts, const std::optional<NormSpec>& norm,
                        const Layer& layer, ConstTensor hidden, Tensor y, Routes& routes,
                        Stream& stream);

// y = the second step's input, both panels. It may lie in x's memory.
void expert_activations(const Experts& experts, const Layer& layer, ConstTensor x,
                        const Routes& routes, Tensor y, Tensor scratch, Stream& stream);

// y [rows, ffn] = what one expert makes of the rows x, whoever chose it.
void expert_activation(const Experts& experts, const Layer& layer, std::int64_t expert,
                       ConstTensor x, Tensor y, Tensor scratch, Stream& stream);

// z [tokens, hidden] = the experts' and the shared experts' output for the second step's input x.
// z may be the first columns' memory of scratch, [tokens, hidden].
void expert_output(const Experts& experts, const Layer& layer, ConstTensor x, const Routes& routes,
                   Tensor z, Tensor scratch, Stream& stream);

// The rows of a block's input that a group reads: a view of them, or, in front of the experts'
// first step, a copy in `memory`, which grows as it must.
ConstTensor group_rows(const Step& step, const Group& group, ConstTensor input,
                       const Routes* routes, Buffer& memory, Stream& stream);

}  // namespace qpipe
