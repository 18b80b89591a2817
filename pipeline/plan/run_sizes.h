// The sizes that the memory, the traffic and the time of a run follow from: numbers only, no
// weights, no GPU.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "pipeline/model/checkpoint.h"
#include "pipeline/options/options.h"
#include "pipeline/plan/plan.h"
#include "stages/activations.h"
#include "stages/awq_pairs.h"

namespace qpipe {

struct LinearSizes {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t stored_bytes = 0;  // as the checkpoint has the weight
  std::int64_t copy_bytes = 0;    // of its copy in the compute type, where that is another
  std::int64_t packed_bytes = 0;  // as the output has it
  bool quantized = false;
  bool gptq = false;  // by GPTQ; rounded to nearest otherwise
  bool static_groups = false;
  std::int64_t group_columns = 0;

  std::int64_t elements() const { return rows * columns; }
  std::int64_t groups() const { return group_columns > 0 ? columns / group_columns : 0; }
  bool operator==(const LinearSizes&) const = default;
};

// The groups of a step that are alike: one, or all experts.
struct StepSizes {
  Part part = Part::mixer;
  std::string name;                  // "down_proj": the first linear's
  std::size_t step = 0;              // of the layer
  std::int64_t width = 0;            // of the step's whole input, elements a token
  std::int64_t groups = 1;           // that are so
  double share = 1.0;                // of the tokens that each reads, on average
  bool gathers = false;              // its rows are not side by side
  bool weighted = false;             // nor are they read as they are
  bool to_original = false;          // GPTQ aims at the original model's output of it
  std::int64_t columns = 0;          // that a group reads
  std::vector<LinearSizes> linears;  // those of a group
  std::int64_t factors = 0;          // Cholesky factors: one for each order of the columns
  std::optional<Inspected> search;   // AWQ: what the search of the step's pair compares
  Access hidden = Access::none;      // what its forward pass does to the residual stream
  Access input = Access::update;     // and to its input
  std::int64_t attention_width = 0;  // heads · head_dim where it runs attention
  std::int64_t state_width = 0;      // of products with a recurrent state, elements a token

  bool solves() const;     // some linear is quantized
  double passes() const {  // of all groups' linears, as if each token met one
    return static_cast<double>(groups) * share;
  }
  bool operator==(const StepSizes&) const = default;
};

struct LayerSizes {
  std::int64_t count = 0;             // layers of these sizes
  std::int64_t small_bytes = 0;       // norms and biases in the checkpoint's type
  std::int64_t small_copy_bytes = 0;  // their copies in the compute type, where that is another
  std::vector<StepSizes> steps;
  std::int64_t attention_width() const;       // of its steps
  std::int64_t state_width() const;           // likewise
  bool begins_step(std::size_t index) const;  // whether steps[index] is the first of its step

  std::int64_t stored_bytes() const;
  std::int64_t copy_bytes() const;  // copies of the linears
  std::int64_t packed_bytes() const;
};

struct RunSizes {
  Backend backend = Backend::cuda;
  std::int64_t compute_element = 2;  // bytes: bfloat16 on CUDA, float32 on the CPU
  std::int64_t hidden = 0;           // columns that a layer reads
  std::int64_t stream_width = 0;     // of the residual stream, with what it carries
  std::int64_t vocab = 0;
  std::int64_t widest_input = 0;
  std::vector<std::int64_t> input_widths;  // of all steps, also one without linears of its own
  std::int64_t scratch_width = 0;
  std::int64_t route_bytes = 0;         // a token, where layers have experts
  std::int64_t routed_experts = 0;      // of the layer that has most
  std::int64_t table_bytes = 0;         // rotary frequencies or ALiBi
  std::int64_t embedding_bytes = 0;     // tables as the checkpoint has them, and what follows them
  std::int64_t embedding_columns = 0;   // of a token on its way into the residual stream
  std::int64_t head_bytes = 0;          // the embedding's when tied
  std::int64_t head_compute_bytes = 0;  // of a copy; 0 when the type is the compute type
  std::vector<std::int64_t>
      kept_host_bytes;  // of each tensor outside of the layers: to read and to convert it
  std::int64_t passed_host_bytes = 0;  // to copy the tensors that pass through, one at a time
  std::int64_t layers = 0;
  std::vector<LayerSizes> layer_kinds;  // layers of equal sizes together
  std::int64_t output_bytes = 0;
  std::int64_t kept_back_bytes = 0;  // zeros that may have to be rewritten at the end

  Procedure procedure = Procedure::round;
  bool casts_steps = false;  // a step's linears together
  bool quantized_propagation = false;
  bool original_target = false;  // the original model's activations are kept beside
  bool exact_search = false;
  std::int64_t grid = 0;
  std::int64_t search_tokens = 0;   // of the exact search; 0: all, as below
  std::int64_t search_rows = 0;     // of each linear, in the Gram search
  std::int64_t hessian_tokens = 0;  // that Hessians are of
  int most_solvers = 1;             // of experts' groups at a time, where memory has room for them

  std::int64_t samples = 0;
  std::int64_t seqlen = 0;
  std::int64_t micro_batch = 0;
  std::int64_t expert_tokens = 0;
  std::int64_t evaluate_samples = 0;  // 0: none, or as many as the file has
  std::int64_t evaluate_seqlen = 0;

  bool casts() const { return procedure == Procedure::cast; }
  bool calibrates() const { return qpipe::calibrates(procedure); }
  bool awq() const { return procedure == Procedure::awq; }
  // All of a layer's Hessians are there before the first linear is solved.
  bool at_once() const;
  // With the quantized weights, from a copy of the layer's input.
  bool runs_again() const { return at_once() && quantized_propagation; }
  Blocking blocking() const { return cut_samples(samples, seqlen, micro_batch); }
};

RunSizes run_sizes(const Options& options, const Architecture& architecture,
                   const Checkpoint& checkpoint, const QuantizePlan& plan, Backend backend);

}  // namespace qpipe
