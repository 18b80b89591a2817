// The families: model_type → the function that reads config.json into an Architecture. A new one is
// a page in this folder and a line in families.cpp.
#pragma once

#include <string>
#include <vector>

#include "pipeline/model/config_json.h"
#include "stages/architecture.h"

namespace qpipe {

// Each throws UserError for a missing key, a contradiction, or a form that is not computed.
Architecture read_afmoe(const ConfigJson& config);
Architecture read_apertus(const ConfigJson& config);
Architecture read_arcee(const ConfigJson& config);
Architecture read_baichuan(const ConfigJson& config);
Architecture read_bailing_moe(const ConfigJson& config);
Architecture read_bamba(const ConfigJson& config);
Architecture read_bloom(const ConfigJson& config);
Architecture read_codegen(const ConfigJson& config);
Architecture read_cohere(const ConfigJson& config);
Architecture read_cohere2(const ConfigJson& config);
Architecture read_cwm(const ConfigJson& config);
Architecture read_deci(const ConfigJson& config);
Architecture read_deepseek_v2(const ConfigJson& config);
Architecture read_deepseek_v3(const ConfigJson& config);
Architecture read_deepseek_v32(const ConfigJson& config);
Architecture read_dots1(const ConfigJson& config);
Architecture read_ernie4_5(const ConfigJson& config);
Architecture read_ernie4_5_moe(const ConfigJson& config);
Architecture read_exaone(const ConfigJson& config);
Architecture read_exaone4(const ConfigJson& config);
Architecture read_exaone_moe(const ConfigJson& config);
Architecture read_falcon(const ConfigJson& config);
Architecture read_falcon_h1(const ConfigJson& config);
Architecture read_gemma(const ConfigJson& config);
Architecture read_gemma2(const ConfigJson& config);
Architecture read_gemma3(const ConfigJson& config);
Architecture read_gemma4(const ConfigJson& config);
Architecture read_glm(const ConfigJson& config);
Architecture read_glm4(const ConfigJson& config);
Architecture read_glm4_moe(const ConfigJson& config);
Architecture read_glm4_moe_lite(const ConfigJson& config);
Architecture read_glm_moe_dsa(const ConfigJson& config);
Architecture read_gpt2(const ConfigJson& config);
Architecture read_gpt_bigcode(const ConfigJson& config);
Architecture read_gpt_neo(const ConfigJson& config);
Architecture read_gpt_neox(const ConfigJson& config);
Architecture read_gpt_oss(const ConfigJson& config);
Architecture read_gptj(const ConfigJson& config);
Architecture read_granite(const ConfigJson& config);
Architecture read_granite_hybrid(const ConfigJson& config);
Architecture read_granitemoe(const ConfigJson& config);
Architecture read_helium(const ConfigJson& config);
Architecture read_hunyuan_dense(const ConfigJson& config);
Architecture read_hunyuan_moe(const ConfigJson& config);
Architecture read_hyperclovax(const ConfigJson& config);
Architecture read_internlm2(const ConfigJson& config);
Architecture read_internlm3(const ConfigJson& config);
Architecture read_jais2(const ConfigJson& config);
Architecture read_jamba(const ConfigJson& config);
Architecture read_kimi_linear(const ConfigJson& config);
Architecture read_lfm2(const ConfigJson& config);
Architecture read_lfm2_moe(const ConfigJson& config);
Architecture read_llama(const ConfigJson& config);
Architecture read_llama4(const ConfigJson& config);
Architecture read_mamba2(const ConfigJson& config);
Architecture read_mimo_v2_flash(const ConfigJson& config);
Architecture read_minimax_m2(const ConfigJson& config);
Architecture read_minicpm3(const ConfigJson& config);
Architecture read_ministral(const ConfigJson& config);
Architecture read_ministral3(const ConfigJson& config);
Architecture read_mistral(const ConfigJson& config);
Architecture read_mistral4(const ConfigJson& config);
Architecture read_mixtral(const ConfigJson& config);
Architecture read_mpt(const ConfigJson& config);
Architecture read_nemotron(const ConfigJson& config);
Architecture read_nemotron_h(const ConfigJson& config);
Architecture read_nemotron_nas(const ConfigJson& config);
Architecture read_olmo(const ConfigJson& config);
Architecture read_olmo2(const ConfigJson& config);
Architecture read_olmo3(const ConfigJson& config);
Architecture read_olmoe(const ConfigJson& config);
Architecture read_opt(const ConfigJson& config);
Architecture read_persimmon(const ConfigJson& config);
Architecture read_phi(const ConfigJson& config);
Architecture read_phi3(const ConfigJson& config);
Architecture read_phimoe(const ConfigJson& config);
Architecture read_qwen2(const ConfigJson& config);
Architecture read_qwen2_5_vl(const ConfigJson& config);
Architecture read_qwen2_moe(const ConfigJson& config);
Architecture read_qwen2_vl(const ConfigJson& config);
Architecture read_qwen3(const ConfigJson& config);
Architecture read_qwen3_5(const ConfigJson& config);
Architecture read_qwen3_5_moe(const ConfigJson& config);
Architecture read_qwen3_moe(const ConfigJson& config);
Architecture read_qwen3_next(const ConfigJson& config);
Architecture read_qwen3_vl(const ConfigJson& config);
Architecture read_qwen3_vl_moe(const ConfigJson& config);
Architecture read_refined_web(const ConfigJson& config);
Architecture read_refined_web_model(const ConfigJson& config);
Architecture read_seed_oss(const ConfigJson& config);
Architecture read_smollm3(const ConfigJson& config);
Architecture read_solar_open(const ConfigJson& config);
Architecture read_stablelm(const ConfigJson& config);
Architecture read_starcoder2(const ConfigJson& config);
Architecture read_step3p5(const ConfigJson& config);
Architecture read_youtu(const ConfigJson& config);

struct Family {
  std::string model_type;  // of the text model where config.json has a text_config
  Architecture (*read)(const ConfigJson& config);
};

const std::vector<Family>& families();

}  // namespace qpipe
