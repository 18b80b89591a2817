#include "pipeline/plan/memory_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/factor.h"
#include "pipeline/files/error.h"
#include "pipeline/model/model.h"
#include "pipeline/plan/run_estimate.h"

namespace qpipe {
namespace {

constexpr std::int64_t GiB = std::int64_t{1} << 30;
constexpr std::int64_t no_limit = INT64_MAX;

// config.json of meta-llama's Llama-3.1-405B, Llama-2-70B and Llama-2-7B.
nlohmann::json llama(std::int64_t hidden, std::int64_t ffn, std::int64_t layers, std::int64_t heads,
                     std::int64_t kv_heads, std::int64_t vocab) {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"hidden_size", hidden},
          {"intermediate_size", ffn},
          {"num_hidden_layers", layers},
          {"num_attention_heads", heads},
          {"num_key_value_heads", kv_heads},
          {"vocab_size", vocab},
          {"max_position_embeddings", 131072},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 500000.0},
          {"hidden_act", "silu"},
          {"tie_word_embeddings", false}};
}
const nlohmann::json llama_405b = llama(16384, 53248, 126, 128, 8, 128256);
const nlohmann::json llama_70b = llama(8192, 28672, 80, 64, 8, 32000);
const nlohmann::json llama_7b = llama(4096, 11008, 32, 32, 32, 32000);

// Qwen3-30B-A3B.
nlohmann::json qwen3_moe() {
  nlohmann::json config = llama(2048, 6144, 48, 32, 4, 151936);
  config.update({{"architectures", {"Qwen3MoeForCausalLM"}},
                 {"model_type", "qwen3_moe"},
                 {"head_dim", 128},
                 {"moe_intermediate_size", 768},
                 {"num_experts", 128},
                 {"num_experts_per_tok", 8},
                 {"norm_topk_prob", true},
                 {"decoder_sparse_step", 1},
                 {"mlp_only_layers", nlohmann::json::array()}});
  return config;
}

RunSizes sizes_of(const nlohmann::json& config, const std::string& method,
                  std::int64_t micro_batch = 16384, Backend backend = Backend::cuda) {
  Options options;
  options.model.path = "model";
  options.output.path = "out";
  options.calibration.data = "tokens.h5";
  options.quantize.method = method;
  options.memory.micro_batch = micro_batch;
  const Architecture architecture = read_architecture(config, "config.json");
  const Checkpoint checkpoint("model", config, expected_tensors(architecture, DType::bf16));
  return run_sizes(options, architecture, checkpoint,
                   plan_quantization(options, architecture, checkpoint), backend);
}

std::int64_t peak(const RunSizes& run, const Teams& teams, const Places& places) {
  std::int64_t most = 0;
  for (const Phase& phase : memory_phases(run, teams, largest_share(run, teams), places))
    most = std::max(most, phase.total().device);
  return most;
}

TEST(MemoryPhases, HessianOfSevenBillionByHand) {
  const RunSizes run = sizes_of(llama_7b, "gptq");
  std::int64_t most = 0;
  for (const Phase& phase : memory_phases(run, {}, largest_share(run, {}), {}))
    if (phase.name.ends_with(": Hessian")) most = std::max(most, phase.total().device);
  const std::int64_t tokens = 128 * 2048;
  const std::int64_t activations = tokens * 2 * (4096 + 11008) + 16384 * 2 * 2 * 11008 + 4 * 11008;
  const std::int64_t layer = std::int64_t{2} * (4 * 4096 * 4096 + 3 * 4096 * 11008) + 2 * 2 * 4096;
  // The sum in five panels of 2048 columns and one of 768, each from its diagonal down.
  const std::int64_t sum = std::int64_t{2048} * (11008 + 8960 + 6912 + 4864 + 2816) + 768 * 768;
  const std::int64_t hessian =
      std::int64_t{4} * 11008 * 11008 + 8 * sum + 4 * 11008 * 2048 + 4 * 11008;
  EXPECT_EQ(most, activations + layer + hessian + library_device_bytes + 64 * 4 + 8 * 4 * 11008);
}

// Stream::bytes_peak of whole runs on an H100.
TEST(MemoryPhases, SevenBillionAsMeasured) {
  const auto predicted = [&](const char* method) {
    return static_cast<double>(peak(sizes_of(llama_7b, method), {}, {}) - library_device_bytes);
  };
  EXPECT_NEAR(predicted("gptq"), 10507342848.0, 1e6);
  EXPECT_NEAR(predicted("awq"), 10425311744.0, 1e6);
}

// The same for two layers of Llama-2-70B with places given, in GiB. 12.91 GiB were measured when a
// sum was a full square of 28672 columns, not panels from their diagonals down.
TEST(MemoryPhases, SeventyBillionAsMeasured) {
  nlohmann::json config = llama_70b;
  config["num_hidden_layers"] = 2;
  struct Measured {
    const char* method;
    Places places;
    double gib;
  };
  const auto at = [](Place hidden, Place input, bool by_step, std::int64_t columns, bool on_host) {
    Places places;
    places.hidden = hidden;
    places.input = input;
    places.weights_by_step = by_step;
    places.hessian_panel_columns = columns;
    places.hessian_on_host = on_host;
    return places;
  };
  for (const Measured& m :
       {Measured{"gptq", {}, 29.36},
        Measured{"gptq", at(Place::host, Place::host, true, 0, false),
                 12.91 - 8.0 * 381681664 / GiB},
        Measured{"gptq", at(Place::host, Place::host, true, 4096, true), 7.07},
        Measured{"awq", {}, 28.66},
        Measured{"awq", at(Place::host, Place::host, true, 2048, true), 7.23}}) {
    const double gib =
        static_cast<double>(peak(sizes_of(config, m.method), {}, m.places) - library_device_bytes) /
        GiB;
    EXPECT_NEAR(gib, m.gib, 0.1 * m.gib) << m.method << ": " << describe(m.places);
    std::printf("%s, %s: measured %.2f GiB, predicted %.2f GiB\n", m.method,
                describe(m.places).c_str(), m.gib, gib);
  }
}

TEST(MemoryPhases, EverySavingSaves) {
  const RunSizes run = sizes_of(llama_70b, "gptq");
  Places places;
  std::int64_t before = peak(run, {}, places);
  const auto saves = [&](auto change) {
    change(places);
    const std::int64_t now = peak(run, {}, places);
    EXPECT_LT(now, before);
    before = now;
  };
  saves([](Places& p) { p.input = Place::host; });
  saves([](Places& p) { p.hidden = Place::host; });
  saves([](Places& p) { p.hessian_panel_columns = 4096; });
  saves([](Places& p) { p.weights_by_step = true; });
  saves([](Places& p) { p.hessian_on_host = true; });
  const std::int64_t on_host = before;
  places.input = places.hidden = Place::disk;
  EXPECT_EQ(peak(run, {}, places), on_host);
}

const Phase& phase_named(const std::vector<Phase>& phases, const std::string& name) {
  return *std::find_if(phases.begin(), phases.end(),
                       [&](const Phase& phase) { return phase.name == name; });
}

TEST(MemoryPhases, ExpertsSideBySideByHand) {
  const RunSizes run = sizes_of(qwen3_moe(), "gptq");
  const auto factor = [&](int solvers, const Teams& teams) {
    Places places;
    places.solvers = solvers;
    return phase_named(memory_phases(run, teams, largest_share(run, teams), places),
                       "gate_proj: factor")
        .total()
        .device;
  };
  const std::int64_t d = 2048;
  const std::int64_t one = 4 * d * d + 8 * d + factor_workspace_bytes(d, 1);
  const std::int64_t solved = 2 * 768 * d + 2 * 768 * (d / 128) * 5;  // gate_proj and up_proj
  const std::int64_t queues = 8 * (std::int64_t{48} << 20);
  // Who solves a group packs it, too.
  EXPECT_NEAR(static_cast<double>(factor(8, {}) - factor(1, {})),
              static_cast<double>(7 * one + queues), 1e6);
  // Another rank needs the codes: beside eight in work sixteen wait, and sixteen are exchanged. One
  // solver gives each rank's group to the other at once.
  const Teams two{1, 2};
  EXPECT_NEAR(static_cast<double>(factor(8, two) - factor(1, two)),
              static_cast<double>(7 * one + (16 + 16 - 1) * solved + queues), 1e6);
}

TEST(MemoryPlan, ExpertsAreDealtToRanksAndQueues) {
  const RunSizes run = sizes_of(qwen3_moe(), "gptq");
  const auto experts =
      std::find_if(run.layer_kinds[0].steps.begin(), run.layer_kinds[0].steps.end(),
                   [](const StepSizes& step) { return step.groups == 128; });
  ASSERT_NE(experts, run.layer_kinds[0].steps.end());
  Places places;
  places.solvers = 8;
  EXPECT_EQ(groups_side_by_side(*experts, places, 1), 8);
  EXPECT_EQ(groups_side_by_side(*experts, places, 64), 2);   // a rank has two
  EXPECT_EQ(groups_side_by_side(*experts, places, 200), 1);  // or one
  places.groups_at_once = 4;
  EXPECT_EQ(groups_side_by_side(*experts, places, 1), 4);
  places.groups_at_once = 1;
  EXPECT_EQ(groups_side_by_side(*experts, places, 1), 0);  // all ranks work on it
  EXPECT_EQ(groups_side_by_side(run.layer_kinds[0].steps[0], Places{}, 1), 0);

  constexpr std::int64_t gib = std::int64_t{1} << 30;
  const MemoryPlan large = plan_memory(run, {}, {80 * gib, 400 * gib});
  EXPECT_EQ(large.places.solvers, 8);
  EXPECT_EQ(large.places.groups_at_once, 0);
  const MemoryPlan small = plan_memory(run, {}, {22 * gib, 400 * gib});
  EXPECT_TRUE(small.fits);
  EXPECT_EQ(small.places.solvers, 8);
  std::int64_t solvers = 8;
  for (std::int64_t tenths = 80; tenths > 0; --tenths) {
    const MemoryPlan plan = plan_memory(run, {}, {tenths * gib / 10, 400 * gib});
    if (!plan.fits) break;
    solvers = std::min<std::int64_t>(solvers, plan.places.solvers);
  }
  EXPECT_LE(solvers, 2);  // before it no longer fits
}

TEST(MemoryPlan, LargeModelsFitSmallCards) {
  struct Example {
    nlohmann::json config;
    const char* method;
    Teams teams;
    std::int64_t device;
    std::int64_t micro_batch;
  };
  for (const Example& e : {Example{llama_405b, "gptq", {1, 8}, 24 * GiB, 16384},
                           Example{llama_405b, "awq", {8, 1}, 24 * GiB, 8192},
                           Example{llama_405b, "bnb-nf4", {1, 8}, 24 * GiB, 16384},
                           Example{llama_70b, "gptq", {1, 1}, 22 * GiB, 16384},
                           Example{llama_70b, "awq", {1, 1}, 22 * GiB, 16384},
                           Example{llama_7b, "gptq", {1, 1}, 8 * GiB, 16384},
                           Example{llama_7b, "awq", {1, 1}, 8 * GiB, 16384},
                           Example{llama_7b, "gptq", {1, 1}, 80 * GiB, 16384}}) {
    const RunSizes run = sizes_of(e.config, e.method, e.micro_batch);
    const MemoryPlan plan = plan_memory(run, e.teams, {e.device, no_limit});
    ASSERT_TRUE(plan.fits) << e.method << ": "
                           << does_not_fit(run, e.teams, {e.device, no_limit}, plan);
    EXPECT_LE(plan.device_peak().total().device, e.device);
    EXPECT_EQ(plan.device_peak().total().device, peak(run, e.teams, plan.places));
    // One H and its factor, or one H and its 64-bit sum, are there at once or by panels: less than
    // the factor alone is not possible.
    const std::int64_t d = run.widest_input;
    if (run.calibrates()) {
      EXPECT_GE(plan.device_peak().total().device, 4 * d * d);
    }
  }
}

// Kimi-K2's experts with plain attention, 384 of 7168 x 2048: a step's weights alone are larger
// than the card.
TEST(MemoryPlan, AStepOfMoreThanTheCard) {
  nlohmann::json config = qwen3_moe();
  config.update({{"hidden_size", 7168},
                 {"num_experts", 384},
                 {"moe_intermediate_size", 2048},
                 {"num_attention_heads", 64},
                 {"num_key_value_heads", 8},
                 {"num_hidden_layers", 3}});
  const RunSizes run = sizes_of(config, "gptq");
  for (const Teams& teams : {Teams{1, 1}, Teams{1, 8}}) {
    const MemoryPlan plan = plan_memory(run, teams, {22 * GiB, no_limit});
    ASSERT_TRUE(plan.fits) << does_not_fit(run, teams, {22 * GiB, no_limit}, plan);
    EXPECT_TRUE(plan.places.weights_by_step);
    EXPECT_GE(plan.places.experts_at_once, 48);
    EXPECT_LE(plan.device_peak().total().device, 22 * GiB);
    Places all = plan.places;
    all.experts_at_once = 0;
    EXPECT_GT(peak(run, teams, all), 22 * GiB);
  }
}

TEST(MemoryPlan, RefusalsTellTheNumbers) {
  const RunSizes run = sizes_of(llama_70b, "gptq");
  const Budget budget{1 * GiB, no_limit};
  const MemoryPlan plan = plan_memory(run, {}, budget);
  EXPECT_FALSE(plan.fits);
  const std::string message = does_not_fit(run, {}, budget, plan);
  EXPECT_EQ(message.find('\n'), std::string::npos);
  for (const char* part :
       {"memory.gpu is 1.00 GiB", "down_proj", "Cholesky factors 3.06 GiB", "or give more memory"})
    EXPECT_NE(message.find(part), std::string::npos) << part << " in " << message;
  EXPECT_EQ(message.find("micro_batch ="), std::string::npos) << message;

  // A smaller block is enough: 405B with AWQ.
  const RunSizes large = sizes_of(llama_405b, "awq");
  const Budget card{21 * GiB, no_limit};
  const std::string refused = does_not_fit(large, {8, 1}, card, plan_memory(large, {8, 1}, card));
  ASSERT_NE(refused.find("memory.micro_batch = "), std::string::npos) << refused;
  const std::int64_t advised = std::stoll(refused.substr(refused.find("micro_batch = ") + 14));
  EXPECT_LT(advised, large.micro_batch);
  EXPECT_TRUE(plan_memory(sizes_of(llama_405b, "awq", advised), {8, 1}, card).fits) << advised;

  // The host is too small: for all on disk, too.
  const Budget small_host{22 * GiB, 2 * GiB};
  const MemoryPlan no_host = plan_memory(run, {}, small_host);
  EXPECT_FALSE(no_host.fits);
  EXPECT_NE(does_not_fit(run, {}, small_host, no_host).find("memory.host is 2.00 GiB"),
            std::string::npos);
  EXPECT_FALSE(no_host.places.hessian_on_host);  // which would take more
}

TEST(MemoryPlan, SmallerBudgetsMoveMoreAway) {
  const RunSizes run = sizes_of(llama_70b, "gptq", 4096);
  const auto away = [](const Places& p) {
    return (p.input != Place::device) + (p.hidden != Place::device) +
           (p.hessian_panel_columns > 0) + p.weights_by_step + p.hessian_on_host;
  };
  EXPECT_EQ(describe(plan_memory(run, {}, {no_limit, no_limit}).places), "all on the device");
  int before = 0;
  for (std::int64_t budget = 40 * GiB; budget > 0; budget -= GiB) {
    const MemoryPlan plan = plan_memory(run, {}, {budget, no_limit});
    if (!plan.fits) {
      EXPECT_LT(budget, plan.least_device);
      continue;
    }
    EXPECT_LE(plan.device_peak().total().device, budget);
    EXPECT_GE(budget, plan.least_device);
    // Nothing is away that could be back.
    for (const auto& back :
         std::vector<void (*)(Places&)>{[](Places& p) { p.input = Place::device; },
                                        [](Places& p) { p.hidden = Place::device; },
                                        [](Places& p) { p.hessian_panel_columns = 0; },
                                        [](Places& p) { p.weights_by_step = false; },
                                        [](Places& p) { p.hessian_on_host = false; }}) {
      Places other = plan.places;
      back(other);
      if (away(other) < away(plan.places)) {
        EXPECT_GT(peak(run, {}, other), budget);
      }
    }
    before = std::max(before, away(plan.places));
  }
  EXPECT_GE(before, 4);
}

TEST(MemoryPlan, DiskInPlaceOfASmallHost) {
  const RunSizes run = sizes_of(llama_70b, "gptq");
  const Budget large{22 * GiB, no_limit};
  const Budget small{22 * GiB, 12 * GiB};
  EXPECT_EQ(plan_memory(run, {}, large).places.input, Place::host);
  EXPECT_EQ(plan_memory(run, {}, large).disk_bytes(), 0);
  const MemoryPlan plan = plan_memory(run, {}, small);
  ASSERT_TRUE(plan.fits);
  EXPECT_EQ(plan.places.input, Place::disk);
  EXPECT_GE(plan.disk_bytes(), std::int64_t{128} * 2048 * 28672 * 2);
  EXPECT_LE(plan.host_peak().total().host, small.host);
}

TEST(MemoryPlan, DeviceAndHostOfTheCpuBackendAreOneMemory) {
  const RunSizes run = sizes_of(llama_7b, "gptq", 16384, Backend::cpu);
  const std::int64_t all = peak(run, {}, {});
  EXPECT_TRUE(plan_memory(run, {}, {all, all, false}).fits);
  const MemoryPlan plan = plan_memory(run, {}, {all, all, true});
  if (plan.fits) {
    EXPECT_NE(plan.places.input, Place::device);
  }
}

TEST(MemoryPlan, LargestMicroBatch) {
  const RunSizes run = sizes_of(llama_70b, "gptq");
  const Budget budget{22 * GiB, no_limit};
  const Places places = plan_memory(run, {}, budget).places;
  const std::int64_t largest = largest_micro_batch(run, {}, budget, &places);
  EXPECT_GE(largest, run.micro_batch);
  for (const auto& [tokens, holds] : {std::pair{largest, true}, {largest + run.seqlen, false}}) {
    RunSizes other = run;
    other.micro_batch = tokens;
    EXPECT_EQ(peak(other, {}, places) <= budget.device, holds) << tokens;
  }
  EXPECT_EQ(largest_micro_batch(run, {}, {GiB, no_limit}, nullptr), 0);
}

TEST(MemoryPlan, MoreRanksInATeamNeedLessOnEach) {
  const RunSizes run = sizes_of(llama_70b, "gptq");
  EXPECT_LT(peak(run, {1, 8}, {}), peak(run, {1, 2}, {}));
  EXPECT_LT(peak(run, {1, 2}, {}), peak(run, {1, 1}, {}));
  EXPECT_EQ(peak(run, {8, 1}, {}), peak(run, {1, 1}, {}));
  const RunSizes awq = sizes_of(llama_70b, "awq");  // the first team has two layers' inputs
  EXPECT_EQ(peak(awq, {8, 1}, {}), peak(awq, {1, 1}, {}) + std::int64_t{128} * 2048 * 8192 * 2);
  EXPECT_EQ(largest_share(run, {1, 3}), 6);  // 16 blocks
}

// In a ring the inputs of all steps are kept where there is room, else those of one step, as
// without a ring.
TEST(MemoryPlan, ARingKeepsStepInputsWhereTheyFit) {
  const RunSizes run = sizes_of(llama_70b, "awq");
  const Teams ring{8, 1};
  EXPECT_FALSE(plan_memory(run, {}, {no_limit, no_limit}).places.inputs_kept);
  const MemoryPlan large = plan_memory(run, ring, {79 * GiB, no_limit});
  EXPECT_TRUE(large.places.inputs_kept);
  Places made_anew;
  EXPECT_LT(peak(run, ring, made_anew), large.device_peak().total().device);
  Places kept;
  kept.inputs_kept = true;
  std::int64_t inputs = 0;
  const std::vector<Phase> phases = memory_phases(run, ring, largest_share(run, ring), kept);
  for (const Use& use : phases.back().uses)
    if (use.purpose == "step inputs") inputs = use.device;
  EXPECT_EQ(inputs, (std::int64_t{128} * 2048 * 2 + 4) * (3 * 8192 + 28672));
  const MemoryPlan small = plan_memory(run, ring, {22 * GiB, no_limit});
  EXPECT_TRUE(small.fits);
  EXPECT_FALSE(small.places.inputs_kept);
}

TEST(Teams, TeamsByPropagation) {
  EXPECT_EQ(teams_of_run(8, 0, sizes_of(llama_7b, "gptq")).teams, 1);
  EXPECT_EQ(teams_of_run(8, 0, sizes_of(llama_7b, "awq")).teams, 8);
  EXPECT_EQ(teams_of_run(48, 0, sizes_of(llama_7b, "awq")).teams, 24);  // of 32 layers
  EXPECT_EQ(teams_of_run(8, 2, sizes_of(llama_7b, "awq")).ranks_of_team, 4);
  EXPECT_THROW(teams_of_run(8, 3, sizes_of(llama_7b, "awq")), UserError);
}

TEST(Traffic, ByHand) {
  const RunSizes run = sizes_of(llama_7b, "gptq");
  EXPECT_TRUE(traffic(run, {1, 1}, {}).empty());
  const std::vector<Traffic> two = traffic(run, {1, 2}, {});
  const auto bytes = [&](const std::string& purpose) {
    for (const Traffic& t : two)
      if (t.purpose == purpose) return t.bytes;
    return std::int64_t{-1};
  };
  const std::int64_t panels = std::int64_t{3} * 2048 * (4096 + 2048) +
                              2048 * (11008 + 8960 + 6912 + 4864 + 2816) + 768 * 768;
  EXPECT_EQ(bytes("sums of Hessians"), 32 * 8 * panels);
  // 11008 columns: panels of half of the square, as both ranks factor together.
  EXPECT_EQ(bytes("Cholesky factors"),
            std::int64_t{32} * (4 * 3 * 4096 * (4096 + 1) + 2 * 11008 * 11008) / 2);
  EXPECT_EQ(bytes("weights"),
            std::int64_t{32} * (2 * (4 * 4096 * 4096 + 3 * 4096 * 11008) + 2 * 2 * 4096) / 2);
  const std::vector<Traffic> ring = traffic(sizes_of(llama_7b, "awq"), {8, 1}, {});
  ASSERT_EQ(ring.size(), 1u);
  EXPECT_EQ(ring.front().bytes,
            std::int64_t{4} * 128 * 2048 * 4096 * 2);  // 4 layers of a rank, all samples
}

// docs/performance.md: seconds of 8 layers' phases on one H100.
TEST(RunTime, PhasesAsMeasured) {
  nlohmann::json config = llama_7b;
  config["num_hidden_layers"] = 8;
  const RunTime time = run_time(sizes_of(config, "gptq"), {}, {}, 1, {});
  const auto seconds = [&](const std::string& name) {
    for (const PhaseTime& phase : time.phases)
      if (phase.name == name) return phase.seconds;
    return 0.0;
  };
  EXPECT_NEAR(seconds("forward"), 1.44, 0.1);
  EXPECT_NEAR(seconds("Hessians"), 0.87, 0.05);
  EXPECT_NEAR(seconds("factors and codes"), 0.65, 0.05);
  config["num_hidden_layers"] = 4;
  double search = 0.0;
  for (const PhaseTime& phase : run_time(sizes_of(config, "awq"), {}, {}, 1, {}).phases)
    if (phase.name == "AWQ's search") search = phase.seconds;
  EXPECT_NEAR(search, 2.46, 0.3);
}

double phase_of(const RunTime& time, const std::string& name) {
  for (const PhaseTime& phase : time.phases)
    if (phase.name == name) return phase.seconds;
  return 0.0;
}

// What a team divides, and what it does not.
TEST(RunTime, ATeamSharesTokensAndRows) {
  const RunSizes run = sizes_of(llama_7b, "gptq");
  const RunTime one = run_time(run, {1, 1}, {}, 1, {});
  const RunTime eight = run_time(run, {1, 8}, {}, 1, {});
  EXPECT_NEAR(phase_of(eight, "forward"), phase_of(one, "forward") / 8, 1e-9);
  EXPECT_NEAR(phase_of(eight, "Hessians"), phase_of(one, "Hessians") / 8, 1e-9);
  EXPECT_EQ(phase_of(eight, "start"), phase_of(one, "start"));
  // Columns one after another, for one factor and one sweep of each step: 3 of 4096 columns and one
  // of 11008.
  const Rates rates;
  const double columns = 32 * (3 * 4096 + 11008);
  const double small = 32 * 3 * std::pow(4096.0, 3) / 3 / rates.factor;  // factors of one rank
  const double large = 32 * std::pow(11008.0, 3) / 3 / rates.factor;     // a factor of all
  const double latency = columns * (rates.factor_column + rates.sweep_column) + small;
  const double products =
      32 *
      (4.0 * std::pow(4096.0, 3) + 2 * 11008 * std::pow(4096.0, 2) + 4096 * std::pow(11008.0, 2)) /
      rates.sweep;
  EXPECT_NEAR(phase_of(one, "factors and codes"), latency + large + products, 1e-6);
  EXPECT_NEAR(phase_of(eight, "factors and codes"), latency + (large + products) / 8, 1e-6);
  // docs/performance.md: factors of 8192 and 28672 columns.
  EXPECT_NEAR(std::pow(8192.0, 3) / 3 / rates.factor + 8192 * rates.factor_column, 5.65e-3, 1e-4);
  EXPECT_NEAR(std::pow(28672.0, 3) / 3 / rates.factor + 28672 * rates.factor_column, 77.2e-3, 2e-3);
}

// Experts' columns wait side by side, and ranks have experts of their own.
TEST(RunTime, ExpertsSideBySide) {
  const RunSizes run = sizes_of(qwen3_moe(), "gptq");
  const auto seconds = [&](int solvers, int ranks) {
    Places places;
    places.solvers = solvers;
    return phase_of(run_time(run, {1, ranks}, places, 1, {}), "factors and codes");
  };
  const Rates rates;
  const double waits = 48 * 128 * (2048 + 768) * (rates.factor_column + rates.sweep_column);
  EXPECT_NEAR(seconds(1, 1) - seconds(8, 1), waits * 7 / 8, 1e-6);
  const double attention =
      48 * (2048 + 4096) * (rates.factor_column + rates.sweep_column);  // not divided
  EXPECT_LT(seconds(8, 2), seconds(8, 1) / 2 + attention);
  EXPECT_GT(seconds(8, 2), seconds(8, 1) / 2);
}

// 32 layers in rounds of P: 16 blocks go through a round's pipeline in 16 + 2 (P − 1) steps, and
// each layer runs once more by itself.
TEST(RunTime, ARingFillsAndMayLeaveTeamsWithoutALayer) {
  const RunSizes run = sizes_of(llama_7b, "awq");
  Places kept;
  const auto forward = [&](int teams) {
    return phase_of(run_time(run, {teams, 1}, kept, 1, {}), "forward");
  };
  const double pass = forward(1) / 32;
  EXPECT_NEAR(forward(8), 4 * pass * (1 + (16 + 2.0 * 7) / 16), 1e-9);
  EXPECT_NEAR(forward(32), pass * (1 + (16 + 2.0 * 31) / 16), 1e-9);
  EXPECT_NEAR(forward(24), 2 * pass * (1 + (16 + 2.0 * 23) / 16),
              1e-9);  // as many rounds as with 16 teams
  kept.inputs_kept = true;
  EXPECT_NEAR(forward(8), 4 * pass * (16 + 2.0 * 7) / 16, 1e-9);
  const auto search = [&](int teams) {
    return phase_of(run_time(run, {teams, 1}, {}, 1, {}), "AWQ's search");
  };
  EXPECT_EQ(search(24), search(16));
}

TEST(RunTime, RanksAndCards) {
  const RunSizes run = sizes_of(llama_70b, "gptq");
  const double one = run_time(run, {1, 1}, {}, 1, {}).total;
  EXPECT_LT(run_time(run, {1, 8}, {}, 1, {}).total, one);
  EXPECT_GT(run_time(run, {1, 1}, {}, 1, scaled_to(100.0, {})).total, one);
  Places offloaded;
  offloaded.input = Place::host;
  EXPECT_GT(run_time(run, {1, 1}, offloaded, 1, {}).total, one);
}

}  // namespace
}  // namespace qpipe
