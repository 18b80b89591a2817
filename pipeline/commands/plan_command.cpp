#include "pipeline/commands/plan_command.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <optional>

#include "launch/share.h"
#include "pipeline/files/error.h"
#include "pipeline/files/json_text.h"
#include "pipeline/files/terminal.h"
#include "pipeline/files/user_output.h"
#include "pipeline/model/model.h"
#include "pipeline/options/sizes.h"
#include "pipeline/output/folder.h"
#include "pipeline/output/shard_plan.h"
#include "pipeline/plan/memory_plan.h"
#include "pipeline/plan/plan.h"
#include "pipeline/plan/run_estimate.h"
#include "pipeline/prepare.h"

namespace qpipe {

namespace {

namespace fs = std::filesystem;

bool has_weights(const fs::path& folder) {
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
    if (it->path().string().find(".safetensors") != std::string::npos) return true;
  return false;
}

// The type that config.json names, bfloat16 where it names none that is known.
DType expected_dtype(const nlohmann::json& config) {
  for (const char* key : {"torch_dtype", "dtype"}) {
    const std::string name =
        config.contains(key) && config[key].is_string() ? config[key].get<std::string>() : "";
    if (name == "float16") return DType::f16;
    if (name == "float32") return DType::f32;
  }
  return DType::bf16;
}

Checkpoint open_checkpoint(const fs::path& folder, std::vector<std::string>& notes) {
  if (has_weights(folder) || !fs::exists(folder / "config.json")) return Checkpoint(folder);
  const fs::path path = folder / "config.json";
  nlohmann::json config = read_json_object(path);
  const DType dtype = expected_dtype(config);
  notes.push_back(
      fmt::format("{} has no safetensors yet: planned from config.json, with {} weights",
                  folder.string(), name_of(dtype)));
  const auto tensors = expected_tensors(read_architecture(config, path.string()), dtype);
  return {folder, std::move(config), tensors};
}

Rates rates_of(const PlanRequest& request) {
  Rates rates;
  if (request.tflops > 0.0) rates = scaled_to(request.tflops, rates);
  for (const std::string& text : request.rates) {
    const std::size_t equals = std::min(text.find('='), text.size());
    char* end = nullptr;
    const double value = equals < text.size() ? std::strtod(text.c_str() + equals + 1, &end) : 0.0;
    bool known = false;
    visit_rates(rates, [&](const std::string& name, double& rate, double unit, const char*) {
      if (text.substr(0, equals) != name) return;
      known = true;
      rate = value * unit;
    });
    if (!known || end == nullptr || *end != '\0' || !(value > 0.0) || !std::isfinite(value))
      throw UserError(ExitCode::usage, fmt::format("--rate {}: write NAME=NUMBER with a name of {}",
                                                   text, rates_help()));
  }
  return rates;
}

Budget budget_of(const PlanRequest& request, Backend backend, int ranks_of_machine) {
  const Options::Memory& memory = request.options.memory;
  const auto size = [](const std::string& text) {
    return text.empty() || text == "auto" ? INT64_MAX : parse_size(text);
  };
  Budget budget;
  budget.device = size(request.gpu_memory.empty() ? memory.gpu : request.gpu_memory);
  budget.host = request.host_memory.empty() ? size(memory.host)
                                            : parse_size(request.host_memory) / ranks_of_machine;
  budget.one_memory = backend == Backend::cpu && budget.host != INT64_MAX;
  return budget;
}

struct Answer {
  const RunSizes& run;
  Teams teams;
  int ranks_of_machine = 1;
  Budget budget;
  MemoryPlan memory;
  std::int64_t micro_batch = 0;  // the largest that fits
  std::vector<Traffic> sent;
  std::optional<RunTime> time;  // rates are those of GPUs
};

std::string limit(std::int64_t bytes) {
  return bytes == INT64_MAX ? "not limited" : size_text(bytes);
}
std::string seconds_text(double s) {
  return s < 90.0     ? fmt::format("{:.1f} s", s)
         : s < 5400.0 ? fmt::format("{:.1f} min", s / 60.0)
                      : fmt::format("{:.1f} h", s / 3600.0);
}
std::string amount(std::int64_t bytes) { return bytes == 0 ? "-" : size_text(bytes); }

void print_phase(const char* title, const Phase& phase) {
  constexpr const char* row = "  {:<42}{:>13}{:>13}{:>13}\n";
  print_result("{} (\"{}\")\n", title, phase.name);
  print_result(row, "", "GPU", "host", "disk");
  for (const Use& use : phase.uses)
    if (use.device + use.host + use.disk > 0)
      print_result(row, use.purpose, amount(use.device), amount(use.host), amount(use.disk));
  const Use total = phase.total();
  print_result(row, "total", amount(total.device), amount(total.host), amount(total.disk));
}

// Ranks of a team differ by a block of samples at most.
void print_smaller_share(const Answer& a) {
  const std::int64_t blocks = largest_share(a.run, a.teams);
  const int team = a.teams.ranks_of_team;
  const std::int64_t least = contiguous_share(a.run.blocking().blocks(), team - 1, team).count;
  if (!a.run.calibrates() || least == blocks) return;
  std::int64_t device = 0;
  std::int64_t host = 0;
  for (const Phase& phase : memory_phases(a.run, a.teams, least, a.memory.places)) {
    device = std::max(device, phase.total().device);
    host = std::max(host, phase.total().host);
  }
  print_result("  ranks with {} in place of {} blocks of samples: {} GPU, {} host\n", least, blocks,
               size_text(device), size_text(host));
}

void print(const Answer& a) {
  const Phase& device = a.memory.device_peak();
  const Phase& host = a.memory.host_peak();
  print_phase("Memory of a rank at its peak", device);
  if (host.name != device.name && host.total().host > device.total().host)
    print_result("  host memory at its peak (\"{}\"): {}\n", host.name,
                 size_text(host.total().host));
  print_smaller_share(a);
  if (a.ranks_of_machine > 1)
    print_result("  host memory of a machine with {} ranks: {} at most\n", a.ranks_of_machine,
                 size_text(host.total().host * a.ranks_of_machine));
  print_result("  places: {}\n", describe(a.memory.places));
  print_result("\nDisk: output {}; run folder {}\n", size_text(a.run.output_bytes),
               size_text(a.memory.disk_bytes() * a.teams.ranks()));

  if (!a.sent.empty()) {
    print_result("\nSent by a rank in the whole run\n");
    for (const Traffic& t : a.sent) print_result("  {:<42}{:>13}\n", t.purpose, size_text(t.bytes));
  }
  if (a.time) {
    print_result("\nTime, as estimated\n");
    for (const PhaseTime& phase : a.time->phases)
      print_result("  {:<42}{:>13}\n", phase.name, seconds_text(phase.seconds));
    constexpr const char* row = "  {:<42}{:>13}\n";
    print_result(row, "reading, in the background", seconds_text(a.time->read));
    print_result(row, "writing, in the background", seconds_text(a.time->write));
    print_result(row, "total", seconds_text(a.time->total));
  }
  if (a.run.calibrates())
    print_result("\nLargest memory.micro_batch that fits {}: {} tokens (set: {})\n",
                 a.memory.fits ? "with these places" : "at all", a.micro_batch, a.run.micro_batch);
}

nlohmann::json as_json(const Use& use) {
  return {{"purpose", use.purpose}, {"gpu", use.device}, {"host", use.host}, {"disk", use.disk}};
}

nlohmann::json as_json(const Answer& a) {
  const auto size = [](std::int64_t bytes) {
    return bytes == INT64_MAX ? nlohmann::json() : nlohmann::json(bytes);
  };
  const auto place = [](Place p) {
    return p == Place::device ? "gpu" : p == Place::host ? "host" : "disk";
  };
  const Places& p = a.memory.places;
  nlohmann::json json{
      {"fits", a.memory.fits},
      {"ranks", a.teams.ranks()},
      {"teams", a.teams.teams},
      {"budget_bytes", {{"gpu", size(a.budget.device)}, {"host", size(a.budget.host)}}},
      {"peak_bytes",
       {{"gpu", a.memory.device_peak().total().device},
        {"host", a.memory.host_peak().total().host}}},
      {"peak_phase", a.memory.device_peak().name},
      {"least_gpu_bytes", a.memory.least_device},
      {"places",
       {{"hidden", place(p.hidden)},
        {"input", place(p.input)},
        {"inputs_kept", p.inputs_kept},
        {"weights_by_step", p.weights_by_step},
        {"experts_at_once", p.experts_at_once},
        {"groups_at_once", p.groups_at_once},
        {"solvers", p.solvers},
        {"hessian_panel_columns", p.hessian_panel_columns},
        {"hessian_on_host", p.hessian_on_host}}},
      {"output_bytes", a.run.output_bytes},
      {"run_folder_bytes", a.memory.disk_bytes() * a.teams.ranks()},
      {"largest_micro_batch", a.micro_batch}};
  for (const Phase& phase : a.memory.phases) {
    nlohmann::json& entry = json["phases"].emplace_back(nlohmann::json{{"name", phase.name}});
    for (const Use& use : phase.uses) entry["uses"].push_back(as_json(use));
  }
  for (const Traffic& t : a.sent) json["sent_bytes"][t.purpose] = t.bytes;
  if (a.time) {
    for (const PhaseTime& phase : a.time->phases) json["seconds"][phase.name] = phase.seconds;
    json["seconds"]["reading, in the background"] = a.time->read;
    json["seconds"]["writing, in the background"] = a.time->write;
    json["seconds"]["total"] = a.time->total;
  }
  return json;
}

std::string verdict(const Answer& a) {
  const std::int64_t device = a.memory.device_peak().total().device;
  const std::int64_t host = a.memory.host_peak().total().host;
  std::string text =
      a.budget.device == INT64_MAX
          ? fmt::format(
                "needs {} of GPU memory on each rank, {} at least; give --gpu-memory to decide",
                size_text(device), size_text(a.memory.least_device))
          : fmt::format("fits: {} of {} GPU memory on each rank", size_text(device),
                        size_text(a.budget.device));
  return text + fmt::format(", {} of host memory{}", size_text(host),
                            a.budget.host == INT64_MAX ? "" : " of " + size_text(a.budget.host));
}

}  // namespace

std::string rates_help() {
  std::vector<std::string> texts;
  Rates defaults;
  visit_rates(defaults, [&](const char* name, double rate, double unit, const char* help) {
    texts.push_back(fmt::format("{}={:g} {}", name, rate / unit, help));
  });
  return fmt::format("{}", fmt::join(texts, ", "));
}

int run_plan(const PlanRequest& request) {
  const Options& options = request.options;
  std::vector<std::string> notes;
  Checkpoint source = open_checkpoint(options.model.path, notes);
  const Architecture architecture = read_original(source);
  const QuantizePlan plan = plan_quantization(options, architecture, source);
  if (plan.calibrates()) check_sequence_length(architecture, options.calibration.seqlen);
  const Backend backend = options.parallel.backend == "cpu" ? Backend::cpu : Backend::cuda;
  const RunSizes run = run_sizes(options, architecture, source, plan, backend);
  const Teams teams =
      teams_of_run(request.ranks, request.teams > 0 ? request.teams : options.parallel.teams, run);
  const int ranks_of_machine =
      request.ranks_per_node > 0 ? std::min(request.ranks_per_node, request.ranks) : request.ranks;
  const int machines = (request.ranks + ranks_of_machine - 1) / ranks_of_machine;
  const Budget budget = budget_of(request, backend, ranks_of_machine);
  const Rates rates = rates_of(request);

  Answer answer{run, teams, ranks_of_machine, budget, plan_memory(run, teams, budget), 0, {}, {}};
  answer.sent = traffic(run, teams, answer.memory.places);
  if (run.calibrates())
    answer.micro_batch = largest_micro_batch(run, teams, budget,
                                             answer.memory.fits ? &answer.memory.places : nullptr);
  if (backend == Backend::cuda)
    answer.time = run_time(run, teams, answer.memory.places, machines, rates);
  if (!options.evaluate.data.empty() && options.evaluate.samples == 0)
    notes.emplace_back(
        "evaluate.samples = 0: the evaluation is not counted, as its data are not read here");

  for (const std::string& note : notes) print_result("note: {}\n", note);
  print_result("{} ({}, {} layers), {} as {}, {:.3f} bits per weight\n", model_name(source),
               architecture.model_type, architecture.layers, options.quantize.method,
               name_of(plan.storage.format), plan.bits_per_weight);
  print_result(
      "{} rank(s): {} team(s) of {}, {} machine(s); GPU memory of a rank {}, host memory of a rank "
      "{}\n\n",
      teams.ranks(), teams.teams, teams.ranks_of_team, machines, limit(budget.device),
      limit(budget.host));
  print(answer);
  if (!request.json.empty()) write_user_output(request.json, to_json_text(as_json(answer)));
  finish_results();
  if (!answer.memory.fits)
    throw UserError(ExitCode::config, does_not_fit(run, teams, budget, answer.memory));
  print_result("\n{}\n", verdict(answer));
  return static_cast<int>(ExitCode::ok);
}

}  // namespace qpipe
