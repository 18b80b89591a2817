#include <algorithm>
#include <array>
#include <set>

#include "pipeline/error.h"
#include "pipeline/layer_source.h"
#include "pipeline/model.h"
#include "pipeline/suggest.h"

namespace qpipe {

namespace {

// Constants that older transformers versions stored with the weights; every reader recomputes them.
constexpr std::array stored_constants = {".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached", ".masked_bias",
                                         ".attn.bias",           ".attention.bias"};

using Shape = std::vector<std::int64_t>;

std::string text_of(const Shape& shape) {
  std::string text;
  for (const std::int64_t n : shape) text += (text.empty() ? "" : ", ") + std::to_string(n);
  return "[" + text + "]";
}

struct Check {
  const Checkpoint& checkpoint;
  std::set<std::string> known;

  [[noreturn]] void fail(const std::string& message) const {
    throw UserError(ExitCode::data, checkpoint.folder().string() + ": " + message);
  }

  const TensorInfo& find(const std::string& name) {
    known.insert(name);
    if (!checkpoint.contains(name)) {
      const std::string near = nearest_name(name, checkpoint.names());
      fail("tensor '" + name + "' is missing, and config.json asks for it" + (near.empty() ? "" : "; the nearest name is '" + near + "'"));
    }
    return checkpoint.info(name);
  }

  void expect_shape(const TensorInfo& info, const Shape& shape) const {
    if (info.shape != shape)
      fail("tensor '" + info.name + "' has shape " + text_of(info.shape) + ", but config.json makes it " + text_of(shape));
  }

  void expect_float(const TensorInfo& info) const {
    if (info.dtype != DType::f32 && info.dtype != DType::f16 && info.dtype != DType::bf16)
      fail("tensor '" + info.name + "' has dtype " + std::string(name_of(info.dtype)) + "; F32, F16 or BF16 is needed");
  }

  void expect_words(const TensorInfo& info) const {
    if (info.dtype != DType::i32)
      fail("tensor '" + info.name + "' has dtype " + std::string(name_of(info.dtype)) + "; packed codes are I32");
  }

  void weights(const std::string& name, const Shape& shape) {
    const TensorInfo& info = find(name);
    expect_shape(info, shape);
    expect_float(info);
  }

  // formats.md §1: b bits from qweight [K·b/32, N], groups from scales [G, N].
  void packed(const std::string& module, std::int64_t out, std::int64_t in) {
    const TensorInfo& qweight = find(module + ".qweight");
    const TensorInfo& qzeros = find(module + ".qzeros");
    const TensorInfo& scales = find(module + ".scales");
    const TensorInfo& g_idx = find(module + ".g_idx");
    for (const TensorInfo* words : {&qweight, &qzeros, &g_idx}) expect_words(*words);
    expect_float(scales);
    std::int64_t bits = 0;
    for (const std::int64_t candidate : {2, 3, 4, 8})
      if (in % 32 == 0 && out % 32 == 0 && qweight.shape == Shape{in / 32 * candidate, out}) bits = candidate;
    if (bits == 0)
      fail("tensor '" + qweight.name + "' has shape " + text_of(qweight.shape) +
           ", which holds no codes of 2, 3, 4 or 8 bits for a weight " + text_of({out, in}) + " of sizes that are multiples of 32");
    const std::int64_t groups = scales.shape.empty() ? 0 : scales.shape.front();
    if (groups < 1 || groups > in)
      fail("tensor '" + scales.name + "' has shape " + text_of(scales.shape) + ": from 1 to " + std::to_string(in) +
           " groups are possible");
    expect_shape(scales, {groups, out});
    expect_shape(qzeros, {groups, out / 32 * bits});
    expect_shape(g_idx, {in});
  }

  void linear(const std::string& module, const LinearSpec& spec) {
    if (is_packed(checkpoint, module))
      packed(module, spec.out_features, spec.in_features);
    else
      weights(module + ".weight", {spec.out_features, spec.in_features});
    if (spec.bias) weights(module + ".bias", {spec.out_features});
  }

  void norm(const std::string& module, std::int64_t width, bool bias) {
    if (module.empty()) return;
    weights(module + ".weight", {width});
    if (bias) weights(module + ".bias", {width});
  }
};

std::vector<unsigned char> bytes_of(const Checkpoint& checkpoint, const std::string& name) {
  std::vector<unsigned char> bytes(static_cast<std::size_t>(checkpoint.info(name).bytes()));
  checkpoint.read(name, bytes.data());
  return bytes;
}

}  // namespace

bool is_packed(const Checkpoint& checkpoint, const std::string& module) {
  return checkpoint.contains(module + ".qweight") && !checkpoint.contains(module + ".weight");
}

void check_tensors(const Architecture& a, const Checkpoint& checkpoint) {
  Check check{checkpoint, {}};
  check.weights(a.embedding, {a.vocab, a.hidden});
  for (std::int64_t layer = 0; layer < a.layers; ++layer) {
    const std::string prefix = layer_prefix(a, layer);
    const auto norm = [&](const std::string& name, std::int64_t width, bool bias) {
      if (!name.empty()) check.norm(prefix + name, width, bias);
    };
    norm(a.names.attention_norm, a.hidden, a.norm_bias);
    norm(a.names.mlp_norm, a.hidden, a.norm_bias);
    norm(a.names.q_norm, a.heads.head_dim, false);
    norm(a.names.k_norm, a.heads.head_dim, false);
    for (const LinearSpec& linear : all_linears(a)) check.linear(prefix + linear.name, linear);
  }
  check.norm(a.final_norm, a.hidden, a.norm_bias);

  const std::string head = a.lm_head + ".weight";
  if (!a.tied_embeddings || checkpoint.contains(head)) check.weights(head, {a.vocab, a.hidden});
  if (a.lm_head_bias) check.weights(a.lm_head + ".bias", {a.vocab});

  for (const std::string& name : checkpoint.names()) {
    const bool constant =
        std::any_of(stored_constants.begin(), stored_constants.end(), [&](const char* end) { return name.ends_with(end); });
    if (!constant && check.known.count(name) == 0)
      check.fail("tensor '" + name + "' is unknown to family " + a.model_type + " of " + std::to_string(a.layers) +
                 " layers as config.json describes it");
  }

  // transformers ties only equal tensors when a checkpoint holds both.
  if (a.tied_embeddings && checkpoint.contains(head)) {
    const bool equal = checkpoint.info(head).dtype == checkpoint.info(a.embedding).dtype &&
                       bytes_of(checkpoint, head) == bytes_of(checkpoint, a.embedding);
    if (!equal)
      check.fail("tie_word_embeddings is true, but '" + head + "' differs from '" + a.embedding +
                 "'; set tie_word_embeddings to false in config.json to keep both");
  }
}

}  // namespace qpipe
