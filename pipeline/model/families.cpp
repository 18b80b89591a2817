#include "pipeline/model/families.h"

namespace qpipe {

namespace {

Family llama() {
  Family f;
  f.model_type = f.reads_as = "llama";
  f.qkv_bias = f.attention_out_bias = {"attention_bias"};
  f.mlp_bias = {"mlp_bias"};
  return f;
}

Family mistral() {
  Family f;
  f.model_type = f.reads_as = "mistral";
  f.kv_heads = {{"num_key_value_heads"}, Otherwise::value, Otherwise::heads, 8};
  f.max_positions.value = 131072;
  f.windows = Windows::every_layer;
  return f;
}

Family qwen2() {
  Family f;
  f.model_type = f.reads_as = "qwen2";
  f.options = {{"use_mrope", {false}}};
  f.kv_heads = {{"num_key_value_heads"}, Otherwise::value, Otherwise::heads, 32};
  f.max_positions.value = 32768;
  f.qkv_bias = {"", true};
  f.windows = Windows::by_layer_type;
  return f;
}

Family qwen3() {
  Family f = qwen2();
  f.model_type = f.reads_as = "qwen3";
  f.head_dim = {{"head_dim"}, Otherwise::value, Otherwise::fault, 128};
  f.qkv_bias = f.attention_out_bias = {"attention_bias"};
  f.names.q_norm = "self_attn.q_norm";
  f.names.k_norm = "self_attn.k_norm";
  return f;
}

// Three decoders under one name: Falcon-7B (one k and v head, attention and MLP side by side on one
// norm), Falcon-40B and -11B (grouped heads, two norms or one), Falcon-RW (sequential, ALiBi,
// biases).
Family falcon() {
  Family f;
  f.model_type = f.reads_as = "falcon";
  f.hidden.names = {"n_embed", "hidden_size"};
  f.layers.names = {"num_hidden_layers", "n_layer"};
  f.heads.names = {"num_attention_heads", "n_head"};
  f.kv_heads.names = {"num_kv_heads", "n_head_kv"};
  f.head_dim = {{}, Otherwise::hidden_over_heads};
  f.ffn = {{"ffn_hidden_size"}, Otherwise::four_hidden, Otherwise::four_hidden};
  f.norm = NormKind::layer;
  f.norm_eps = {"layer_norm_epsilon", 1e-5};
  f.qkv_layout = QkvLayout::by_group;
  f.qkv_bias = f.attention_out_bias = f.mlp_bias = {"bias"};
  f.alibi = {"alibi"};
  f.alibi_in_bf16 = true;
  f.gated_mlp = false;
  f.activation = {"activation", "gelu"};
  f.tied_embeddings.otherwise = true;
  f.qkv = {"self_attention.query_key_value"};
  f.attention_out = "self_attention.dense";
  f.mlp_in = {"mlp.dense_h_to_4h"};
  f.mlp_out = "mlp.dense_4h_to_h";
  f.layer_prefix = "transformer.h.";
  f.embedding = "transformer.word_embeddings.weight";
  f.final_norm = "transformer.ln_f";

  f.options = {{"new_decoder_architecture", {false, true}},
               {"multi_query", {true, false}},
               {"parallel_attn", {true, false}},
               {"num_ln_in_parallel_attn", {nullptr, 1, 2}},
               {"apply_residual_connection_post_layernorm", {false}}};
  f.variants = {
      {{{"new_decoder_architecture", false}, {"multi_query", true}},
       [](Family& v) {
         v.qkv_layout = QkvLayout::side_by_side;
         v.kv_heads = {{}, Otherwise::value, Otherwise::fault, 1};
       },
       ""},
      {{{"new_decoder_architecture", false}, {"parallel_attn", true}},
       [](Family& v) {
         v.residual = Residual::parallel;
         v.shared_norm = true;
         v.names = {"input_layernorm", "", "", ""};
       },
       ""},
      {{{"new_decoder_architecture", true}},
       [](Family& v) {
         v.residual = Residual::parallel;
         v.names = {"ln_attn", "ln_mlp", "", ""};
       },
       ""},
      {{{"new_decoder_architecture", true}, {"num_ln_in_parallel_attn", 1}},
       [](Family& v) {
         v.shared_norm = true;
         v.names = {"input_layernorm", "", "", ""};
       },
       ""},
      {{{"new_decoder_architecture", true}, {"parallel_attn", false}},
       nullptr,
       "the new decoder architecture is always parallel"},
      {{{"new_decoder_architecture", false},
        {"parallel_attn", true},
        {"num_ln_in_parallel_attn", 2}},
       nullptr,
       "two norms need the new decoder architecture"},
  };
  return f;
}

// The names that Falcon's models had before transformers took them in. The first configuration
// classes disagree on defaults of multi_query and parallel_attn, so those must be stated.
Family refined_web() {
  Family f = falcon();
  f.model_type = "RefinedWeb";
  f.options[0].values = {true, false};
  return f;
}

Family refined_web_model() {
  Family f = falcon();
  f.model_type = "RefinedWebModel";
  f.options[1].assumed = f.options[2].assumed = false;
  return f;
}

}  // namespace

const std::vector<Family>& families() {
  static const std::vector<Family> table = {
      llama(), mistral(), qwen2(), qwen3(), falcon(), refined_web(), refined_web_model()};
  return table;
}

}  // namespace qpipe
