#include "pipeline/model/model.h"

#include <algorithm>

#include "pipeline/files/suggest.h"
#include "pipeline/model/config_json.h"
#include "pipeline/model/families/families.h"
#include "pipeline/model/tied_embedding.h"
#include "pipeline/model/unread_keys.h"
#include "stages/layer.h"

namespace qpipe {

namespace {

using Json = nlohmann::json;

const Family& find_family(const ConfigJson& config) {
  const std::vector<std::string> known = supported_families();
  if (find_value(config, "model_type") == nullptr)
    refuse(config, "model_type", "must name a family; supported: " + joined(known));
  const std::string name = read_text(config, "model_type");
  for (const Family& family : families())
    if (family.model_type == name) return family;
  const std::string near = nearest_name(name, known);
  throw UserError(ExitCode::unavailable,
                  config.where + ": model_type '" + name + "' is not supported" +
                      (near.empty() ? "." : "; did you mean '" + near + "'?") +
                      " Supported: " + joined(known));
}

// The text model's part of a vision-language model's config.json, with the outer
// tie_word_embeddings where it has none of its own.
Json text_part(const Json& json) {
  const auto found = json.find("text_config");
  if (found == json.end() || !found->is_object() || !found->contains("model_type")) return json;
  Json text = *found;
  if (!text.contains("tie_word_embeddings") && json.contains("tie_word_embeddings"))
    text["tie_word_embeddings"] = json.at("tie_word_embeddings");
  return text;
}

// Where config.json doesn't, or its outer and inner part disagree, what is stored decides: defaults
// of outer and inner configuration classes differ, and which part counts changed with transformers.
bool says_whether_tied(const Json& json) {
  const std::string key = "tie_word_embeddings";
  const Json text = text_part(json);
  const auto says = [&](const Json& part) { return part.contains(key) && !part.at(key).is_null(); };
  return says(text) && (!says(json) || json.at(key) == text.at(key));
}

void replace_begin(std::string& name, const std::string& begin, const std::string& by) {
  if (name.starts_with(begin)) name.replace(0, begin.size(), by);
}

void move_root(Architecture& a, const std::string& root) {
  const std::string old = a.root;
  for (std::string* name : {&a.root, &a.layer_prefix, &a.embedding.tokens, &a.embedding.positions})
    if (!name->empty() || old.empty()) replace_begin(*name, old, root);
  for (std::optional<NormSpec>* norm : {&a.embedding.norm, &a.head.norm})
    if (*norm) replace_begin((*norm)->name, old, root);
  for (std::optional<LinearSpec>* linear : {&a.embedding.projection, &a.head.projection})
    if (*linear) replace_begin((*linear)->name, old, root);
  if (a.per_layer)
    for (std::string* name :
         {&a.per_layer->tokens, &a.per_layer->projection.name, &a.per_layer->norm.name})
      replace_begin(*name, old, root);
}

// "language_model." for "language_model.model."; "" for "model.".
std::string parent_of(const std::string& root) {
  if (root.empty()) return {};
  const std::size_t dot = root.rfind('.', root.size() - 2);
  return dot == std::string::npos ? "" : root.substr(0, dot + 1);
}

// A linear in place of a mixer or an MLP: linear_attn and linear_mlp in NVIDIA's repositories,
// linear in others.
void find_single_linears(Architecture& a, const Checkpoint& checkpoint) {
  const auto find_name = [&](const std::string& prefix, std::string& name) {
    const std::string shorter = name.substr(0, name.find('.')) + ".linear";
    if (!checkpoint.names_of(prefix + shorter).empty()) name = shorter;
  };
  for (std::int64_t layer = 0; layer < a.layers; ++layer) {
    LayerSpec& kind = a.kinds[a.kind(layer)];
    if (auto* mixer = std::get_if<SingleLinear>(&kind.mixer))
      find_name(layer_prefix(a, layer), mixer->linear.name);
    if (auto* mlp = std::get_if<SingleLinear>(&kind.mlp))
      find_name(layer_prefix(a, layer), mlp->linear.name);
  }
}

// Stacks of experts lie either way, whatever the family.
void find_transposed_experts(Architecture& a, const Checkpoint& checkpoint) {
  for (std::int64_t layer = 0; layer < a.layers; ++layer) {
    auto* experts = std::get_if<Experts>(&a.kinds[a.kind(layer)].mlp);
    if (experts == nullptr) continue;
    const auto look = [&](LinearSpec& linear) {
      linear.transposed =
          checkpoint.lies_transposed(layer_prefix(a, layer) + linear.name + ".weight");
    };
    for (Mlp& expert : experts->experts) {
      for (LinearSpec& linear : expert.in) look(linear);
      look(expert.out);
    }
  }
}

}  // namespace

std::vector<std::string> supported_families() {
  std::vector<std::string> names;
  for (const Family& family : families()) names.push_back(family.model_type);
  std::sort(names.begin(), names.end());
  return names;
}

Architecture read_architecture(const Json& json, const std::string& where) {
  if (!json.is_object()) throw UserError(ExitCode::data, where + ": must be a JSON object");
  const Json text = text_part(json);
  const ConfigJson config{text, where, std::make_shared<std::set<std::string>>()};
  const Family& family = find_family(config);
  const Architecture architecture = family.read(config);
  check_unread_keys(config);
  return architecture;
}

Architecture read_architecture(const Checkpoint& checkpoint) {
  Architecture a =
      read_architecture(checkpoint.config(), (checkpoint.folder() / "config.json").string());
  if (!checkpoint.contains(a.embedding.tokens)) {
    // The same names behind another beginning, as in vision-language models, or without one.
    const std::string end = a.embedding.tokens.substr(a.root.size());
    for (const std::string& name : checkpoint.names())
      if (name.ends_with(end) &&
          (name.size() == end.size() || name[name.size() - end.size() - 1] == '.')) {
        move_root(a, name.substr(0, name.size() - end.size()));
        break;
      }
  }
  for (const std::string& before : {std::string(), parent_of(a.root), a.root})
    if (checkpoint.contains(before + a.head.name + ".weight")) {
      a.head.name = before + a.head.name;
      break;
    }
  find_single_linears(a, checkpoint);
  find_transposed_experts(a, checkpoint);
  if (!says_whether_tied(checkpoint.config()))
    a.head.tied = checkpoint.names_of(a.head.name).empty();
  if (a.head.tied && head_differs_from_embedding(a, checkpoint)) a.head.tied = false;
  return a;
}

bool is_untied(const Architecture& a, const Json& config) {
  return !a.head.tied && says_whether_tied(config) &&
         text_part(config).at("tie_word_embeddings") == true;
}

void check_sequence_length(const Architecture& a, std::int64_t seqlen) {
  for (const LayerSpec& kind : a.kinds) {
    const Rope* rope = rope_of(kind);
    if (rope != nullptr && rope->longest > 0 && seqlen > rope->longest &&
        rope->longer_frequencies.empty())
      throw UserError(ExitCode::unavailable,
                      "sequences of " + std::to_string(seqlen) +
                          " tokens: this model's dynamic rotary positions are fixed up to " +
                          std::to_string(rope->longest) +
                          " tokens only; use shorter sequences (seqlen)");
  }
  for (const LayerSpec& kind : a.kinds)
    if (const auto* latent = std::get_if<LatentAttention>(&kind.mixer);
        latent != nullptr && latent->chosen_before > 0 && seqlen > latent->chosen_before)
      throw UserError(ExitCode::unavailable,
                      "sequences of " + std::to_string(seqlen) +
                          " tokens: layers of this model attend to " +
                          std::to_string(latent->chosen_before) +
                          " tokens that another layer chose, which is not computed; use sequences "
                          "of at most so many (seqlen)");
  if (!a.embedding.positions.empty() && seqlen > a.max_positions)
    throw UserError(ExitCode::config, "sequences of " + std::to_string(seqlen) +
                                          " tokens: this model has learned " +
                                          std::to_string(a.max_positions) +
                                          " positions; use shorter sequences (seqlen)");
}

}  // namespace qpipe
