#include "pipeline/plan/family_loaders.h"

#include <algorithm>
#include <string_view>

namespace qpipe {

namespace {

using Names = std::vector<std::string_view>;

constexpr auto scaled_activation =
    "gives NaN: it puts a scale of AutoAWQ's behind the activation, which is not stored";

struct Row {
  Names families;
  std::vector<Format> formats;
  const char* program;
  const char* why;
  bool dequantized = false;
};

const std::vector<Row>& table() {
  static const std::vector<Format> integers{Format::gptq, Format::gptq_v2};
  static const std::vector<Format> all_integers{Format::gptq, Format::gptq_v2, Format::awq};
  static const std::vector<Row> rows = {
      {{"falcon"}, integers, "transformers", "leaves Falcon's linears out and computes nonsense"},
      {{"falcon"},
       {Format::bitsandbytes},
       "transformers",
       "leaves Falcon's linears out, and finds other shapes"},
      {{"falcon", "gpt_bigcode"},
       {Format::compressed_tensors},
       "transformers",
       "reads weights that are packed",
       true},
      {{"gpt2", "gpt_bigcode"},
       integers,
       "transformers",
       "initializes weights that are packed, and stops"},
      {{"gpt2"},
       {Format::awq, Format::compressed_tensors},
       "transformers",
       "looks for linears alone, and GPT-2's are Conv1D there"},
      {{"gpt_bigcode"}, {Format::awq}, "transformers", "reads weights that are packed"},
      {{"mpt"}, integers, "transformers", "does not find MPT's layers"},
      {{"bloom", "falcon", "gpt_neox", "gptj", "mpt", "starcoder2"},
       {Format::awq},
       "transformers",
       scaled_activation},
      {{"gpt_neox"}, all_integers, "GPTQModel", "gives NaN"},
      {{"exaone"}, all_integers, "GPTQModel", "takes it for Llama"},
      {{"granitemoehybrid"}, all_integers, "GPTQModel", "stops with an error"},
      {{"mamba2"},
       {Format::gptq, Format::gptq_v2, Format::awq, Format::compressed_tensors},
       "transformers",
       "initializes weights that are packed, and stops"},
      {{"jamba", "lfm2_moe"},
       {Format::compressed_tensors},
       "transformers",
       "finds no weights for the experts' gate and up, packed or not, and stops"},
      {{"glm", "glm4", "phi3"},
       all_integers,
       "GPTQModel",
       "splits gate_up_proj, which is stored whole"},
      {{"mixtral", "phimoe"}, all_integers, "GPTQModel", "looks for experts under other names"},
      {{"afmoe", "exaone_moe", "granitemoe", "mimo_v2_flash", "minimax_m2"},
       all_integers,
       "GPTQModel",
       "leaves packed experts out without a word"},
      {{"glm4_moe", "glm4_moe_lite", "kimi_linear", "llama4_text"},
       all_integers,
       "GPTQModel",
       "stops with an error"},
      {{"ernie4_5_moe", "gpt_oss"}, all_integers, "GPTQModel", "computes other logits"},
      {{"arcee", "nemotron", "olmo"}, {Format::awq}, "GPTQModel", "does not know the family"},
      {{"bailing_moe", "bailing_moe_v2", "baichuan", "deci", "internlm2", "nemotron-nas"},
       {Format::gptq, Format::gptq_v2, Format::awq, Format::compressed_tensors,
        Format::bitsandbytes, Format::fp8},
       "transformers",
       "does not have the family; with the repository's own code it was not tried"},
      {{"bailing_moe", "bailing_moe_v2", "baichuan", "deci", "internlm2", "nemotron-nas"},
       all_integers,
       "GPTQModel",
       "needs the repository's own code, with which it was not tried"}};
  return rows;
}

template <class Values, class Value>
bool contains(const Values& values, const Value& value) {
  return std::find(values.begin(), values.end(), value) != values.end();
}

}  // namespace

std::vector<FamilyFault> family_faults(Format format, const nlohmann::json& config,
                                       bool packs_experts) {
  const std::string family = config.value("model_type", "");
  std::vector<FamilyFault> faults;
  const bool by_linears = format == Format::compressed_tensors || format == Format::bitsandbytes;
  if (packs_experts && by_linears)
    faults.push_back(
        {"transformers",
         "holds experts as stacks, and leaves packed ones out without a word: quantize.overrides "
         "with match = \"experts\" and skip = true keeps them as they are, and methods gptq and "
         "awq "
         "pack them for GPTQModel"});
  for (const Row& row : table())
    if (contains(row.families, family) && contains(row.formats, format))
      faults.push_back({row.program, row.why, row.dequantized});
  const auto pattern = config.find("hybrid_override_pattern");
  const bool routes = pattern != config.end() && pattern->is_string() &&
                      pattern->get<std::string>().find('E') != std::string::npos;
  if (family == "nemotron_h" && format == Format::compressed_tensors && routes && !packs_experts)
    faults.push_back({"transformers", "leaves experts out without a word, packed or not"});
  const bool integers =
      format == Format::gptq || format == Format::gptq_v2 || format == Format::awq;
  const bool with_a_tower = config.contains("vision_config");
  if (with_a_tower && integers)
    faults.push_back({"GPTQModel", "looks for other names in vision-language models"});
  return faults;
}

}  // namespace qpipe
