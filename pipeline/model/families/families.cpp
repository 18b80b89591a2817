#include "pipeline/model/families/families.h"

namespace qpipe {

const std::vector<Family>& families() {
  static const std::vector<Family> table = {
      {"falcon", read_falcon},
      {"llama", read_llama},
      {"mistral", read_mistral},
      {"qwen2", read_qwen2},
      {"qwen3", read_qwen3},
      {"baichuan", read_baichuan},
      {"bloom", read_bloom},
      {"codegen", read_codegen},
      {"deci", read_deci},
      {"ernie4_5", read_ernie4_5},
      {"exaone", read_exaone},
      {"glm", read_glm},
      {"glm4", read_glm4},
      {"gpt2", read_gpt2},
      {"gpt_bigcode", read_gpt_bigcode},
      {"gpt_neo", read_gpt_neo},
      {"gpt_neox", read_gpt_neox},
      {"gptj", read_gptj},
      {"internlm2", read_internlm2},
      {"mpt", read_mpt},
      {"nemotron", read_nemotron},
      {"nemotron-nas", read_nemotron_nas},
      {"olmo", read_olmo},
      {"opt", read_opt},
      {"persimmon", read_persimmon},
      {"phi", read_phi},
      {"stablelm", read_stablelm},
      {"starcoder2", read_starcoder2},
      {"RefinedWeb", read_refined_web},
      {"RefinedWebModel", read_refined_web_model},
  };
  return table;
}

}  // namespace qpipe
