// The generic decoder against the reference implementation's hidden states and logits
// (shared/oracles/models) and the peers' quantized checkpoints read back
// (shared/oracles/checkpoints).
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "kernels/activation.h"
#include "launch/comm.h"
#include "pipeline/evaluate.h"
#include "pipeline/layers/layer_source.h"
#include "pipeline/model/model.h"
#include "stages/activations.h"
#include "stages/transfer.h"
#include "tests/paths.h"

namespace qpipe {
namespace {

namespace fs = std::filesystem;

const fs::path oracles = shared_folder() / "oracles";

std::vector<float> read_floats(const SafetensorsFile& file, const std::string& name) {
  std::vector<float> values(static_cast<std::size_t>(file.info(name).bytes()) / sizeof(float));
  file.read(name, values.data());
  return values;
}

Tokens reference_tokens(const SafetensorsFile& file) {
  const TensorInfo& info = file.info("input_ids");
  std::vector<std::int64_t> wide(static_cast<std::size_t>(info.bytes()) / sizeof(std::int64_t));
  file.read("input_ids", wide.data());
  Tokens tokens;
  tokens.ids.assign(wide.begin(), wide.end());
  tokens.samples = info.shape.at(0);
  tokens.seqlen = info.shape.at(1);
  return tokens;
}

// ‖a − b‖ / ‖b‖; NaN never passes an upper bound.
double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double difference = 0.0;
  double norm = 0.0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    difference += std::pow(static_cast<double>(a.at(i)) - b[i], 2);
    norm += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / norm);
}

struct Case {
  std::string name;
  Backend backend;
};

std::vector<Case> on_backends(std::initializer_list<const char*> names) {
  std::vector<Case> cases;
  for (const char* name : names) {
    cases.push_back({name, Backend::cpu});
    if (cuda_device_count() > 0) cases.push_back({name, Backend::cuda});
  }
  return cases;
}

std::string case_name(const testing::TestParamInfo<Case>& info) {
  std::string name = info.param.name + (info.param.backend == Backend::cuda ? "_cuda" : "_cpu");
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

class Engine : public testing::TestWithParam<Case> {
 protected:
  Engine() : stream(GetParam().backend, 0), comm(stream, {std::chrono::seconds(60), true}) {}

  void SetUp() override {
    if (!fs::exists(oracles)) GTEST_SKIP() << "no oracles at " << oracles;
  }

  std::vector<float> logits_of(const Checkpoint& checkpoint, const Architecture& architecture,
                               const Tokens& tokens) {
    std::vector<float> logits;
    evaluate(checkpoint, architecture, tokens, 16384, Places{}, comm, stream,
             [&](std::int64_t, const std::vector<float>& block) {
               logits.insert(logits.end(), block.begin(), block.end());
             });
    return logits;
  }

  std::vector<float> hidden_of(const Activations& activations) {
    const TensorArray hidden(stream.compute_dtype(), activations.hidden.rows(0),
                             activations.hidden.width(), stream);
    read_block(activations.hidden, 0, hidden, stream);
    const Array<float> wide(hidden.view.rows, hidden.view.cols, stream);
    convert(hidden, wide.view, stream);
    std::vector<float> values(static_cast<std::size_t>(wide.view.size()));
    copy_to_host(values.data(), wide.view.data, wide.memory.bytes(), stream);
    return values;
  }

  Stream stream;
  Comm comm;
};

// ‖difference‖ / ‖logits‖ of a plain bfloat16 run of the reference implementation, in percent
// (shared/oracles/README.md). Those of the four that transformers lacks are Llama's, whose
// mathematics they are.
struct Variant {
  const char* name;
  double bf16_error;
};
constexpr Variant variants[] = {{"llama", 1.3},
                                {"llama-mha", 1.6},
                                {"llama-mha-tied-bias", 1.6},
                                {"llama3-rope", 1.3},
                                {"llama-linear-rope", 1.4},
                                {"llama-yarn", 1.7},
                                {"mistral", 1.3},
                                {"mistral-window", 1.6},
                                {"qwen2", 1.5},
                                {"qwen3", 1.4},
                                {"falcon-7b-style", 0.7},
                                {"falcon-40b-style", 0.7},
                                {"falcon-11b-style", 0.7},
                                {"falcon-rw-alibi", 0.9},
                                {"gemma", 0.6},
                                {"gemma2", 0.7},
                                {"gemma3", 0.6},
                                {"gemma3-mm", 0.6},
                                {"gemma3-mm-v5", 0.6},
                                {"gemma4-text", 1.2},
                                {"gemma4-small", 1.3},
                                {"phi", 0.8},
                                {"phi3", 1.3},
                                {"phi3-longrope", 1.9},
                                {"phi3-longrope-short", 1.8},
                                {"granite", 0.6},
                                {"granitemoehybrid-dense", 0.5},
                                {"mamba2", 3.1},
                                {"falcon-h1", 1.1},
                                {"lfm2", 1.4},
                                {"cohere", 1.0},
                                {"cohere-qk-norm", 0.8},
                                {"cohere2", 1.0},
                                {"olmo", 1.0},
                                {"olmo2", 1.0},
                                {"olmo3", 1.1},
                                {"stablelm", 1.3},
                                {"stablelm-2", 0.9},
                                {"starcoder2", 0.8},
                                {"gpt-neox", 0.7},
                                {"gpt2", 0.7},
                                {"gptj", 0.6},
                                {"gpt-bigcode", 0.9},
                                {"opt", 0.7},
                                {"opt-350m-style", 0.8},
                                {"bloom", 0.8},
                                {"mpt", 0.7},
                                {"smollm3", 1.6},
                                {"arcee", 1.4},
                                {"apertus", 1.0},
                                {"seed-oss", 1.4},
                                {"nemotron", 2.3},
                                {"exaone", 1.5},
                                {"exaone4", 1.2},
                                {"mistral3", 1.5},
                                {"mistral3-ministral3", 1.7},
                                {"hunyuan-dense", 1.4},
                                {"ernie4_5", 1.5},
                                {"glm", 1.5},
                                {"glm4", 1.6},
                                {"internlm2", 1.6},
                                {"baichuan-7b", 1.6},
                                {"deci", 1.6},
                                {"nemotron-nas", 1.6},
                                {"qwen2_5-vl", 1.3},
                                {"qwen3-vl", 1.4},
                                // With experts. Routing is not continuous: on CUDA a layer's output
                                // counts where its experts are the reference's, and logits do not.
                                {"qwen2-moe", 1.5},
                                {"qwen3-moe", 1.5},
                                {"qwen3-vl-moe", 1.5},
                                {"mixtral", 1.5},
                                {"olmoe", 1.5},
                                {"minimax-m2", 1.5},
                                {"granitemoe", 1.5},
                                {"glm4-moe", 1.5},
                                {"dots1", 1.5},
                                {"deepseek-v2", 2.7},
                                {"deepseek-v2-lite", 3.3},
                                {"deepseek-v2-groups", 11.4},
                                {"deepseek-v3", 2.0},
                                {"deepseek-v3-yarn", 3.1},
                                {"deepseek-v3-no-q-lora", 2.0},
                                {"deepseek-v3-fp8", 2.4},
                                {"kimi-k25", 15.4},
                                {"glm4-moe-lite", 9.1},
                                {"mistral4", 9.6},
                                {"solar-open", 1.5},
                                {"exaone-moe", 1.5},
                                {"bailing-moe-v2", 1.5},
                                {"ernie4_5-moe", 1.5},
                                {"hunyuan-moe", 1.5},
                                {"gemma4-moe", 1.5},
                                {"phimoe", 1.5},
                                {"llama4-text", 1.5},
                                {"llama4", 1.5},
                                {"gpt-oss", 1.5},
                                {"gpt-oss-mxfp4", 1.5},
                                {"afmoe", 1.5},
                                {"mimo-v2-flash", 1.5},
                                {"step3p5", 1.5},
                                {"granitemoehybrid", 1.5},
                                {"nemotron-h", 5.2},
                                {"jamba", 6.2},
                                {"lfm2-moe", 12.0}};

std::vector<Case> all_variants() {
  std::vector<Case> cases;
  for (const Variant& variant : variants)
    for (const Case& one : on_backends({variant.name})) cases.push_back(one);
  return cases;
}

class Models : public Engine {
 protected:
  // CPU: float32 against float32, rounding only. CUDA: twice what a plain bfloat16 run errs.
  double bound() const {
    if (GetParam().backend == Backend::cpu) return 2e-4;
    const auto* variant = std::find_if(std::begin(variants), std::end(variants),
                                       [&](const auto& v) { return v.name == GetParam().name; });
    return 2.0 * variant->bf16_error / 100.0;
  }

  // transformers 5.24 takes PhiMoE's long amplitude for long sequences, but not its long factors;
  // its authors' implementation takes both.
  static Architecture as_the_reference(Architecture architecture) {
    if (architecture.model_type == "phimoe")
      for (LayerSpec& kind : architecture.kinds) {
        Rope& rope = std::get<Attention>(kind.mixer).rope;
        rope.longer_frequencies = rope.inverse_frequencies;
      }
    return architecture;
  }

  // The stream's own columns, without what it carries.
  std::vector<float> hidden_columns(const Activations& activations, std::int64_t hidden) {
    const std::vector<float> all = hidden_of(activations);
    const auto width = static_cast<std::size_t>(activations.hidden.width());
    std::vector<float> values;
    for (std::size_t row = 0; row < all.size() / width; ++row)
      for (std::size_t c = 0; c < static_cast<std::size_t>(hidden); ++c)
        values.push_back(all[row * width + c]);
    return values;
  }

  // For each token whether the layer that ran last chose the reference's experts; all true where
  // none are chosen.
  std::vector<bool> agrees_on_experts(const Activations& activations, const LayerSpec& spec,
                                      const SafetensorsFile& reference, std::int64_t layer,
                                      std::int64_t tokens) {
    std::vector<bool> agrees(static_cast<std::size_t>(tokens), true);
    const std::string name = "router." + std::to_string(layer);
    EXPECT_EQ(reference.contains(name), std::holds_alternative<Experts>(spec.mlp));
    if (!reference.contains(name)) return agrees;
    std::vector<std::int64_t> wanted(static_cast<std::size_t>(reference.info(name).bytes()) /
                                     sizeof(std::int64_t));
    reference.read(name, wanted.data());
    const std::vector<std::int32_t> chosen =
        download_matrix(activations.routes.at(0).expert.view, stream);
    EXPECT_EQ(wanted.size(), chosen.size());
    const std::size_t k = chosen.size() / agrees.size();
    for (std::size_t t = 0; t < agrees.size(); ++t) {
      const auto begin = wanted.begin() + static_cast<std::ptrdiff_t>(t * k);
      std::sort(begin, begin + static_cast<std::ptrdiff_t>(k));
      agrees[t] = std::equal(begin, begin + static_cast<std::ptrdiff_t>(k),
                             chosen.begin() + static_cast<std::ptrdiff_t>(t * k));
    }
    return agrees;
  }

  static std::vector<float> chosen_rows(const std::vector<float>& values,
                                        const std::vector<bool>& chosen) {
    const std::size_t width = values.size() / chosen.size();
    std::vector<float> rows;
    for (std::size_t t = 0; t < chosen.size(); ++t)
      if (chosen[t])
        rows.insert(rows.end(), values.begin() + static_cast<std::ptrdiff_t>(t * width),
                    values.begin() + static_cast<std::ptrdiff_t>((t + 1) * width));
    return rows;
  }

  void set_hidden(Activations& activations, std::int64_t hidden, const std::vector<float>& values) {
    const TensorArray block(stream.compute_dtype(), activations.hidden.rows(0),
                            activations.hidden.width(), stream);
    read_block(activations.hidden, 0, block, stream);
    Array<float> wide(block.view.rows, hidden, stream);
    copy_to_device(wide.view.data, values.data(), wide.memory.bytes(), stream);
    convert(wide.view, block.view.col_range(0, hidden), stream);
    write_block(activations.hidden, 0, block, stream);
  }
};

// Float32 goes through the layers one after another; bfloat16 starts each layer from the
// reference's input, so that its error is that layer's.
TEST_P(Models, HiddenStatesAndLogitsMatchTheReference) {
  const fs::path folder = oracles / "models" / GetParam().name;
  const Checkpoint checkpoint(folder);
  const Architecture architecture = as_the_reference(read_architecture(checkpoint));
  check_tensors(architecture, checkpoint);
  const SafetensorsFile reference(folder / "reference.safetensors");
  const Tokens tokens = reference_tokens(reference);

  LayerSource source(checkpoint, architecture, comm, stream);
  Activations activations = make_activations(
      architecture, cut_samples(tokens.samples, tokens.seqlen, 16384), 0, 1, Places{}, stream);
  ASSERT_EQ(activations.blocks(), 1u);
  embed_tokens(architecture, source.load_embedding(), tokens.ids, activations, stream);
  const std::int64_t hidden = architecture.hidden;
  double worst =
      relative_error(hidden_columns(activations, hidden), read_floats(reference, "hidden.0"));
  EXPECT_LT(worst, bound()) << "embedding";
  const DecoderTables tables = make_tables(architecture, tokens.seqlen, stream);
  bool routes = false;
  for (std::int64_t index = 0; index < architecture.layers; ++index) {
    const auto state = [&](std::int64_t l) {
      return read_floats(reference, "hidden." + std::to_string(l));
    };
    if (stream.on_cuda()) set_hidden(activations, hidden, state(index));
    const Layer layer = source.load_layer(index);
    forward_layer(layer, tables, activations, stream);
    const std::vector<bool> agrees = agrees_on_experts(
        activations, architecture.layer(index), reference, index, tokens.samples * tokens.seqlen);
    const auto others = std::count(agrees.begin(), agrees.end(), false);
    EXPECT_LE(others, stream.on_cuda() ? std::ssize(agrees) / 20 : 0)
        << "other experts in layer " << index;
    routes = routes || std::holds_alternative<Experts>(architecture.layer(index).mlp);
    const double error = relative_error(chosen_rows(hidden_columns(activations, hidden), agrees),
                                        chosen_rows(state(index + 1), agrees));
    EXPECT_LT(error, bound()) << "output of layer " << index;
    worst = std::max(worst, error);
  }
  const double error =
      relative_error(logits_of(checkpoint, architecture, tokens), read_floats(reference, "logits"));
  if (!routes || !stream.on_cuda()) {
    EXPECT_LT(error, bound()) << "logits";
  }
  RecordProperty("relative_error", std::to_string(error));
  std::printf("%s: hidden states %.1e, logits %.1e of at most %.1e\n", GetParam().name.c_str(),
              worst, error, bound());
}

INSTANTIATE_TEST_SUITE_P(Oracles, Models, testing::ValuesIn(all_variants()), case_name);

class PeerCheckpoints : public Engine {};

// ‖logits − the peer's own‖ / ‖theirs‖ on the CPU, where we run in float32.
double peer_bound(const std::string& name) {
  // The peer ran in bfloat16: 1.0-1.6% as for the models above, and twice that. bitsandbytes' 4-bit
  // matmul for CPUs does whatever the compute dtype: its logits for bnb-nf4 (float32) and
  // bnb-nf4-bf16storage (bfloat16) are the same bits.
  if (name.starts_with("gptq") || name.starts_with("bnb-nf4") || name == "bnb-fp4" ||
      name == "ct-nvfp4a16" || name == "ct-mxfp4a16")
    return 0.03;
  // LLM.int8 rounds activations to int8, each row with its maximum a: an error of a/127/√12 an
  // element where elements are a/3 or so, 0.7%. 21 linears in sequence: 0.7% · √21 = 3.1%, and half
  // as much again.
  if (name == "bnb-int8") return 0.05;
  // e4m3 activations: 2.6% an element (3 bits of mantissa), · √21 = 12%, and half as much again.
  if (name == "ct-fp8-dynamic") return 0.18;
  return 1e-3;  // float32, the same numbers in another order of sums
}

TEST_P(PeerCheckpoints, ReadBackGivesThePeersLogits) {
  const std::string name = GetParam().name;
  const Checkpoint checkpoint(oracles / "checkpoints" / name);
  const Architecture architecture = read_architecture(checkpoint);
  check_tensors(architecture, checkpoint);
  const SafetensorsFile reference(oracles / "checkpoints" / name / "reference.safetensors");
  Tokens tokens = reference_tokens(reference);
  const std::vector<float> logits = logits_of(checkpoint, architecture, tokens);
  const bool cuda = GetParam().backend == Backend::cuda;  // bfloat16
  int answers = 0;
  const auto expect_close = [&](const std::vector<float>& ours, const std::vector<float>& theirs,
                                double limit, const char* whose) {
    const double error = relative_error(ours, theirs);
    EXPECT_LT(error, limit) << whose;
    RecordProperty(whose, std::to_string(error));
    ++answers;
  };
  if (reference.contains("logits")) {
    const double limit = peer_bound(name);
    expect_close(logits, read_floats(reference, "logits"), cuda ? std::max(limit, 0.04) : limit,
                 "logits");
  }
  if (reference.contains("logits_float32"))
    expect_close(logits, read_floats(reference, "logits_float32"), cuda ? 0.03 : 1e-3,
                 "logits_float32");
  // The weights that the peer dequantizes, in float32: made by
  // tests/python/make_read_back_golden.py, each sample's last position.
  const SafetensorsFile golden(tests_folder() / "golden" / "read_back_logits.safetensors");
  if (golden.contains(name)) {
    std::vector<float> last;
    for (std::int64_t sample = 1; sample <= tokens.samples; ++sample) {
      const auto end =
          logits.begin() + static_cast<std::ptrdiff_t>(sample * tokens.seqlen * architecture.vocab);
      last.insert(last.end(), end - static_cast<std::ptrdiff_t>(architecture.vocab), end);
    }
    expect_close(last, read_floats(golden, name), cuda ? 0.03 : 1e-4, "golden");
  }
  EXPECT_GT(answers, 0);
}

INSTANTIATE_TEST_SUITE_P(
    Oracles, PeerCheckpoints,
    testing::ValuesIn(on_backends(
        {"awq-gemm-g32", "bnb-fp4", "bnb-int8", "bnb-nf4", "bnb-nf4-bf16storage", "bnb-nf4-double",
         "ct-awq-w4-asym", "ct-fp8-dynamic", "ct-gptq-w4-asym-static", "ct-gptq-w4-sym",
         "ct-mxfp4a16", "ct-nvfp4a16", "ct-rtn-w8", "gptq-sym2-g32", "gptq-sym3-g32",
         "gptq-sym4-g32", "gptq-sym4-g32-desc", "gptq-sym8-col", "gptqv2-asym4-g32"})),
    case_name);

// Each window alone, whatever the blocks: the perplexity does not depend on the micro-batch or on
// the number of ranks.
TEST_P(PeerCheckpoints, PerplexityDoesNotDependOnTheBlocks) {
  const Checkpoint checkpoint(oracles / "checkpoints" / GetParam().name);
  const Architecture architecture = read_architecture(checkpoint);
  const Tokens tokens = reference_tokens(
      SafetensorsFile(oracles / "checkpoints" / GetParam().name / "reference.safetensors"));
  const double one_block =
      evaluate(checkpoint, architecture, tokens, 16384, Places{}, comm, stream).value;
  const double two_blocks =
      evaluate(checkpoint, architecture, tokens, 40, Places{}, comm, stream).value;
  EXPECT_TRUE(std::isfinite(one_block));
  EXPECT_NEAR(one_block, two_blocks, 2e-3 * one_block);
}

}  // namespace
}  // namespace qpipe
