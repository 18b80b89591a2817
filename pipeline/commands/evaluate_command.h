// qpipe eval: perplexity of an original or a quantized folder.
#pragma once

#include <cstdint>
#include <string>

namespace qpipe {

struct EvalRequest {
  std::string model;
  std::string data;
  std::string dataset = "input_ids";
  std::string text_field = "text";
  std::string backend = "auto";  // auto | cpu | cuda
  std::string logits;            // .safetensors file to write the logits to; "": none
  std::int64_t samples = 0;      // 0: all windows in order
  std::int64_t seqlen = 2048;    // tokens
};

// Collective over all ranks of MPI_COMM_WORLD. Rank 0 prints the perplexity on stdout. Returns the
// exit code; throws as quantize().
int run_eval(const EvalRequest& request);

}  // namespace qpipe
