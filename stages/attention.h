// Softmax attention on a block of whole sequences.
#pragma once

#include "stages/layer.h"

namespace qpipe {

// y = the heads' outputs for the input x of the q, k and v projections. y may lie in x's memory.
// carried: the columns that travel with the residual stream, for layers that share keys and values;
// else not used. scratch [tokens, attention_scratch_width] of the compute type.
void attention_heads(const Attention& attention, const Layer& layer, const KindTables& tables,
                     std::int64_t seqlen, ConstTensor x, Tensor carried, Tensor y, Tensor scratch,
                     Stream& stream);

// The outputs of q, k and v, and behind them those of the gate.
std::int64_t attention_scratch_width(const Attention& attention);

KindTables make_attention_tables(const Attention& attention, std::int64_t seqlen, Stream& stream);
std::int64_t attention_table_bytes(const Attention& attention, std::int64_t seqlen);

// Several linears of one input, their outputs side by side in y.
void project(const std::vector<LinearSpec>& linears, const Layer& layer, ConstTensor x, Tensor y,
             Stream& stream);

}  // namespace qpipe
