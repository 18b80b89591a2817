#include "pipeline/model/families/families.h"

namespace qpipe {

const std::vector<Family>& families() {
  static const std::vector<Family> table = {
      {"apertus", read_apertus},
      {"arcee", read_arcee},
      {"cohere", read_cohere},
      {"cohere2", read_cohere2},
      {"cwm", read_cwm},
      {"exaone4", read_exaone4},
      {"falcon", read_falcon},
      {"gemma", read_gemma},
      {"gemma2", read_gemma2},
      {"gemma3_text", read_gemma3},
      {"gemma4_text", read_gemma4},
      {"granite", read_granite},
      {"granitemoehybrid", read_granite_hybrid},
      {"helium", read_helium},
      {"hunyuan_v1_dense", read_hunyuan_dense},
      {"hyperclovax", read_hyperclovax},
      {"internlm3", read_internlm3},
      {"jais2", read_jais2},
      {"llama", read_llama},
      {"ministral", read_ministral},
      {"ministral3", read_ministral3},
      {"mistral", read_mistral},
      {"olmo", read_olmo},
      {"olmo2", read_olmo2},
      {"olmo3", read_olmo3},
      {"phi3", read_phi3},
      {"qwen2", read_qwen2},
      {"qwen2_5_vl", read_qwen2_5_vl},
      {"qwen2_5_vl_text", read_qwen2_5_vl},
      {"qwen2_vl", read_qwen2_vl},
      {"qwen2_vl_text", read_qwen2_vl},
      {"qwen3", read_qwen3},
      {"qwen3_vl_text", read_qwen3_vl},
      {"RefinedWeb", read_refined_web},
      {"RefinedWebModel", read_refined_web_model},
      {"seed_oss", read_seed_oss},
      {"smollm3", read_smollm3},
  };
  return table;
}

}  // namespace qpipe
