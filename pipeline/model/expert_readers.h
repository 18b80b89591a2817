// Parts of config.json that families with experts have in common, beside readers.h.
#pragma once

#include <string>
#include <vector>

#include "pipeline/model/readers.h"

namespace qpipe {

struct ExpertSizes {
  std::int64_t hidden = 0;
  std::int64_t experts = 0;
  std::int64_t ffn = 0;         // of each
  std::int64_t shared_ffn = 0;  // of all shared experts together; 0: none
};

struct ExpertNames {
  std::string router = "mlp.gate";
  std::string experts = "mlp.experts";  // EXPERTS.E.GATE
  MlpNames each = {"gate_proj", "up_proj", "down_proj"};
  std::string shared = "mlp.shared_experts";  // SHARED.gate_proj
};

// Names of the counts and widths; where several are there, they must say the same.
struct ExpertKeys {
  std::vector<std::string> experts{"num_experts", "num_local_experts", "n_routed_experts"};
  std::vector<std::string> ffn{"moe_intermediate_size"};
  std::vector<std::string> shared{"n_shared_experts", "num_shared_experts"};  // how many
  std::int64_t absent_experts = 0;                                            // 0: must be there
  std::int64_t absent_ffn = 0;                                                // 0: must be there
  std::int64_t absent_shared = 0;
};
ExpertSizes read_expert_sizes(const ConfigJson& config, const Sizes& sizes,
                              const ExpertKeys& keys = {});

// Experts with gated MLPs, their router and a shared one, none with biases. The router's options
// are the family's to set.
Experts gated_experts(const ExpertSizes& sizes, Activation activation,
                      const ExpertNames& names = {});

// top_k from `key`; of `experts`. Throws UserError where it is more than there are.
std::int64_t read_top_k(const ConfigJson& config, std::int64_t experts,
                        const std::string& key = "num_experts_per_tok", std::int64_t absent = 0);

// softmax over all experts, weights of the chosen ones normalized or not (Mixtral, Qwen).
void set_softmax_router(std::int64_t top_k, bool normalized, Experts& experts);

// n_group and topk_group, of which the router's other options are set.
void read_expert_groups(const ConfigJson& config, std::int64_t experts, std::int64_t absent_groups,
                        std::int64_t absent_top_groups, RouteOptions& options,
                        const std::string& groups_key = "n_group");

// DeepSeek-V3's router: sigmoid, a correction for the choice, groups (n_group, topk_group), weights
// normalized (norm_topk_prob) and scaled (routed_scaling_factor).
struct SigmoidRouter {
  std::string correction = "mlp.gate.e_score_correction_bias";  // empty: none
  std::string normalize = "norm_topk_prob";                     // keys
  std::string scaling = "routed_scaling_factor";
  std::string groups = "n_group";
  std::int64_t absent_groups = 1;
  std::int64_t absent_top_groups = 1;
  double absent_scaling = 1.0;
  bool normalized_when_absent = true;
};
void set_sigmoid_router(const ConfigJson& config, std::int64_t top_k, const SigmoidRouter& form,
                        Experts& experts);

// Gated experts behind such a router, by the keys num_experts_per_tok and hidden_act.
Experts sigmoid_experts(const ConfigJson& config, const ExpertSizes& sizes,
                        std::int64_t absent_top_k, const SigmoidRouter& form = {},
                        const ExpertNames& names = {});

// The experts take the MLP's place in the layers that route.
void set_experts(Architecture& architecture, const Experts& experts,
                 const std::function<bool(std::int64_t layer)>& routes);
void set_experts(Architecture& architecture, const Experts& experts,
                 const std::vector<bool>& routes);
void set_experts(Architecture& architecture, const Experts& experts);  // in all layers
void set_experts(Architecture& architecture,
                 const std::function<Experts(std::int64_t layer)>& experts);

// mlp_only_layers and decoder_sparse_step (Qwen): which layers route.
std::vector<bool> sparse_layers(const ConfigJson& config, std::int64_t layers);
// mlp_layer_types ("dense" or "sparse"), or else those from `key` on.
std::vector<bool> layers_behind_dense(const ConfigJson& config, std::int64_t layers,
                                      std::int64_t absent_dense,
                                      const std::string& key = "first_k_dense_replace");
// These experts in the layers behind dense ones; messages name the keys that say so.
void set_experts_behind_dense(const ConfigJson& config, const Experts& experts,
                              std::int64_t absent_dense, Architecture& architecture);
// An array of layers' numbers; empty where there is none.
std::vector<std::int64_t> read_layer_numbers(const ConfigJson& config, const std::string& key,
                                             std::int64_t layers);

}  // namespace qpipe
