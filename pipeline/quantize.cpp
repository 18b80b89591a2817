// The method, in order: load, calibrate, solve, forward, store, commit.
#include "pipeline/quantize.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "launch/comm.h"
#include "launch/device.h"
#include "launch/signals.h"
#include "pipeline/cast.h"
#include "pipeline/dataset.h"
#include "pipeline/error.h"
#include "pipeline/evaluate.h"
#include "pipeline/fast_forward.h"
#include "pipeline/folder.h"
#include "pipeline/journal.h"
#include "pipeline/layer_source.h"
#include "pipeline/memory_check.h"
#include "pipeline/model.h"
#include "pipeline/plan.h"
#include "pipeline/progress.h"
#include "pipeline/quantize_layer.h"
#include "pipeline/report.h"
#include "pipeline/run_identity.h"
#include "pipeline/store.h"
#include "pipeline/tokens_on_ranks.h"
#include "stages/activations.h"

namespace qpipe {

namespace {

Layer load_layer(Loop& loop, LayerSource& layers, std::int64_t index) {
  Timed timed(loop.report.seconds.read, loop.comm, loop.stream);
  return layers.load_layer(index);
}

// A finished layer of an earlier run: what it found, and its output for the layers that are still to do.
void pass_finished_layer(Loop& loop, const DecoderTables& tables, LayerSource& layers, std::int64_t index, const FinishedLayer& finished,
                         bool needed, Activations& activations) {
  take_up_findings(finished.findings(), loop.report);
  loop.zero_of_zero = loop.zero_of_zero || finished.findings().at("zero_of_zero");
  if (!needed) return;
  const Layer layer = load_layer(loop, layers, index);
  if (loop.plan.quantized_propagation)
    restore_propagated_weights(loop.plan, finished, loop.journal, loop.shards, layer, loop.comm, loop.stream);
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
  const auto fell_back = std::count_if(loop.report.modules.begin(), loop.report.modules.end(), [](const auto& m) { return m.fell_back; });
  const std::size_t modules = loop.plan.modules.size() - loop.plan.skipped().size();
  if (static_cast<std::size_t>(fell_back) * 50 > modules)
    throw UserError(ExitCode::data,
                    fmt::format("the Hessians of {} of {} modules are not positive definite at any damping, so that they are rounded to "
                                "nearest; use more calibration samples, or set quantize.allow_fallback = true and run again to go on",
                                fell_back, modules));
}

void quantize_layers(Loop& loop, const DecoderTables& tables, LayerSource& layers, Activations& activations) {
  std::int64_t end = loop.architecture.layers;  // behind the last layer that is to do
  while (end > 0 && loop.store.finished().contains(end - 1)) --end;
  for (std::int64_t index = 0; index < loop.architecture.layers; ++index) {
    if (const auto found = loop.store.finished().find(index); found != loop.store.finished().end()) {
      pass_finished_layer(loop, tables, layers, index, found->second, loop.plan.calibrated && index < end, activations);
      loop.progress.update(index + 1, fmt::format("layer {}  finished by an earlier run", index));
      check_fallbacks(loop);
      continue;
    }
    const std::size_t modules_begin = loop.report.modules.size();
    const std::size_t scales_begin = loop.report.scales.size();
    Layer layer = load_layer(loop, layers, index);
    quantize_layer(loop, tables, layer, activations);
    {
      Timed timed(loop.report.seconds.write, loop.comm, loop.stream);
      loop.store.commit(index, loop.comm.rank(), loop.comm.size(), findings(loop, modules_begin, scales_begin));
    }
    const ModuleReport* last = loop.report.modules.empty() ? nullptr : &loop.report.modules.back();
    loop.progress.update(index + 1, last == nullptr ? fmt::format("layer {}", index)
                                                    : fmt::format("layer {}  {} mse {:.3e}", index,
                                                                  last->name.substr(last->name.rfind('.') + 1), last->mean_squared_error));
    if (signals_received() > 0) loop.store.wait_for_commits();
    check_in(loop.comm, loop.store.fault(), 1, fmt::format("after layer {} of {}", index + 1, loop.architecture.layers));
    check_fallbacks(loop);
  }
}

Tokens load_calibration(const Options& options, const Architecture& architecture, Comm& comm) {
  DatasetRequest request;
  request.data = options.calibration.data;
  request.dataset = options.calibration.dataset;
  request.text_field = options.calibration.text_field;
  request.mode = options.calibration.mode;
  request.samples = options.calibration.samples;
  request.seqlen = options.calibration.seqlen;
  request.seed = options.calibration.seed;
  request.tokenizer = options.model.path;
  request.cache = options.calibration.cache;
  request.vocab = architecture.vocab;
  return load_tokens_on_all_ranks(request, comm);
}

Tokens load_evaluation(const Options& options, const Architecture& architecture, Comm& comm) {
  DatasetRequest request;
  request.data = options.evaluate.data;
  request.dataset = options.evaluate.dataset;
  request.text_field = options.evaluate.text_field;
  request.mode = "sequential";
  request.samples = options.evaluate.samples;
  request.seqlen = options.evaluate.seqlen;
  request.tokenizer = options.model.path;
  request.cache = options.calibration.cache;
  request.vocab = architecture.vocab;
  return load_tokens_on_all_ranks(request, comm);
}

}  // namespace

RunReport quantize(const Options& options, bool dry_run, std::optional<double> perplexity_before) {
  count_stop_signals();
  const auto begin = std::chrono::steady_clock::now();
  const Checkpoint source(options.model.path);
  const Architecture architecture = read_architecture(source.config(), (source.folder() / "config.json").string());
  if (source.config().contains("quantization_config"))
    throw UserError(ExitCode::data, source.folder().string() + ": is quantized already; give model.path the original checkpoint");
  check_tensors(architecture, source);
  QuantizePlan plan = plan_quantization(options, architecture, source);
  if (plan.calibrated && options.calibration.data.empty())
    throw UserError(ExitCode::config,
                    "calibration.data is not set; give a file of token ids (.h5, .safetensors) or of text (.txt, .jsonl)");

  const Placement placement = place_rank(options.parallel.backend, options.parallel.share_gpu);
  set_cpu_threads(options.parallel.threads, placement.local_ranks);
  Stream stream(placement.backend, placement.device);
  Comm comm(stream, {std::chrono::seconds(options.parallel.timeout), options.parallel.share_gpu});
  Progress progress(options.run.progress, comm.root(), architecture.layers);

  RunReport report;
  report.version = QPIPE_VERSION;
  report.model = model_name(source);
  report.method = options.quantize.method;
  report.bits_per_weight = plan.bits_per_weight;
  report.ranks = comm.size();
  report.device = stream.device_name();
  progress.say(fmt::format("qpipe {}: {} ({}, {} layers), {} as {}, {:.3f} bits per weight, {} rank{} on {}", QPIPE_VERSION, report.model,
                           architecture.model_type, architecture.layers, report.method, name_of(plan.storage.format), plan.bits_per_weight,
                           comm.size(), comm.size() == 1 ? "" : "s", report.device));
  for (const std::string& note : plan.notes) progress.say("note: " + note);
  if (plan.calibrated) check_sequence_length(architecture, options.calibration.seqlen);
  RunSizes sizes = run_sizes(options, architecture, source, plan, stream.backend());
  const MemoryPlan memory = plan_memory_of_ranks(options.memory, sizes, {comm.size(), 1}, placement, comm);
  plan.places = memory.places;
  progress.say(fmt::format("memory of a rank: {} {}, {} host; {}", size_text(memory.device_peak().total().device),
                           stream.on_cuda() ? "GPU" : "device", size_text(memory.host_peak().total().host), describe(plan.places)));
  if (dry_run) return report;

  const Tokens calibration = plan.calibrated ? load_calibration(options, architecture, comm) : Tokens{};
  const Tokens evaluation = options.evaluate.data.empty() ? Tokens{} : load_evaluation(options, architecture, comm);
  if (evaluation.samples > sizes.evaluate_samples) {  // as many as the file has
    sizes.evaluate_samples = evaluation.samples;
    plan.places = plan_memory_of_ranks(options.memory, sizes, {comm.size(), 1}, placement, comm).places;
  }
  report.calibration = calibration.source;
  report.calibration_hash = calibration.hash;
  report.calibration_tokens = calibration.samples * calibration.seqlen;
  report.evaluation = evaluation.source;
  Journal journal(options, run_identity(options, source, report.model, calibration, evaluation, report.device), comm);

  if (evaluation.samples > 0 && options.evaluate.before && !perplexity_before) {
    Timed timed(report.seconds.evaluate, comm, stream);
    if (journal.remembered("perplexity_before").is_null())
      journal.remember("perplexity_before", evaluate(source, architecture, evaluation, options.memory.micro_batch, comm, stream).value,
                       comm);
    perplexity_before = journal.remembered("perplexity_before").get<double>();
    progress.say(fmt::format("perplexity of the original: {:.3f}", *perplexity_before));
  }
  report.perplexity_before = perplexity_before;

  {
    ShardSet shards(options.output.path, plan.tensors, plan.max_shard_bytes, comm);
    Store store(plan, source, shards, journal, comm);
    if (journal.resumed())
      progress.say(fmt::format("goes on with the run in {}: {} of {} layers are finished", journal.folder().string(),
                               store.finished().size(), architecture.layers));
    LayerSource layers(source, architecture, comm, stream);
    Loop loop{options, architecture, plan, comm, stream, shards, journal, store, progress, report};

    Activations activations;
    DecoderTables tables;
    if (plan.calibrated) {
      const Blocking blocking = cut_samples(calibration.samples, calibration.seqlen, options.memory.micro_batch);
      activations = make_activations(architecture, blocking, comm.rank(), comm.size(), stream);
      tables = make_tables(architecture, calibration.seqlen, stream);
      const TensorArray embedding = layers.load_tensor(architecture.embedding);
      embed_tokens(architecture, calibration.ids, embedding, activations, stream);
    }
    if (plan.casts()) {
      Timed timed(report.seconds.solve, comm, stream);
      cast_layers(source, architecture, plan, store, comm, stream,
                  [&](std::int64_t index) { progress.update(index + 1, fmt::format("layer {}", index)); });
      store.wait_for_commits();
      check_in(comm, store.fault(), 1, "between two layers");
    } else {
      quantize_layers(loop, tables, layers, activations);
    }
    {
      Timed timed(report.seconds.write, comm, stream);
      store.finish(plan.may_need_v2 && loop.zero_of_zero);
    }
    if (plan.may_need_v2 && loop.zero_of_zero) {
      plan.storage.format = Format::gptq_v2;
      progress.say("note: an asymmetric zero of 0 does not fit checkpoint format gptq (v1): written as gptq_v2");
    }
    report.bytes = shards.total_bytes();
    report.format = name_of(plan.storage.format);
    for (const double peak : comm.all_gather({static_cast<double>(stream.bytes_peak())}))
      report.device_peak_bytes = std::max(report.device_peak_bytes, static_cast<std::int64_t>(peak));
    on_root(comm, [&] { write_folder(options, source, plan, shards.index(), report); });

    if (evaluation.samples > 0 && options.evaluate.after) {
      Timed timed(report.seconds.evaluate, comm, stream);
      activations = {};  // evaluate has its own
      const Checkpoint quantized(options.output.path);
      report.perplexity_after = evaluate(quantized, architecture, evaluation, options.memory.micro_batch, comm, stream).value;
      progress.say(fmt::format("perplexity of the quantized model: {:.3f}", *report.perplexity_after));
      on_root(comm, [&] { write_folder(options, source, plan, shards.index(), report); });
    }
  }

  const std::string report_path = options.run.report.empty() ? options.output.path + ".report.json" : options.run.report;
  report.options = options_as_json(options);
  report.seconds.total = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  on_root(comm, [&] {
    write_text_file(report_path, report_json(report).dump(2) + "\n");
    journal.remove();
  });
  progress.say(fmt::format(
      "wrote {} ({:.2f} GB) in {:.1f} s: read {:.1f}, hessian {:.1f}, search {:.1f}, solve {:.1f}, forward {:.1f}, write {:.1f}, "
      "evaluate {:.1f}; report in {}",
      options.output.path, static_cast<double>(report.bytes) * 1e-9, report.seconds.total, report.seconds.read, report.seconds.hessian,
      report.seconds.search, report.seconds.solve, report.seconds.forward, report.seconds.write, report.seconds.evaluate, report_path));
  return report;
}

int run_quantize(const Options& options, bool dry_run) {
  quantize(options, dry_run);
  return 0;
}

}  // namespace qpipe
