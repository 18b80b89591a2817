#include "pipeline/plan/whole_stacks.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

namespace qpipe {

namespace {

using Names = std::set<std::string>;

Names names_of(const std::vector<TensorInfo>& tensors) {
  Names names;
  for (const TensorInfo& tensor : tensors) names.insert(tensor.name);
  return names;
}

// The stack in the place of the first of its linears, in that one's type.
void put_in_place(const ExpertStack& stack, std::vector<TensorInfo>& tensors) {
  const Names linears(stack.linears.begin(), stack.linears.end());
  const auto is_one = [&](const TensorInfo& tensor) { return linears.contains(tensor.name); };
  const auto first = std::find_if(tensors.begin(), tensors.end(), is_one);
  if (first == tensors.end()) return;
  *first = {stack.stored.name, first->dtype, stack.stored.shape};
  tensors.erase(std::remove_if(first + 1, tensors.end(), is_one), tensors.end());
}

// "model.layers.0.mlp.experts.3.gate_proj" of its weight or bias.
std::string module_of(const std::string& name) { return name.substr(0, name.rfind('.')); }

}  // namespace

void keep_whole_stacks(const Checkpoint& checkpoint, QuantizePlan& plan) {
  Names kept = names_of(plan.kept);
  std::erase_if(kept, [&](const std::string& name) {  // biases beside packed weights
    const auto module = plan.modules.find(module_of(name));
    return module != plan.modules.end() && !module->second.skip;
  });
  const Names passed = names_of(plan.passed);
  for (const ExpertStack& stack : checkpoint.expert_stacks()) {
    const auto all_in = [&](const Names& names) {
      return std::all_of(stack.linears.begin(), stack.linears.end(),
                         [&](const std::string& name) { return names.contains(name); });
    };
    if (all_in(passed) || (all_in(kept) && plan.procedure != Procedure::awq)) {
      for (std::vector<TensorInfo>* tensors : {&plan.kept, &plan.passed, &plan.tensors})
        put_in_place(stack, *tensors);
      continue;
    }
    for (const std::string& name : stack.linears)
      if (kept.contains(name) && checkpoint.lies_transposed(name))
        throw UserError(
            ExitCode::config,
            fmt::format("quantize.overrides skips '{}', which is a part of '{}', [experts, in, "
                        "out]: {}",
                        module_of(name), stack.stored.name,
                        plan.procedure == Procedure::awq
                            ? "awq may have to change it; use another method, or quantize it"
                            : "skip all linears of that tensor, or none"));
  }
}

}  // namespace qpipe
