#include "pipeline/model/unread_keys.h"

#include <algorithm>
#include <array>
#include <string_view>

namespace qpipe {

namespace {

using Json = nlohmann::json;

// Training, generation, tokens, other parts of the model, and bookkeeping.
constexpr std::array harmless{
    "architectures", "auto_map", "model_type", "is_decoder", "is_encoder_decoder", "init_device",
    "torch_dtype", "dtype", "quantization_config", "compression_config", "use_cache",
    "initializer_range", "initializer_factor", "init_std", "init_method", "pretraining_tp",
    "tokenizer_class", "vision_config", "audio_config", "text_config", "model_max_length",
    "max_window_layers", "task_specific_params", "id2label", "label2id", "num_labels",
    "problem_type", "return_dict", "attn_implementation", "use_flash_attn",
    "gradient_checkpointing", "num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers",
    "router_aux_loss_coef", "output_router_logits", "seq_length", "torchscript", "name", "language",
    "license", "transformers.js_config", "max_length", "chunk_size_feed_forward", "bad_words_ids",
    "begin_suppress_tokens", "suppress_tokens", "finetuning_task", "prefix", "sep_token_id",
    "custom_pipelines", "time_step_rank", "time_step_scale", "time_step_init_scheme",
    "mlp_expansion_factor", "mamba_ssm_dtype", "mtp_use_dedicated_embeddings", "ep_size",
    "aux_loss_alpha", "seq_aux", "output_past", "output_attentions", "output_hidden_states",
    "neftune_noise_alpha", "ignore_index", "use_bfloat16", "use_return_dict", "tie_encoder_decoder",
    // Of generation, which older versions wrote here.
    "do_sample", "early_stopping", "min_length", "num_beams", "num_beam_groups",
    "num_return_sequences", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty",
    "length_penalty", "diversity_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "remove_invalid_values", "return_dict_in_generate", "output_scores", "max_new_tokens",
    "cache_implementation"};
constexpr std::array harmless_begins{"_",      "summary_", "vision_",       "image_",     "video_",
                                     "audio_", "unsloth",  "quantization_", "classifier_"};
constexpr std::array harmless_ends{"_token_id",   "_token_index", "_token",    "_dropout",
                                   "_pdrop",      "dropout",      "_version",  "_prob",
                                   "_loss",       "_loss_coef",   "layerdrop", "_init_std",
                                   "_init_range", "_token_ids"};

bool says_nothing(const Json& value) {
  return value.is_null() || value == false || (value.is_number() && value == 0) || value == "" ||
         ((value.is_array() || value.is_object()) && value.empty());
}

bool is_harmless(std::string_view key) {
  const auto begins = [&](std::string_view begin) { return key.starts_with(begin); };
  const auto ends = [&](std::string_view end) { return key.ends_with(end); };
  return std::find(harmless.begin(), harmless.end(), key) != harmless.end() ||
         std::any_of(harmless_begins.begin(), harmless_begins.end(), begins) ||
         (!key.starts_with("num_") && !key.starts_with("norm_") &&  // experts' are mathematics
          std::any_of(harmless_ends.begin(), harmless_ends.end(), ends));
}

}  // namespace

void check_unread_keys(const ConfigJson& config) {
  for (const auto& [key, value] : config.object.items())
    if (!config.asked->contains(key) && !is_harmless(key) && !says_nothing(value))
      refuse(config, key,
             "is a key that this family's reader does not know; remove it from config.json if it "
             "does not change what the decoder computes",
             ExitCode::unavailable);
}

}  // namespace qpipe
