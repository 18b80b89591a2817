// The tensors of a checkpoint that the decoder doesn't read: vision tower, projector, MTP layers,
// buffers, whatever else is stored. They go from the source to the output byte for byte.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "pipeline/model/checkpoint.h"
#include "stages/architecture.h"

namespace qpipe {

// Names of the tensors that the decoder reads from an unquantized checkpoint, and its head's also
// where it is tied: the head is the embedding then, whether it is stored or not.
std::set<std::string> decoder_tensors(const Architecture& architecture);

// A constant that older transformers stored with the weights; every reader recomputes it.
bool is_recomputed(const TensorInfo& tensor);

// "model.layers.3.mlp.up_proj" for any tensor of that linear of the decoder, packed parts included
// ("….qweight", "….weight.absmax"); "" for other tensors. decoder: as decoder_tensors.
std::string linear_of(const std::string& name, const std::set<std::string>& decoder);

// The tensors that the decoder neither reads nor recomputes, in the checkpoint's order. In a
// checkpoint with a quantization_config the parts of the decoder's packed linears are no such
// tensors.
std::vector<std::string> passed_through(const std::set<std::string>& decoder,
                                        const Checkpoint& checkpoint);
std::vector<std::string> passed_through(const Architecture& architecture,
                                        const Checkpoint& checkpoint);

}  // namespace qpipe
