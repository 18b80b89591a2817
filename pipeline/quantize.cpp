// The method, in order: load, calibrate, solve, forward, store, commit.
#include "pipeline/quantize.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <future>
#include <optional>
#include <utility>

#include "launch/comm.h"
#include "launch/device.h"
#include "launch/ring.h"
#include "launch/signals.h"
#include "pipeline/data/dataset.h"
#include "pipeline/data/tokens_on_ranks.h"
#include "pipeline/evaluate.h"
#include "pipeline/files/error.h"
#include "pipeline/journal/journal.h"
#include "pipeline/journal/run_identity.h"
#include "pipeline/journal/store.h"
#include "pipeline/layers/cast.h"
#include "pipeline/layers/fast_forward.h"
#include "pipeline/layers/hidden_stream.h"
#include "pipeline/layers/layer_source.h"
#include "pipeline/model/model.h"
#include "pipeline/options/sizes.h"
#include "pipeline/output/folder.h"
#include "pipeline/output/progress.h"
#include "pipeline/output/report.h"
#include "pipeline/plan/memory_check.h"
#include "pipeline/plan/plan.h"
#include "pipeline/quantize_layer.h"
#include "stages/activations.h"
#include "stages/load_kernels.h"

namespace qpipe {

namespace {

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Adds the time between construction and destruction, in which this rank waits.
class Waiting {
 public:
  explicit Waiting(double& total) : total_(total), start_(std::chrono::steady_clock::now()) {}
  ~Waiting() {
    total_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  double& total_;
  std::chrono::steady_clock::time_point start_;
};

Layer load_layer(Loop& loop, LayerSource& layers, std::int64_t index, bool by_step) {
  Timed timed(loop.report.seconds.read, loop.comm, loop.stream);
  return layers.load_layer(index, by_step);
}

// The output of a layer that an earlier run has finished, for the layers that are still to do.
void pass_finished_layer(Loop& loop, const DecoderTables& tables, Layer& layer,
                         const FinishedLayer& finished, Activations& activations) {
  if (loop.plan.quantized_propagation)
    restore_propagated_weights(loop.plan, finished, loop.journal, loop.shards, layer, loop.comm,
                               loop.stream);
  run_layer(loop, tables, layer, activations);
}

// What the report and the layers after it need of a layer; begin: as the report was before it.
nlohmann::json findings(Loop& loop, std::size_t modules_begin, std::size_t scales_begin) {
  nlohmann::json json = findings_since(loop.report, modules_begin, scales_begin);
  json["zero_of_zero"] = loop.zero_of_zero;
  if (!loop.factors.is_null()) json["factors"] = std::exchange(loop.factors, {});
  return json;
}

// Rounding to nearest in more than 2% of the modules is a calibration that failed.
void check_fallbacks(const Loop& loop) {
  if (loop.options.quantize.allow_fallback) return;
  const auto fell_back = std::count_if(loop.report.modules.begin(), loop.report.modules.end(),
                                       [](const auto& m) { return m.fell_back; });
  const std::size_t modules = loop.plan.modules.size() - loop.plan.skipped().size();
  if (static_cast<std::size_t>(fell_back) * 50 > modules)
    throw UserError(ExitCode::data,
                    fmt::format("the Hessians of {} of {} modules are not positive definite at any "
                                "damping, so that they are rounded to "
                                "nearest; use more calibration samples, or set "
                                "quantize.allow_fallback = true and run again to go on",
                                fell_back, modules));
}

// The layers that are worked on at the same time, one on each team: all layers from `first` on,
// `count` of them.
struct Round {
  std::int64_t first = 0;
  std::int64_t count = 1;
};

std::vector<Round> rounds(std::int64_t layers, const Teams& teams, bool independent_layers) {
  const std::int64_t size = independent_layers ? teams.teams : 1;
  std::vector<Round> result;
  for (std::int64_t first = 0; first < layers; first += size)
    result.push_back({first, std::min(size, layers - first)});
  return result;
}

// The hidden states on their way through the teams.
struct Pipeline {
  Comm& world;
  const Teams& teams;
  Ring* ring = nullptr;        // several teams
  int team = 0;                // this rank's
  BlockStore next_input = {};  // of the first team's next layer, while it works on one
  bool streams = false;        // original propagation through several teams
  bool hands_over = false;     // quantized propagation through several teams
  std::int64_t end =
      0;  // behind the last layer that is to do: outputs of those from end − 1 on are not needed

  bool works_on(std::int64_t layer) const { return teams.team_of_layer(layer) == team; }
};

void show_progress(const Loop& loop, std::int64_t layer, bool earlier) {
  std::string text = fmt::format("layer {}", layer);
  if (earlier) {
    text += "  finished by an earlier run";
  } else if (!loop.report.modules.empty()) {
    const ModuleReport& last = loop.report.modules.back();
    text += fmt::format("  {} mse {:.3e}", last.name.substr(last.name.rfind('.') + 1),
                        last.mean_squared_error);
  }
  loop.progress.update(layer + 1, text);
}

// What the layers of a round found, on every rank and in the layers' order. mine: of this team's
// layer if it was done now.
void share_findings(Loop& loop, const Pipeline& pipeline, const Round& round,
                    const nlohmann::json& mine) {
  const bool speaks = loop.comm.root() && !mine.is_null();
  const std::vector<std::string> gathered = pipeline.world.gather(speaks ? mine.dump() : "");
  std::string all;
  if (pipeline.world.root()) {
    nlohmann::json by_layer = nlohmann::json::array();
    for (std::int64_t layer = round.first; layer < round.first + round.count; ++layer) {
      const std::string& text = gathered[static_cast<std::size_t>(
          pipeline.teams.rank_at(pipeline.teams.team_of_layer(layer), 0))];
      by_layer.push_back(text.empty() ? nlohmann::json() : nlohmann::json::parse(text));
    }
    all = by_layer.dump();
  }
  const nlohmann::json by_layer = nlohmann::json::parse(pipeline.world.broadcast(all, 0));
  for (std::int64_t layer = round.first; layer < round.first + round.count; ++layer) {
    const auto finished = loop.store.finished().find(layer);
    const bool earlier = finished != loop.store.finished().end();
    const nlohmann::json& findings =
        earlier ? finished->second.findings()
                : by_layer.at(static_cast<std::size_t>(layer - round.first));
    take_up_findings(findings, loop.report);
    loop.zero_of_zero = loop.zero_of_zero || findings.at("zero_of_zero");
    show_progress(loop, layer, earlier);
  }
}

// Brings the layer its input through the ring, and the layers after it theirs.
void stream_round(Loop& loop, const DecoderTables& tables, Pipeline& pipeline, const Round& round,
                  Layer& layer, Activations& activations) {
  StreamTask task;
  task.from_previous = layer.index > round.first;
  task.to_next = layer.index + 1 < pipeline.end;
  task.keep_inputs = activations.keeps_inputs() && !loop.store.finished().contains(layer.index);
  task.stage = static_cast<int>(layer.index - round.first);
  task.stages = pipeline.teams.teams;
  const bool starts_next_round =
      !task.from_previous && round.first + pipeline.teams.teams < pipeline.end;
  if (starts_next_round && pipeline.next_input.blocks() == 0)
    pipeline.next_input = BlockStore(block_rows(activations.blocking, activations.owned),
                                     loop.architecture.stream_width(), loop.plan.places.hidden,
                                     loop.plan.places.folder, loop.stream);
  if (starts_next_round) task.next_input = &pipeline.next_input;
  const StreamSeconds seconds = stream_hidden(loop.architecture, tables, layer, task, activations,
                                              *pipeline.ring, loop.stream);
  loop.report.seconds.forward += seconds.busy;
  loop.report.seconds.wait += seconds.wait;
}

// The layer's output to the team of the next layer.
void hand_over(Loop& loop, const Pipeline& pipeline, std::int64_t layer, Activations& activations) {
  const Waiting waiting(loop.report.seconds.wait);
  if (pipeline.works_on(layer))
    send_hidden(activations, *pipeline.ring, loop.stream);
  else if (pipeline.works_on(layer + 1))
    receive_hidden(activations, *pipeline.ring, loop.stream);
}

// Quantizes and commits this team's layer of the round. Returns its findings; null when it has none
// to do.
nlohmann::json work_on_round(Loop& loop, const DecoderTables& tables, Pipeline& pipeline,
                             LayerSource& layers, const Round& round, Activations& activations) {
  std::int64_t index = round.first;
  while (index < round.first + round.count && !pipeline.works_on(index)) ++index;
  if (index == round.first + round.count) return {};
  const auto finished = loop.store.finished().find(index);
  const bool todo = finished == loop.store.finished().end();
  const bool passes = loop.plan.calibrated && index + 1 < pipeline.end;  // its output is needed
  if (!todo && !passes) return {};

  const std::size_t modules_begin = loop.report.modules.size();
  const std::size_t scales_begin = loop.report.scales.size();
  // Weights of a finished layer are overwritten where they lie.
  Layer layer = load_layer(loop, layers, index,
                           loop.plan.places.weights_by_step && (todo || pipeline.streams));
  if (pipeline.streams) stream_round(loop, tables, pipeline, round, layer, activations);
  loop.output_needed = passes && !pipeline.streams;
  if (!todo) {
    if (!pipeline.streams) pass_finished_layer(loop, tables, layer, finished->second, activations);
    return {};
  }
  quantize_layer(loop, tables, layer, activations);
  nlohmann::json found = findings(loop, modules_begin, scales_begin);
  {
    Timed timed(loop.report.seconds.write, loop.comm, loop.stream);
    Waiting committing(loop.report.seconds.commit);
    loop.store.commit(index, loop.comm.rank(), loop.comm.size(), found);
  }
  loop.report.modules.resize(modules_begin);  // share_findings puts them in the layers' order
  loop.report.scales.resize(scales_begin);
  found.erase("factors");
  return found;
}

void quantize_layers(Loop& loop, const DecoderTables& tables, Pipeline& pipeline,
                     LayerSource& layers, Activations& activations) {
  const std::int64_t all = loop.architecture.layers;
  pipeline.end = all;
  while (pipeline.end > 0 && loop.store.finished().contains(pipeline.end - 1)) --pipeline.end;
  for (const Round& round : rounds(all, pipeline.teams, !pipeline.hands_over)) {
    if (pipeline.streams && round.first > 0 && round.first < pipeline.end &&
        pipeline.works_on(round.first))
      std::swap(activations.hidden, pipeline.next_input);
    const nlohmann::json found = work_on_round(loop, tables, pipeline, layers, round, activations);
    {
      Waiting waiting(loop.report.seconds.wait);
      share_findings(loop, pipeline, round, found);
    }
    const std::int64_t done = round.first + round.count;
    bool new_work = false;  // a run that is stopped again and again must get on
    for (std::int64_t layer = round.first; layer < done; ++layer)
      new_work = new_work || !loop.store.finished().contains(layer);
    if (signals_received() > 0) loop.store.wait_for_commits();
    check_in(pipeline.world, loop.store.fault(), new_work ? 1 : 2,
             fmt::format("after layer {} of {}", done, all));
    check_fallbacks(loop);
    if (pipeline.hands_over && done < pipeline.end)
      hand_over(loop, pipeline, round.first, activations);
  }
}

// What [calibration] and [evaluate] have in common.
template <class Section>
DatasetRequest dataset_request(const Section& section, const Options& options,
                               const Architecture& architecture) {
  DatasetRequest request;
  request.data = section.data;
  request.dataset = section.dataset;
  request.text_field = section.text_field;
  request.samples = section.samples;
  request.seqlen = section.seqlen;
  request.tokenizer = options.model.path;
  request.cache = options.calibration.cache;
  request.vocab = architecture.vocab;
  return request;
}

Tokens load_calibration(const Options& options, const Architecture& architecture, Comm& comm) {
  DatasetRequest request = dataset_request(options.calibration, options, architecture);
  request.mode = options.calibration.mode;
  request.seed = options.calibration.seed;
  return load_tokens_on_all_ranks(request, comm);
}

Tokens load_evaluation(const Options& options, const Architecture& architecture, Comm& comm) {
  DatasetRequest request = dataset_request(options.evaluate, options, architecture);
  request.mode = "sequential";
  return load_tokens_on_all_ranks(request, comm);
}

// In the background: what the first layer would wait for otherwise. The packed tensors of a layer
// leave through page-locked memory.
std::future<void> get_ready(const Architecture& architecture, const QuantizePlan& plan,
                            const Blocking& blocking, const Stream& stream) {
  return std::async(std::launch::async, [&, blocking] {
    load_kernels(architecture, blocking, stream.backend(), stream.device());
    std::vector<HostBuffer> packed;
    for (const TensorInfo& info : plan.tensors)
      if (info.name.starts_with(layer_prefix(architecture, 0)))
        packed.emplace_back(static_cast<std::size_t>(info.bytes()), stream);
  });
}

}  // namespace

RunReport quantize(const Options& options, bool dry_run, std::optional<double> perplexity_before,
                   const std::optional<Places>& places, std::chrono::steady_clock::time_point begin,
                   const std::function<void()>& at_end) {
  count_stop_signals();
  const std::future<void> opening = open_device_early(options.parallel.backend);
  const Checkpoint source(options.model.path);
  const Architecture architecture = read_architecture(source);
  if (source.config().contains("quantization_config"))
    throw UserError(ExitCode::data,
                    source.folder().string() +
                        ": is quantized already; give model.path the original checkpoint");
  check_tensors(architecture, source);
  QuantizePlan plan = plan_quantization(options, architecture, source);
  if (plan.calibrated && options.calibration.data.empty())
    throw UserError(ExitCode::config,
                    "calibration.data is not set; give a file of token ids (.h5, .safetensors) or "
                    "of text (.txt, .jsonl)");

  spdlog::debug("the checkpoint's headers are read and checked");
  const Placement placement = place_rank(options.parallel.backend, options.parallel.share_gpu);
  set_cpu_threads(options.parallel.threads, placement.local_ranks);
  Stream stream(placement.backend, placement.device);
  Comm comm(stream, {std::chrono::seconds(options.parallel.timeout), options.parallel.share_gpu});
  spdlog::debug("device and communicator are ready");
  RunSizes sizes = run_sizes(options, architecture, source, plan, stream.backend());
  const Teams teams = teams_of_run(comm.size(), options.parallel.teams, sizes);
  if (teams.teams == 1 && !plan.casts() && !dry_run)
    comm.connect_ahead(stream);  // in the background of what follows
  Progress progress(options.run.progress, comm.root(), architecture.layers);

  RunReport report;
  report.version = QPIPE_VERSION;
  report.model = model_name(source);
  report.method = options.quantize.method;
  report.bits_per_weight = plan.bits_per_weight;
  report.ranks = comm.size();
  report.device = stream.device_name();
  progress.say(
      fmt::format("qpipe {}: {} ({}, {} layers), {} as {}, {:.3f} bits per weight, {} rank{} on {}",
                  QPIPE_VERSION, report.model, architecture.model_type, architecture.layers,
                  report.method, name_of(plan.storage.format), plan.bits_per_weight, comm.size(),
                  comm.size() == 1 ? "" : "s", report.device));
  if (plan.calibrated && teams.teams > 1)
    progress.say(fmt::format("{} teams of {} rank{} in a ring", teams.teams, teams.ranks_of_team,
                             teams.ranks_of_team == 1 ? "" : "s"));
  if (plan.calibrated && plan.quantized_propagation && teams.teams > 1)
    progress.say(
        "note: with propagate = quantized a layer waits for the one before it, so that one team "
        "works at a time; parallel.teams = 1 is "
        "faster");
  for (const std::string& note : plan.notes) progress.say("note: " + note);
  if (plan.calibrated) check_sequence_length(architecture, options.calibration.seqlen);
  std::int64_t room = 0;  // on the device, beyond what is planned
  const auto choose_places = [&] {
    const MemoryPlan memory = plan_memory_of_ranks(options.memory, sizes, teams, placement, comm);
    progress.say(fmt::format("memory of a rank: {} {}, {} host; {}",
                             size_text(memory.device_peak().total().device),
                             stream.on_cuda() ? "GPU" : "device",
                             size_text(memory.host_peak().total().host), describe(memory.places)));
    room = budget_of(options.memory, placement).device - memory.device_peak().total().device;
    return memory.places;
  };
  plan.places = places ? *places : choose_places();
  if (!places &&
      stream.on_cuda())  // more than planned is a fault of the plan, which must not pass unseen
    stream.set_limit(static_cast<std::size_t>(std::max<std::int64_t>(
        0, budget_of(options.memory, placement).device - library_device_bytes)));
  if (dry_run) return report;

  std::future<void> ready;
  const auto be_ready = [&] {
    if (ready.valid()) ready.get();
  };
  if (stream.on_cuda() && plan.calibrated &&
      load_kernels_bytes(architecture, sizes.blocking()) <= room)
    ready = get_ready(architecture, plan, sizes.blocking(), stream);
  const Tokens calibration =
      plan.calibrated ? load_calibration(options, architecture, comm) : Tokens{};
  const Tokens evaluation =
      options.evaluate.data.empty() ? Tokens{} : load_evaluation(options, architecture, comm);
  if (!places && evaluation.samples > sizes.evaluate_samples) {  // as many as the file has
    sizes.evaluate_samples = evaluation.samples;
    plan.places = choose_places();
  }
  spdlog::debug("the tokens are read");
  report.calibration = calibration.source;
  report.calibration_hash = calibration.hash;
  report.calibration_tokens = calibration.samples * calibration.seqlen;
  report.evaluation = evaluation.source;
  Journal journal(
      options, run_identity(options, source, report.model, calibration, evaluation, report.device),
      comm);
  plan.places.folder = journal.folder().string();

  if (evaluation.samples > 0 && options.evaluate.before && !perplexity_before) {
    be_ready();
    Timed timed(report.seconds.evaluate, comm, stream);
    if (journal.remembered("perplexity_before").is_null())
      journal.remember("perplexity_before",
                       evaluate(source, architecture, evaluation, options.memory.micro_batch,
                                plan.places, comm, stream)
                           .value,
                       comm);
    perplexity_before = journal.remembered("perplexity_before").get<double>();
    progress.say(fmt::format("perplexity of the original: {:.3f}", *perplexity_before));
  }
  report.perplexity_before = perplexity_before;

  {
    spdlog::debug("the run folder is ready");
    ShardSet shards(options.output.path, plan.tensors, plan.max_shard_bytes, comm);
    Store store(plan, source, shards, journal, teams, comm);
    if (journal.resumed())
      progress.say(fmt::format("goes on with the run in {}: {} of {} layers are finished",
                               journal.folder().string(), store.finished().size(),
                               architecture.layers));
    const int team_number = teams.team_of_rank(comm.rank());
    std::optional<Comm> part;  // of the ranks
    if (teams.teams > 1) part.emplace(comm, team_number, stream);
    Comm& team = part ? *part : comm;
    const bool several = plan.calibrated && teams.teams > 1;
    // Kernels are loaded before the first message to another rank: loading one may wait for the
    // device, and the device for that rank.
    if (several) be_ready();
    std::optional<Ring> ring;
    if (several) ring.emplace(comm, teams, stream);
    if (!plan.casts())
      team.connect_ahead(stream);       // behind the ring: nothing is under way while NCCL starts
    std::optional<LayerSource> layers;  // it reads ahead at once, and casts read for themselves
    if (!plan.casts()) layers.emplace(source, architecture, team, stream, team_number, teams.teams);
    spdlog::debug("the shards are open, and the ranks meet");
    Loop loop{options, architecture, plan, team, stream, shards, journal, store, progress, report};
    Pipeline pipeline{comm, teams, ring ? &*ring : nullptr, team_number};
    pipeline.streams = several && !plan.quantized_propagation;
    pipeline.hands_over = several && plan.quantized_propagation;

    if (comm.size() > 1) be_ready();
    Activations activations;
    DecoderTables tables;
    if (plan.calibrated) {
      const Blocking blocking =
          cut_samples(calibration.samples, calibration.seqlen, options.memory.micro_batch);
      activations =
          make_activations(architecture, blocking, team.rank(), team.size(), plan.places, stream);
      tables = make_tables(architecture, calibration.seqlen, stream);
      if (pipeline.works_on(0)) {
        const EmbeddingWeights embedding = layers->load_embedding();
        embed_tokens(architecture, embedding, calibration.ids, activations, stream);
      }
    }
    report.seconds.start = seconds_since(begin) - report.seconds.evaluate;
    progress.start();
    spdlog::debug("the first layer's input is there");
    std::size_t bytes_of_workers = 0;
    if (plan.casts()) {
      bytes_of_workers = cast_layers(
          source, architecture, plan, store, comm, stream,
          [&](std::int64_t index) { progress.update(index + 1, fmt::format("layer {}", index)); },
          report.seconds);
      check_in(comm, store.fault(), 1, "between two layers");
    } else {
      const Comm::Traffic before = team.traffic();
      quantize_layers(loop, tables, pipeline, *layers, activations);
      const Comm::Traffic after = team.traffic();
      report.communication = {after.bytes - before.bytes, after.seconds - before.seconds,
                              ring ? ring->bytes() : 0};
    }
    be_ready();
    {
      Timed timed(report.seconds.write, comm, stream);
      spdlog::debug("all layers are done");
      {
        Waiting committing(report.seconds.commit);
        store.wait_for_commits();
      }
      store.finish(plan.may_need_v2 && loop.zero_of_zero);
      spdlog::debug("the shards are on the disk");
    }
    if (plan.may_need_v2 && loop.zero_of_zero) {
      plan.storage.format = Format::gptq_v2;
      progress.say(
          "note: an asymmetric zero of 0 does not fit checkpoint format gptq (v1): written as "
          "gptq_v2");
    }
    report.bytes = shards.total_bytes();
    report.format = name_of(plan.storage.format);
    for (const double peak :
         comm.all_gather({static_cast<double>(stream.bytes_peak() + bytes_of_workers)}))
      report.device_peak_bytes =
          std::max(report.device_peak_bytes, static_cast<std::int64_t>(peak));
    on_root(comm, [&] { write_folder(options, source, plan, shards.index(), report); });

    if (evaluation.samples > 0 && options.evaluate.after) {
      Timed timed(report.seconds.evaluate, comm, stream);
      activations = {};  // evaluate has its own
      const Checkpoint quantized(options.output.path);
      report.perplexity_after = evaluate(quantized, architecture, evaluation,
                                         options.memory.micro_batch, plan.places, comm, stream)
                                    .value;
      progress.say(
          fmt::format("perplexity of the quantized model: {:.3f}", *report.perplexity_after));
      on_root(comm, [&] { write_folder(options, source, plan, shards.index(), report); });
    }
  }

  const std::string report_path =
      options.run.report.empty() ? options.output.path + ".report.json" : options.run.report;
  report.options = options_as_json(options);
  spdlog::debug("the output folder is written");
  report.seconds.total = seconds_since(begin);
  report.seconds_of_ranks = gather_seconds(report.seconds, comm);
  on_root(comm, [&] {
    write_text_file(report_path, report_json(report).dump(2) + "\n");
    journal.remove();
  });
  spdlog::debug("the run folder is removed");
  progress.say(fmt::format(
      "wrote {} ({:.2f} GB) in {:.1f} s: start {:.1f}, read {:.1f}, hessian {:.1f}, search {:.1f}, "
      "solve {:.1f}, forward {:.1f}, write "
      "{:.1f}, wait {:.1f}, evaluate {:.1f}; report in {}",
      options.output.path, static_cast<double>(report.bytes) * 1e-9, report.seconds.total,
      report.seconds.start, report.seconds.read, report.seconds.hessian, report.seconds.search,
      report.seconds.solve, report.seconds.forward, report.seconds.write, report.seconds.wait,
      report.seconds.evaluate, report_path));
  if (at_end) {
    stream.synchronize();
    at_end();
  }
  return report;
}

}  // namespace qpipe
