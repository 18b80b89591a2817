// Whole runs write the same bytes wherever activations, weights and Hessians are kept, however many
// experts are solved at a time, and in a ring whether step inputs are kept or made anew.
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <random>

#include "kernels/hessian.h"
#include "launch/comm.h"
#include "pipeline/quantize.h"
#include "tests/dealt.h"
#include "tests/pipeline/oracle_options.h"

namespace qpipe {
namespace {

namespace fs = std::filesystem;

using Files = std::map<std::string, std::string>;

Files read_folder(const fs::path& folder) {
  Files files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    std::ifstream file(entry.path(), std::ios::binary);
    files[entry.path().filename().string()] = {std::istreambuf_iterator<char>(file), {}};
  }
  return files;
}

Places elsewhere(Place hidden, Place input, bool weights_by_step, std::int64_t panel,
                 bool hessian_on_host, std::int64_t groups_at_once, int solvers = 1) {
  Places places;
  places.hidden = hidden;
  places.input = input;
  places.weights_by_step = weights_by_step;
  places.groups_at_once = groups_at_once;
  places.experts_at_once = weights_by_step ? groups_at_once : 0;
  places.hessian_panel_columns = panel;
  places.hessian_on_host = hessian_on_host;
  places.solvers = solvers;
  return places;
}

struct Case {
  const char* name;
  const char* model;
  void (*set)(Options& options);
};

class PlacesRun : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (!fs::exists(oracles)) GTEST_SKIP() << "no oracles at " << oracles;
    if (!every_case() && !dealt_to(comm.size(), 4)) GTEST_SKIP() << "another number's";
    const std::string name =
        "qpipe-places-" +
        comm.broadcast(comm.root() ? std::to_string(std::random_device{}()) : "", 0);
    folder = fs::temp_directory_path() / name;
    fs::create_directories(folder);
  }
  void TearDown() override {
    comm.barrier();
    if (comm.root()) fs::remove_all(folder);
  }

  // The output folder's files, on rank 0.
  Files quantized(const std::optional<Places>& places) {
    Options options = oracle_options(GetParam().model, Options{}.quantize.method, folder / "out");
    options.calibration.samples = 31;
    options.awq.grid = 4;
    options.memory.micro_batch = 150;  // blocks of three samples, the last of one
    options.evaluate.data = options.calibration.data;
    options.evaluate.dataset = "calib";
    options.evaluate.samples = 5;
    options.evaluate.seqlen = 48;
    options.evaluate.after = true;
    options.parallel.backend = cuda_device_count() > 0 ? "cuda" : "cpu";
    options.parallel.share_gpu = true;
    GetParam().set(options);
    const RunReport report = quantize(options, false, std::nullopt, places);
    peak = report.device_peak_bytes;
    EXPECT_TRUE(report.perplexity_after.has_value());
    comm.barrier();
    Files files = comm.root() ? read_folder(options.output.path) : Files{};
    comm.barrier();
    return files;
  }

  Stream stream{Backend::cpu, 0};
  Comm comm{stream, {std::chrono::seconds(60), true}};
  fs::path folder;
  std::size_t peak = 0;
};

TEST_P(PlacesRun, WriteTheSameBytes) {
  const Files expected = quantized(std::nullopt);
  const std::size_t all_on_device = peak;
  if (comm.root()) {
    EXPECT_TRUE(expected.contains("config.json"));
  }
  const std::int64_t panel = hessian_panel(cuda_device_count() > 0 ? Backend::cuda : Backend::cpu);
  for (const Places& places : {Places{}, elsewhere(Place::host, Place::device, false, 0, false, 1),
                               elsewhere(Place::device, Place::host, false, panel, true, 3, 2),
                               elsewhere(Place::disk, Place::host, true, 0, true, 0, 4),
                               elsewhere(Place::disk, Place::disk, true, panel, false, 2, 3)}) {
    const Files got = quantized(places);
    ASSERT_EQ(got.size(), expected.size());
    for (const auto& [name, content] : expected)
      EXPECT_TRUE(got.at(name) == content) << name << " differs";
  }
  if (comm.root() && peak > 0)
    std::printf("peak %zu KiB, all on the device %zu KiB\n", peak >> 10, all_on_device >> 10);
}

INSTANTIATE_TEST_SUITE_P(
    Settings, PlacesRun,
    testing::Values(
        Case{"gptq", "llama", [](Options&) {}},
        Case{"gptq_at_once", "llama", [](Options& o) { o.quantize.true_sequential = false; }},
        Case{"gptq_original", "qwen3", [](Options& o) { o.quantize.propagate = "original"; }},
        Case{"gptq_shared_norm", "falcon-7b-style", [](Options& o) { o.quantize.desc_act = true; }},
        Case{"gptq_skip", "qwen2",
             [](Options& o) {
               o.quantize.overrides.push_back({"(v_proj|layers.1.mlp.down_proj)$", true, 0, 0, ""});
             }},
        Case{"awq", "llama-mha", [](Options& o) { o.quantize.method = "awq"; }},
        Case{"awq_gptq", "llama",
             [](Options& o) {
               o.quantize.method = "awq";
               o.awq.rounding = "gptq";
               o.quantize.propagate = "quantized";
             }},
        Case{"awq_shared_norm_skip", "falcon-7b-style",
             [](Options& o) {
               o.quantize.method = "awq";
               o.quantize.propagate = "quantized";
               o.quantize.overrides.push_back({"h.1.mlp.dense_h_to_4h$", true, 0, 0, ""});
             }},
        Case{"experts_gptq", "qwen2-moe", [](Options&) {}},
        Case{"experts_gptq_original", "qwen3-moe",
             [](Options& o) { o.quantize.propagate = "original"; }},
        Case{"experts_awq", "qwen2-moe",
             [](Options& o) {
               o.quantize.method = "awq";
               o.quantize.propagate = "quantized";
             }},
        Case{"experts_awq_gptq", "qwen3-moe",
             [](Options& o) {
               o.quantize.method = "awq";
               o.awq.rounding = "gptq";
               o.quantize.desc_act = true;
               o.quantize.propagate = "quantized";
             }},
        Case{"experts_rtn", "qwen3-moe", [](Options& o) { o.quantize.method = "rtn"; }},
        Case{"rtn", "llama", [](Options& o) { o.quantize.method = "rtn"; }}),
    [](const testing::TestParamInfo<Case>& tested) { return tested.param.name; });

}  // namespace
}  // namespace qpipe
