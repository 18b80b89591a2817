// What a run will do, decided before any GPU work: the settings of every module and the tensors of
// the output.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "pipeline/model/checkpoint.h"
#include "pipeline/options/options.h"
#include "stages/architecture.h"
#include "stages/formats/format.h"
#include "stages/places.h"

namespace qpipe {

// Elements of a tensor that are copied to the output at once, or its bytes where it passes through.
inline constexpr std::int64_t copied_elements = std::int64_t{1} << 22;
inline constexpr std::int64_t copied_bytes = std::int64_t{1} << 24;

// How codes come about. Whoever switches on it has no default, so that a new one is an error of
// the compiler wherever it is forgotten.
enum class Procedure {
  cast,        // they follow from the weights alone, tensor by tensor
  round,       // to nearest, on grids that are searched
  sequential,  // GPTQ; each step's input comes from the quantized steps before it
  at_once,     // GPTQ; all inputs of a layer come from its original weights
  awq,         // scaled first; modules' settings say how the scaled weights are rounded
};

// Whether the procedure needs calibration data.
bool calibrates(Procedure procedure);

struct QuantizePlan {
  Procedure procedure = Procedure::round;
  LinearSettings defaults;
  // Full module name → settings (skip included), for every linear of every decoder layer.
  std::map<std::string, LinearSettings> modules;
  // Modules of a cast that the source has packed in this way already: their tensors are the
  // source's.
  std::set<std::string> packed_in_source;
  StorageSettings storage;
  std::vector<TensorInfo> tensors;  // of the output, in order: embedding, layers, final norm, head,
                                    // and what passes through
  std::vector<TensorInfo>
      kept;  // those of them that are copied from the source, in the output's type
  std::vector<TensorInfo> passed;  // the last of them: copied byte for byte, as the decoder doesn't
                                   // read them (pipeline/model/passed_through.h)
  // Modules of kept and passed tensors that a loader could take for linears to quantize, but for
  // the skipped ones among `modules` and the head: towers, projectors, MTP layers, routers.
  std::vector<std::string> unquantized;
  std::string layer_prefix;  // of the names of the layers' tensors
  std::string lm_head;       // the head's module
  bool untied = false;       // it is stored beside another embedding, and config.json denies it
  std::vector<std::string> notes;  // for the user
  bool may_need_v2 =
      false;  // gptq was asked for an asymmetric grid: gptq_v2 if a zero of 0 turns up
  bool quantized_propagation = true;
  bool original_target = false;  // GPTQ aims at the original model's outputs
  std::int64_t hessian_tokens =
      0;  // that Hessians are of, evenly spaced; 0: all. Some where they only measure errors
  std::int64_t expert_tokens = 0;  // that an expert's Hessians are of at least
  std::int64_t search_rows = 0;    // of each linear, that AWQ's Gram losses are of; 0: all
  std::int64_t max_shard_bytes = 0;
  Places places;
  double bits_per_weight = 0.0;  // of the quantized linears, with scales, zeros and indices

  bool casts() const { return procedure == Procedure::cast; }
  bool calibrates() const { return qpipe::calibrates(procedure); }
  std::vector<std::string> skipped() const;  // the modules that stay as a user wants
  bool packs_experts() const;                // some expert's linear is quantized
};

// Throws UserError(ExitCode::config) when a group size does not divide a module's inputs (names the
// sizes that do), when sizes cannot be packed, when an override matches nothing, and as
// choose_format does.
QuantizePlan plan_quantization(const Options& options, const Architecture& architecture,
                               const Checkpoint& checkpoint);

}  // namespace qpipe
