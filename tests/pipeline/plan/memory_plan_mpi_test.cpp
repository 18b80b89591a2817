// The predicted peak of device memory against the one that a run on the CPU backend measures: its
// Buffers are those of the CUDA backend.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <random>
#include <set>

#include "launch/comm.h"
#include "pipeline/files/error.h"
#include "pipeline/files/xxh3.h"
#include "pipeline/model/model.h"
#include "pipeline/plan/memory_plan.h"
#include "pipeline/quantize.h"
#include "tests/dealt.h"
#include "tests/paths.h"
#include "tests/pipeline/oracle_options.h"

namespace qpipe {
namespace {

namespace fs = std::filesystem;

struct Shape {
  const char* name;
  int hidden, ffn, heads, kv_heads, layers, vocab;
  std::int64_t samples, seqlen, micro_batch;
  const char* golden = nullptr;  // another model than Llama: its config.json with this vocabulary
};

struct Case {
  Shape shape;
  const char* setting;  // what it is measured with
  std::vector<std::string> sets;
};

std::string hash_of_output(const Options& options) {
  Xxh3 hash;
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(options.output.path))
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  for (const fs::path& file : files) {
    std::ifstream stream(file, std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(stream), {}};
    hash.add(bytes.data(), bytes.size());
  }
  return hash.hexadecimal();
}

// Runs with ever smaller budgets on every backend of the machine: the peak is as predicted, within
// the budget, and the output the same.
void compare_peaks(const std::string& name,
                   const std::function<Options(const std::vector<std::string>&)>& options_with,
                   Comm& comm) {
  for (const Backend backend : {Backend::cpu, Backend::cuda}) {
    const char* device = backend == Backend::cpu ? "cpu" : "cuda";
    if (backend == Backend::cuda && cuda_device_count() == 0) continue;
    Options options =
        options_with({"parallel.share_gpu=true", std::string("parallel.backend=") + device});
    const Checkpoint checkpoint(options.model.path);
    const Architecture architecture = read_architecture(checkpoint);
    RunSizes sizes = run_sizes(options, architecture, checkpoint,
                               plan_quantization(options, architecture, checkpoint), backend);
    sizes.most_solvers = 3;  // on the CPU, too
    const Teams teams = teams_of_run(comm.size(), 0, sizes);
    const MemoryPlan all = plan_memory(sizes, teams, {INT64_MAX, INT64_MAX});
    const std::int64_t most = all.device_peak().total().device;
    std::string output;
    for (const int part : {4, 2, 0}) {
      const std::int64_t budget = all.least_device + (most - all.least_device) / 4 * part;
      options.memory.gpu = std::to_string(budget) + "B";
      const MemoryPlan plan = plan_memory(sizes, teams, {budget, INT64_MAX});
      ASSERT_TRUE(plan.fits);
      const RunReport report = quantize(options, false, std::nullopt, plan.places);
      const Phase& peak = plan.device_peak();
      const std::int64_t libraries = backend == Backend::cuda ? library_device_bytes : 0;
      const auto predicted = static_cast<double>(peak.total().device - libraries);
      const auto measured = static_cast<double>(report.device_peak_bytes);
      const double slack =
          backend == Backend::cuda ? 0x1p22 : 0.0;  // workspaces that do not shrink with the matrix
      EXPECT_LE(measured, static_cast<double>(budget - libraries) + slack);
      EXPECT_NEAR(predicted, measured, 0.1 * measured + slack) << peak.name;
      if (comm.root() && part == 4) output = hash_of_output(options);
      if (comm.root()) {
        EXPECT_EQ(hash_of_output(options), output) << describe(plan.places);
      }
      if (comm.root())
        std::printf(
            "%s, %d rank(s) on %s: measured %.2f MiB, predicted %.2f MiB (%+.1f %%) at %s; %s\n",
            name.c_str(), comm.size(), device, measured / 0x1p20, predicted / 0x1p20,
            100.0 * (predicted / measured - 1.0), peak.name.c_str(), describe(plan.places).c_str());
    }
  }
}

class MemoryPlanRun : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (comm.size() > 2) GTEST_SKIP() << "two ranks divide everything that is divided";
    if (!every_case() && !dealt_to(comm.size(), 2)) GTEST_SKIP() << "another number's";
    const std::string shared = comm.broadcast(comm.root() ? folder.string() : "", 0);
    folder = shared;
    if (comm.root()) make_inputs();
    comm.barrier();
  }
  void TearDown() override {
    if (comm.size() > 2) return;
    comm.barrier();
    if (comm.root()) fs::remove_all(folder);
  }

  static nlohmann::json config_of_llama() {
    const Shape& s = GetParam().shape;
    return nlohmann::json{{"architectures", {"LlamaForCausalLM"}},
                          {"model_type", "llama"},
                          {"hidden_size", s.hidden},
                          {"intermediate_size", s.ffn},
                          {"num_hidden_layers", s.layers},
                          {"num_attention_heads", s.heads},
                          {"num_key_value_heads", s.kv_heads},
                          {"vocab_size", s.vocab},
                          {"max_position_embeddings", 4096},
                          {"rms_norm_eps", 1e-5},
                          {"rope_theta", 10000.0},
                          {"hidden_act", "silu"},
                          {"tie_word_embeddings", false},
                          {"torch_dtype", "bfloat16"}};
  }
  static nlohmann::json config_of_golden() {
    const Shape& s = GetParam().shape;
    std::ifstream file(tests_folder() / "golden/models" / s.golden / "config.json");
    nlohmann::json config = nlohmann::json::parse(file);
    nlohmann::json& text = config.contains("text_config") ? config["text_config"] : config;
    for (const char* key : {"vocab_size", "vocab_size_per_layer_input"})
      if (text.contains(key)) text[key] = s.vocab;
    return config;
  }

  // Random weights and tokens.
  void make_inputs() {
    const Shape& s = GetParam().shape;
    fs::create_directories(folder / "model");
    const nlohmann::json config = s.golden == nullptr ? config_of_llama() : config_of_golden();
    std::ofstream(folder / "model" / "config.json") << config.dump();
    std::minstd_rand random(1);
    const auto tensors = expected_tensors(read_architecture(config, "config.json"), DType::bf16);
    SafetensorsWriter weights(folder / "model" / "model.safetensors", tensors);
    for (const TensorInfo& info : tensors) {
      std::vector<bf16> values(static_cast<std::size_t>(info.bytes() / 2));
      const bool norm = info.shape.size() == 1;
      for (bf16& value : values)
        value = to_bf16(norm ? 1.0f : static_cast<float>(random() % 2001) * 1e-4f - 0.1f);
      weights.write(info.name, values.data());
    }
    weights.finish();
    std::vector<std::int32_t> ids(static_cast<std::size_t>(s.samples * s.seqlen));
    for (std::int32_t& id : ids)
      id = static_cast<std::int32_t>(random() % static_cast<unsigned>(s.vocab));
    SafetensorsWriter tokens(folder / "tokens.safetensors",
                             {{"input_ids", DType::i32, {s.samples, s.seqlen}}});
    tokens.write("input_ids", ids.data());
    tokens.finish();
    std::ofstream(folder / "run.toml")
        << "[model]\npath = \"" << (folder / "model").string() << "\"\n[calibration]\ndata = \""
        << (folder / "tokens.safetensors").string() << "\"\n[output]\npath = \""
        << (folder / "out").string() << "\"\noverwrite = true\n[run]\nprogress = \"none\"\n";
  }

  Options options_with(const std::vector<std::string>& more) const {
    const Shape& s = GetParam().shape;
    std::vector<std::string> sets = GetParam().sets;
    sets.insert(sets.end(), more.begin(), more.end());
    sets.push_back("calibration.samples=" + std::to_string(s.samples));
    sets.push_back("calibration.seqlen=" + std::to_string(s.seqlen));
    sets.push_back("memory.micro_batch=" + std::to_string(s.micro_batch));
    sets.emplace_back("quantize.group_size=32");
    sets.emplace_back("quantize.mse=0");
    sets.emplace_back("awq.grid=4");  // one ratio after the other, in the same memory
    return load_options(folder / "run.toml", sets);
  }

  Stream stream{Backend::cpu, 0};
  Comm comm{stream, {std::chrono::seconds(300), true}};
  fs::path folder =
      fs::temp_directory_path() / ("qpipe-memory-" + std::to_string(std::random_device{}()));
};

TEST_P(MemoryPlanRun, PeakIsAsPredicted) {
  const Case& c = GetParam();
  compare_peaks(
      std::string(c.shape.name) + ", " + c.setting,
      [&](const auto& more) { return options_with(more); }, comm);
}

// All ranks obey the least budget of any, and refuse together, before anything is written.
TEST_P(MemoryPlanRun, ASmallBudgetIsRefused) {
  const Options options =
      options_with({"parallel.backend=cpu",
                    comm.rank() == comm.size() - 1 ? "memory.gpu=1MiB" : "memory.gpu=auto"});
  for (const bool dry_run : {true, false}) try {
      quantize(options, dry_run);
      FAIL() << "fits";
    } catch (const UserError& error) {
      EXPECT_EQ(error.code, ExitCode::config);
      EXPECT_NE(std::string(error.what()).find("memory.gpu is 1.0 MiB"), std::string::npos)
          << error.what();
    }
  EXPECT_FALSE(fs::exists(options.output.path));
}

// What weighs most: activations, Hessians and codes, the search, the embedding.
const Shape many_tokens{"many tokens", 256, 704, 8, 4, 1, 500, 16, 256, 1024};
const Shape few_tokens{"few tokens", 512, 1376, 8, 8, 1, 500, 8, 128, 256};
const Shape wide_blocks{"wide blocks", 256, 352, 8, 8, 2, 500, 8, 128, 1024};
const Shape per_layer{"per-layer embeddings", 0, 0, 0, 0, 0, 20000, 4, 32, 64, "gemma4-small"};
const Shape projected{"projected embedding", 0, 0, 0, 0, 0, 20000, 4, 32, 64, "opt-350m-style"};
const Shape large_vocabulary{"large vocabulary", 256, 256, 4, 4, 1, 20000, 4, 32, 64};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const Shape& shape : {many_tokens, few_tokens, wide_blocks}) {
    all.push_back({shape, "gptq", {}});
    all.push_back({shape, "gptq, not sequential", {"quantize.true_sequential=false"}});
    all.push_back({shape, "awq exact", {"quantize.method=awq"}});
    all.push_back({shape, "awq gram", {"quantize.method=awq", "awq.search=gram"}});
  }
  for (const Shape& shape : {many_tokens, few_tokens})
    all.push_back({shape, "gptq, original target", {"quantize.target=original"}});
  all.push_back({few_tokens, "gptq, original outputs", {"quantize.propagate=original"}});
  all.push_back(
      {few_tokens,
       "gptq, two orders of the columns",
       {"quantize.act_group_aware=true",
        "quantize.overrides=[{match=\"v_proj\", group_size=64}, {match=\"gate\", skip=true}]"}});
  all.push_back({few_tokens,
                 "awq rounded by gptq, quantized outputs",
                 {"quantize.method=awq", "awq.rounding=gptq", "quantize.propagate=quantized",
                  "awq.search_tokens=512"}});
  all.push_back({few_tokens,
                 "gptq without the widest",
                 {"quantize.overrides=[{match=\"down\", skip=true}]"}});
  all.push_back({few_tokens, "rtn", {"quantize.method=rtn"}});
  all.push_back({large_vocabulary, "gptq", {}});
  all.push_back({projected, "gptq", {}});
  all.push_back({per_layer,
                 "gptq",
                 {R"(quantize.overrides=[{match="per_layer_|self_attn.[kv]_proj", skip=true}])"}});
  return all;
}

INSTANTIATE_TEST_SUITE_P(Settings, MemoryPlanRun, testing::ValuesIn(cases()),
                         [](const testing::TestParamInfo<Case>& tested) {
                           std::string name =
                               std::string(tested.param.shape.name) + "_" + tested.param.setting;
                           for (char& c : name)
                             if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
                           return name;
                         });

// Other shapes of a layer: one norm for two steps, biases, layer norms, ALiBi, norms of q and k,
// norms behind the blocks, tied embeddings, tables of positions and of layers, projected
// embeddings, weights that are stored transposed, columns that travel with the stream; in
// float32.
class MemoryPlanFamily : public testing::TestWithParam<const char*> {
 protected:
  // Linears that are skipped: most have sizes that are no multiples of 32.
  static const std::map<std::string, std::string>& odd_sizes() {
    static const std::string latents = "q_a_proj|kv_a_proj|q_b_proj";
    static const std::string layers = R"(per_layer_|experts\.|layers\.0\.self_attn\.[kv]_proj)";
    static const std::map<std::string, std::string> patterns = {
        {"deepseek-v2-lite", latents},
        {"deepseek-v3", latents},
        {"falcon-h1", "in_proj"},
        {"gemma4-moe", layers},
        {"gemma4-small", layers},
        {"glm-moe-dsa", latents + R"(|mlp\.experts\.)"},  // shared ones alone
        {"jamba", "x_proj|feed_forward"},
        {"kimi-linear", "kv_a_proj"},
        {"mamba2", "in_proj"},
        {"nemotron-h", "in_proj|experts"},
        {"nemotron-nas", layers}};
    return patterns;
  }
};

TEST_P(MemoryPlanFamily, PeakIsAsPredicted) {
  Stream stream(Backend::cpu, 0);
  Comm comm(stream, {std::chrono::seconds(300), true});
  if (!fs::exists(oracles)) GTEST_SKIP() << "no oracles at " << oracles;
  if (comm.size() > 2) GTEST_SKIP();
  const fs::path folder = comm.broadcast(
      (fs::temp_directory_path() / ("qpipe-memory-" + std::to_string(std::random_device{}())))
          .string(),
      0);
  const char* dealt = dealt_to(comm.size(), 2) ? "gptq" : "awq";
  // Several groups in a step, experts beside others, delta nets.
  const std::set<std::string> aimed{"deepseek-v3", "qwen2-moe", "qwen3-next"};
  for (const std::string method : {"gptq", "awq", "target"}) {
    if (method == "target" ? !aimed.contains(GetParam()) : !every_case() && method != dealt)
      continue;
    compare_peaks(
        std::string(GetParam()) + ", " + method,
        [&](const std::vector<std::string>& more) {
          Options options =
              oracle_options(GetParam(), method == "awq" ? "awq" : "gptq", folder / "out");
          if (method == "target") options.quantize.target = "original";
          options.memory.micro_batch = 512;
          options.quantize.mse = 0.0;
          options.awq.grid = 4;
          if (const auto pattern = odd_sizes().find(GetParam()); pattern != odd_sizes().end())
            options.quantize.overrides = {{pattern->second, true, 0, 0, ""}};
          options.parallel.share_gpu = true;
          options.parallel.backend = more.back().substr(more.back().find('=') + 1);
          return options;
        },
        comm);
  }
  comm.barrier();
  if (comm.root()) fs::remove_all(folder);
}

INSTANTIATE_TEST_SUITE_P(Families, MemoryPlanFamily,
                         testing::Values("llama", "llama-mha-tied-bias", "qwen2", "qwen3",
                                         "falcon-7b-style", "falcon-40b-style", "falcon-rw-alibi",
                                         "gemma2", "gemma4-small", "gpt2", "opt-350m-style",
                                         "olmo2", "phi3", "mpt", "nemotron-nas", "qwen2-moe",
                                         "qwen3-moe", "gemma4-moe", "gpt-oss", "step3p5",
                                         "deepseek-v3", "deepseek-v2-lite", "glm-moe-dsa",
                                         "qwen3-next", "qwen3_5", "kimi-linear", "mamba2",
                                         "nemotron-h", "falcon-h1", "jamba", "lfm2"),
                         [](const testing::TestParamInfo<const char*>& tested) {
                           std::string name = tested.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace qpipe
