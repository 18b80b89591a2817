#include "pipeline/model/families/families.h"

namespace qpipe {

const std::vector<Family>& families() {
  static const std::vector<Family> table = {
      {"falcon", read_falcon},
      {"llama", read_llama},
      {"mistral", read_mistral},
      {"qwen2", read_qwen2},
      {"qwen3", read_qwen3},
      {"RefinedWeb", read_refined_web},
      {"RefinedWebModel", read_refined_web_model},
  };
  return table;
}

}  // namespace qpipe
