#include "pipeline/plan/module_names.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <string_view>

namespace qpipe {

namespace {

using Parts = std::vector<std::string>;

Parts split(const std::string& name) {
  Parts parts(1);
  for (const char c : name) {
    if (c == '.')
      parts.emplace_back();
    else
      parts.back() += c;
  }
  return parts;
}

bool is_number(const std::string& part) {
  return !part.empty() && part.find_first_not_of("0123456789") == std::string::npos;
}

std::string last_part(const std::string& name) { return name.substr(name.rfind('.') + 1); }

bool is_float(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16 ||
         dtype == DType::f8_e4m3 || dtype == DType::f8_e5m2;
}

// Tables that ids or positions index. Named all the same, one would do no harm.
bool is_embedding(const std::string& module) {
  const std::string last = last_part(module);
  const auto has = [&](const char* text) { return last.find(text) != std::string::npos; };
  return last == "wte" || last == "wpe" || last == "pos_emb" ||
         (has("embed") && !has("proj") && !has("patch") && !has("out"));
}

std::string escaped(const std::string& name) {
  std::string text;
  for (const char c : name) {
    if (std::string_view(R"(\^$.|?*+()[]{}/-)").find(c) != std::string_view::npos) text += '\\';
    text += c;
  }
  return text;
}

// "layers." of "model.layers.".
std::string layers_name(const std::string& layer_prefix) {
  const std::size_t dot = layer_prefix.rfind('.', layer_prefix.size() - 2);
  return dot == std::string::npos ? layer_prefix : layer_prefix.substr(dot + 1);
}

// The name without what loaders call differently: "model.", and what stands before the layers.
std::string inner_name(const std::string& name, const std::string& layer_prefix) {
  if (name.starts_with(layer_prefix))
    return layers_name(layer_prefix) + name.substr(layer_prefix.size());
  return name.starts_with("model.") ? name.substr(6) : name;
}

struct Fusion {
  const char* name;
  std::array<const char*, 3> members;  // the third may be absent
};
constexpr std::array fusions = {
    Fusion{"qkv_proj", {"q_proj", "k_proj", "v_proj"}},
    Fusion{"gate_up_proj", {"gate_proj", "up_proj", nullptr}},
    Fusion{"fused_qkv_a_proj", {"q_a_proj", "kv_a_proj_with_mqa", nullptr}},
    Fusion{"in_proj_qkvz", {"in_proj_qkv", "in_proj_z", nullptr}},
    Fusion{"in_proj_ba", {"in_proj_b", "in_proj_a", nullptr}}};

// "….mlp.experts" of "….mlp.experts.3.up_proj"; "" of others.
std::string experts_of(const std::string& module) {
  constexpr std::string_view part = ".experts.";
  const std::size_t at = module.rfind(part);
  if (at == std::string::npos || at + part.size() >= module.size()) return {};
  const char digit = module[at + part.size()];
  return digit >= '0' && digit <= '9' ? module.substr(0, at + part.size() - 1) : std::string();
}

}  // namespace

bool is_of_an_expert(const std::string& module) { return !experts_of(module).empty(); }

std::vector<std::string> float_linears(const std::vector<TensorInfo>& tensors) {
  std::set<std::string> modules;
  for (const TensorInfo& tensor : tensors) {
    if (!is_float(tensor.dtype)) continue;
    const std::size_t dot = tensor.name.rfind('.');
    if (dot == std::string::npos) continue;
    const std::string module = tensor.name.substr(0, dot);
    const std::string last = tensor.name.substr(dot + 1);
    if (tensor.shape.size() == 2 && last == "weight" && !is_embedding(module))
      modules.insert(module);
    if (tensor.shape.size() == 3 && module.ends_with(".experts") &&
        (last == "gate_up_proj" || last == "down_proj"))
      for (std::int64_t expert = 0; expert < tensor.shape.front(); ++expert)
        for (const char* linear : {"gate_proj", "up_proj", "down_proj"})
          if ((last == "down_proj") == (std::string_view(linear) == "down_proj"))
            modules.insert(fmt::format("{}.{}.{}", module, expert, linear));
  }
  return {modules.begin(), modules.end()};
}

std::vector<FusedModule> fused_modules(const std::vector<std::string>& modules) {
  const std::set<std::string> all(modules.begin(), modules.end());
  std::map<std::string, std::vector<std::string>> fused;
  for (const std::string& module : all) {
    if (const std::string experts = experts_of(module); !experts.empty()) {
      fused[experts].push_back(module);
      continue;
    }
    const std::string last = last_part(module);
    const std::string parent = module.substr(0, module.size() - last.size());
    for (const Fusion& fusion : fusions) {
      if (last != fusion.members.front()) continue;
      std::vector<std::string> members;
      for (const char* member : fusion.members)
        if (member != nullptr) members.push_back(parent + member);
      if (std::all_of(members.begin(), members.end(),
                      [&](const std::string& member) { return all.contains(member); }))
        fused[parent + fusion.name] = std::move(members);
    }
  }
  std::vector<FusedModule> result;
  for (auto& [name, members] : fused) result.push_back({name, std::move(members)});
  return result;
}

std::vector<std::string> roots_beside(const std::vector<std::string>& modules,
                                      const std::string& layer_prefix,
                                      const std::vector<std::string>& decoder_linears) {
  const Parts layers = split(layer_prefix.substr(0, layer_prefix.size() - 1));
  std::set<std::string> inside;  // parts of the decoder's names, "layers.3" among them
  for (const std::string& linear : decoder_linears) {
    const Parts parts = split(linear);
    inside.insert(parts.begin(), parts.end());
    if (parts.size() > layers.size()) inside.insert(layers.back() + "." + parts[layers.size()]);
  }
  std::set<std::string> roots;
  for (const std::string& module : modules) {
    const Parts parts = split(module);
    const auto [other, layer] =
        std::mismatch(parts.begin(), parts.end(), layers.begin(), layers.end());
    if (other == parts.end()) continue;
    const std::string root = layer == layers.end() ? layers.back() + "." + *other : *other;
    if (!inside.contains(root)) roots.insert(root);
  }
  return {roots.begin(), roots.end()};
}

std::string has_root(const std::vector<std::string>& roots) {
  std::vector<std::string> texts;
  for (const std::string& root : roots) texts.push_back(escaped(root));
  return fmt::format(R"((?:.*\.)?(?:{})(?:\..*)?$)", fmt::join(texts, "|"));
}

std::vector<std::string> patterns_of(const std::vector<std::string>& modules,
                                     const std::string& layer_prefix,
                                     const std::vector<std::string>& others) {
  std::set<std::string> taken;  // ends of the others' names
  for (const std::string& other : others)
    for (std::size_t at = 0;; ++at) {
      taken.insert(other.substr(at));
      at = other.find('.', at);
      if (at == std::string::npos) break;
    }
  struct Shared {
    std::string begin;
    std::string end;
    bool operator<(const Shared& x) const {
      return begin != x.begin ? begin < x.begin : end < x.end;
    }
  };
  std::map<Shared, std::vector<std::string>> numbers;
  for (const std::string& module : modules) {
    std::string name = inner_name(module, layer_prefix);
    std::string begin = R"((?:.*\.)?)";
    if (taken.contains(name)) {
      name = module;
      begin.clear();
    }
    const Parts parts = split(name);
    std::size_t number = parts.size();
    while (number > 0 && !is_number(parts[number - 1])) --number;
    Shared shared;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      if (i + 1 == number) {
        shared.begin = begin;
        begin.clear();
        continue;
      }
      begin += escaped(parts[i]) + (i + 1 < parts.size() ? R"(\.)" : "");
    }
    if (number == 0)
      shared.begin = begin;
    else
      shared.end = begin;
    std::vector<std::string>& list = numbers[shared];
    if (number > 0) list.push_back(parts[number - 1]);
  }
  std::vector<std::string> patterns;
  for (auto& [shared, list] : numbers) {
    std::sort(list.begin(), list.end(), [](const std::string& a, const std::string& b) {
      return a.size() != b.size() ? a.size() < b.size() : a < b;
    });
    std::string number;
    if (list.size() == 1) number = list.front();
    if (list.size() > 1) number = fmt::format("(?:{})", fmt::join(list, "|"));
    const bool at_the_end = shared.end.empty() || list.empty();
    patterns.push_back(shared.begin + number + (list.empty() || at_the_end ? "" : R"(\.)") +
                       shared.end + "$");
  }
  return patterns;
}

}  // namespace qpipe
