#include "pipeline/prepare.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "pipeline/data/default_mix.h"
#include "pipeline/data/tokens_on_ranks.h"
#include "pipeline/evaluate.h"
#include "pipeline/files/agree.h"
#include "pipeline/files/error.h"
#include "pipeline/files/json_text.h"
#include "pipeline/files/user_output.h"
#include "pipeline/files/user_path.h"
#include "pipeline/journal/build_identity.h"
#include "pipeline/journal/run_identity.h"
#include "pipeline/model/dequantized.h"
#include "pipeline/model/model.h"
#include "pipeline/options/sizes.h"
#include "pipeline/plan/memory_check.h"
#include "stages/load_kernels.h"

namespace qpipe {

namespace {

QuantizePlan checked_plan(const Options& options, const Architecture& architecture,
                          const Checkpoint& source) {
  QuantizePlan plan = plan_quantization(options, architecture, source);
  if (!plan.calibrates()) return plan;
  if (options.calibration.data.empty() && options.calibration.mix.empty())
    plan.notes.push_back(
        "calibration.data is not set: prose, code and chats that qpipe ships are taken");
  check_sequence_length(architecture, options.calibration.seqlen);
  if (options.calibration.seqlen > architecture.max_positions)
    plan.notes.push_back(fmt::format(
        "calibration.seqlen = {} is beyond the model's max_position_embeddings = {}: the samples "
        "are longer than what it was trained for",
        options.calibration.seqlen, architecture.max_positions));
  return plan;
}

Placement take_place(const Options::Parallel& options) {
  spdlog::debug("the checkpoint's headers are read and checked");
  const Placement placement = place_rank(options.backend, options.share_gpu);
  set_cpu_threads(options.threads, placement.local_ranks);
  check_address_space();
  return placement;
}

std::string counted(int count, const char* what) {
  return fmt::format("{} {}{}", count, what, count == 1 ? "" : "s");
}

void say_what_is_planned(Run& run) {
  const QuantizePlan& plan = run.plan;
  run.progress.say(
      fmt::format("qpipe {}: {} ({}, {} layers), {} as {}, {:.3f} bits per weight, {} on {}",
                  QPIPE_VERSION, run.report.model, run.architecture.model_type,
                  run.architecture.layers, run.report.method, name_of(plan.storage.format),
                  plan.bits_per_weight, counted(run.comm.size(), "rank"), run.report.device));
  if (plan.calibrates() && run.teams.teams > 1) {
    run.progress.say(fmt::format("{} teams of {} in a ring", run.teams.teams,
                                 counted(run.teams.ranks_of_team, "rank")));
    if (plan.quantized_propagation)
      run.progress.say(
          "note: with propagate = quantized a layer waits for the one before it, so that one team "
          "works at a time; parallel.teams = 1 is faster");
  }
  for (const std::string& note : plan.notes) run.progress.say("note: " + note);
}

// What [calibration] and [evaluate] have in common.
template <class Section>
DatasetRequest dataset_request(const Section& section, const Run& run) {
  DatasetRequest request;
  request.data = section.data;
  request.dataset = section.dataset;
  request.text_field = section.text_field;
  request.samples = section.samples;
  request.seqlen = section.seqlen;
  request.tokenizer = run.options.model.path;
  request.cache = run.options.calibration.cache;
  request.vocab = run.architecture.vocab;
  return request;
}

// [calibration], or its mix, or the one that qpipe ships.
std::vector<MixPart> calibration_parts(const Run& run) {
  const Options::Calibration& options = run.options.calibration;
  DatasetRequest request = dataset_request(options, run);
  request.mode = options.mode;
  request.seed = options.seed;
  std::vector<MixPart> parts;
  const auto add = [&](const std::filesystem::path& data, double share) -> DatasetRequest& {
    parts.push_back({request, share == 0.0 ? 1.0 : share});
    parts.back().request.data = data;
    return parts.back().request;
  };
  for (const MixEntry& entry : options.mix) {
    DatasetRequest& part = add(entry.data, entry.share);
    if (!entry.text_field.empty()) part.text_field = entry.text_field;
    if (!entry.dataset.empty()) part.dataset = entry.dataset;
  }
  if (!parts.empty()) return parts;
  if (!options.data.empty()) {
    add(options.data, 1.0);
  } else {
    for (const MixFile& file : default_mix(run.options.model.path)) add(file.data, file.share);
  }
  return parts;
}

// What data are named in reports and cards by: the files, not where they lie.
std::string without_folder(std::string source, const std::filesystem::path& path) {
  const std::string folder = (path.parent_path() / "").string();
  if (path.has_parent_path())
    for (std::size_t at; (at = source.find(folder)) != std::string::npos;)
      source.erase(at, folder.size());
  return source;
}

// In the background: what the first layer would wait for otherwise. The packed tensors of a layer
// leave through page-locked memory.
std::future<void> load_kernels_early(const Run& run) {
  constexpr std::int64_t room_for_tables = std::int64_t{64} << 20;
  return std::async(std::launch::async, [&run, blocking = run.sizes.blocking()] {
    load_kernels(
        run.architecture, blocking, run.stream.backend(), run.stream.device(),
        static_cast<std::size_t>(load_kernels_bytes(run.architecture, blocking) + room_for_tables));
    std::vector<HostBuffer> packed;
    for (const TensorInfo& info : run.plan.tensors)
      if (info.name.starts_with(layer_prefix(run.architecture, 0)))
        packed.emplace_back(static_cast<std::size_t>(info.bytes()), run.stream);
  });
}

Schedule make_schedule(const Run& run, const FinishedLayers& finished) {
  Schedule schedule{run.teams, run.teams.team_of_rank(run.comm.rank()), run.plan.calibrates(),
                    run.plan.quantized_propagation,
                    std::vector<bool>(static_cast<std::size_t>(run.architecture.layers))};
  for (const auto& [layer, parts] : finished)
    schedule.finished.at(static_cast<std::size_t>(layer)) = true;
  return schedule;
}

void make_first_input(const Run& run, Opened& open, Stream& stream) {
  const Blocking blocking =
      cut_samples(run.calibration.samples, run.calibration.seqlen, run.options.memory.micro_batch);
  open.activations = make_activations(run.architecture, blocking, open.team.rank(),
                                      open.team.size(), run.plan.places, stream);
  if (run.plan.original_target)
    open.original =
        make_activations_beside(run.architecture, open.activations, run.plan.places, stream);
  open.tables = make_tables(run.architecture, run.calibration.seqlen, stream);
  if (!open.schedule.works_on(0)) return;
  const EmbeddingWeights embedding = open.layers->load_embedding();
  embed_tokens(run.architecture, embedding, run.calibration.ids, open.activations, stream);
  if (open.original) copy_blocks(open.activations.hidden, open.original->hidden, stream);
}

}  // namespace

Architecture read_original(Checkpoint& source) {
  present_dequantized(source);
  Architecture architecture = read_architecture(source);
  check_tensors(architecture, source);
  return architecture;
}

Run::Run(const Options& given, Clock::Time begin)
    : options(given),
      clock(begin),
      opening(open_device_early(options.parallel.backend)),
      source(options.model.path),
      architecture(read_original(source)),
      plan(checked_plan(options, architecture, source)),
      placement(take_place(options.parallel)),
      stream(placement.backend, placement.device),
      comm(stream, {std::chrono::seconds(options.parallel.timeout), options.parallel.share_gpu}),
      sizes(run_sizes(options, architecture, source, plan, stream.backend())),
      teams(teams_of_run(comm.size(), options.parallel.teams, sizes)),
      progress(options.run.progress, comm.root(), architecture.layers) {
  spdlog::debug("device and communicator are ready");
  report.version = QPIPE_VERSION;
  report.model = model_name(source);
  report.method = options.quantize.method;
  report.bits_per_weight = plan.bits_per_weight;
  report.ranks = comm.size();
  report.device = stream.device_name();
  say_what_is_planned(*this);
}

void Run::wait_for_kernels() {
  if (kernels.valid()) kernels.get();
}

void check_paths(Run& run) {
  on_root(run.comm, [&] {
    run.output = output_files(run.plan, run.source);
    check_folders(run.options, run.output.all);
    check_user_output(report_path(run.options), "run.report");
  });
}

void choose_places(Run& run, const std::optional<Places>& places) {
  if (places) {
    run.plan.places = *places;
    return;
  }
  const Options::Memory& options = run.options.memory;
  const MemoryPlan memory =
      plan_memory_of_ranks(options, run.sizes, run.teams, run.placement, run.comm);
  const std::int64_t device = memory.device_peak().total().device;
  run.progress.say(fmt::format("memory of a rank: {} {}, {} host; {}", size_text(device),
                               run.stream.on_cuda() ? "GPU" : "device",
                               size_text(memory.host_peak().total().host),
                               describe(memory.places)));
  run.plan.places = memory.places;
  const std::int64_t budget = budget_of(options, run.placement).device;
  run.room = budget - device;
  if (run.stream.on_cuda())  // more than planned is a fault of the plan, which must not pass unseen
    run.stream.set_limit(
        static_cast<std::size_t>(std::max<std::int64_t>(0, budget - library_device_bytes)));
}

void read_tokens(Run& run, const std::optional<Places>& places) {
  const Options& options = run.options;
  if (run.teams.teams == 1 && !run.plan.casts())
    run.comm.connect_ahead(run.stream);  // in the background of what follows
  if (run.stream.on_cuda() && run.plan.calibrates() &&
      load_kernels_bytes(run.architecture, run.sizes.blocking()) <= run.room)
    run.kernels = load_kernels_early(run);
  if (run.plan.calibrates()) {
    const std::vector<MixPart> parts = calibration_parts(run);
    run.calibration = load_mix_on_all_ranks(parts, options.calibration.samples, run.comm);
    run.report.calibration = run.calibration.source;
    for (const MixPart& part : parts)
      run.report.calibration = without_folder(run.report.calibration, part.request.data);
  }
  if (!options.evaluate.data.empty()) {
    DatasetRequest request = dataset_request(options.evaluate, run);
    request.mode = "sequential";
    run.evaluation = load_tokens_on_all_ranks(request, run.comm);
  }
  if (run.evaluation.samples > run.sizes.evaluate_samples) {  // as many as the file has
    run.sizes.evaluate_samples = run.evaluation.samples;
    choose_places(run, places);
  }
  spdlog::debug("the tokens are read");
  run.report.calibration_hash = run.calibration.hash;
  run.report.calibration_tokens = run.calibration.samples * run.calibration.seqlen;
  run.report.evaluation = without_folder(run.evaluation.source, options.evaluate.data);
}

Journal open_journal(Run& run) {
  Journal journal(
      run.options,
      run_identity(run.options, run.source, run.report.model, run.calibration, run.evaluation,
                   run.report.device, build_identity(run.placement.backend)),
      run.output.all, run.comm);
  run.report.builds = journal.builds();
  if (journal.builds().size() > 1)
    run.progress.say(
        "note: goes on with another build than it began with; the report and the card say so");
  run.plan.places.folder = journal.folder().string();
  spdlog::debug("the run folder is ready");
  return journal;
}

std::string report_path(const Options& options) {
  return options.run.report.empty() ? beside(options.output.path, ".report.json")
                                    : options.run.report;
}

void take_up_report(Run& run) {
  run.progress.say(run.options.output.path + ": is complete; nothing is left to do");
  try {
    const nlohmann::json json = read_json_object(report_path(run.options));
    json.at("format").get_to(run.report.format);
    run.report.bytes = integer_of<std::int64_t>(json.at("bytes")).value();
    json.at("seconds").at("total").get_to(run.report.seconds.total);
    json.at("seconds").at("evaluate").get_to(run.report.seconds.evaluate);
    const nlohmann::json perplexity = json.value("perplexity", nlohmann::json::object());
    if (perplexity.contains("before")) run.report.perplexity_before = perplexity.at("before");
    if (perplexity.contains("after")) run.report.perplexity_after = perplexity.at("after");
  } catch (const std::exception& error) {
    spdlog::warn("the report cannot be read: {}", printable(error.what()));
  }
}

std::optional<double> perplexity_of_original(Run& run, Journal& journal) {
  constexpr const char* key = "perplexity_before";
  if (run.evaluation.samples == 0 || !run.options.evaluate.before) return std::nullopt;
  run.wait_for_kernels();
  Timed timed(run.report.seconds.evaluate, run.comm, run.stream);
  if (journal.remembered(key).is_null())
    journal.remember(key,
                     evaluate(run.source, run.architecture, run.evaluation,
                              run.options.memory.micro_batch, run.plan.places, run.comm, run.stream)
                         .value,
                     run.comm);
  const auto perplexity = journal.remembered(key).get<double>();
  run.progress.say(fmt::format("perplexity of the original: {:.3f}", perplexity));
  return perplexity;
}

Opened::Opened(Run& run, Journal& own_journal)
    : journal(own_journal),
      shards(run.options.output.path, run.plan.tensors, run.plan.max_shard_bytes, run.comm),
      store(run.plan, run.source, shards, journal, run.teams, run.comm),
      schedule(make_schedule(run, store.finished())),
      part(run.teams.teams > 1 ? std::make_unique<Comm>(run.comm, schedule.team, run.stream)
                               : nullptr),
      team(part ? *part : run.comm),
      solvers(run.stream, run.plan.places.solvers) {
  if (journal.resumed())
    run.progress.say(fmt::format("goes on with the run in {}: {} of {} layers are finished",
                                 journal.folder().string(), store.finished().size(),
                                 run.architecture.layers));
  // Kernels are loaded before the first message to another rank: loading one may wait for the
  // device, and the device for that rank.
  if (schedule.travel() != Travel::stay) {
    run.wait_for_kernels();
    ring = std::make_unique<Ring>(run.comm, run.teams, run.stream);
  }
  if (!run.plan.casts()) {
    team.connect_ahead(run.stream);  // behind the ring: nothing is under way while NCCL starts
    layers = std::make_unique<LayerSource>(run.source, run.architecture, team, run.stream,
                                           schedule.team, run.teams.teams);
  }
  spdlog::debug("the shards are open, and the ranks meet");
  if (run.comm.size() > 1) run.wait_for_kernels();
  if (run.plan.calibrates()) make_first_input(run, *this, run.stream);
  run.report.seconds.start = run.clock.seconds() - run.report.seconds.evaluate;
  traffic_before = team.traffic();
  run.progress.start();
  spdlog::debug("the first layer's input is there");
}

}  // namespace qpipe
