// The method, in order: load, calibrate, solve, forward, store, commit.
#include "pipeline/quantize.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <stdexcept>
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
#include "pipeline/model.h"
#include "pipeline/plan.h"
#include "pipeline/progress.h"
#include "pipeline/report.h"
#include "pipeline/run_identity.h"
#include "pipeline/store.h"
#include "pipeline/tokens_on_ranks.h"
#include "stages/activations.h"
#include "stages/calibrate.h"
#include "stages/clip.h"
#include "stages/fold.h"
#include "stages/rescale.h"

namespace qpipe {

namespace {

// Adds the seconds between construction and destruction to `total`, counting the device's work.
class Timed {
 public:
  Timed(double& total, Comm& comm, Stream& stream)
      : total_(total), comm_(comm), stream_(stream), start_(std::chrono::steady_clock::now()) {}
  ~Timed() noexcept(false) {
    if (std::uncaught_exceptions() == 0) comm_.wait(stream_);
    total_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  double& total_;
  Comm& comm_;
  Stream& stream_;
  std::chrono::steady_clock::time_point start_;
};

// What the loop carries from layer to layer.
struct Loop {
  const Options& options;
  const Architecture& architecture;
  const QuantizePlan& plan;
  Comm& comm;
  Stream& stream;
  const ShardSet& shards;
  const Journal& journal;
  Store& store;
  Progress& progress;
  RunReport& report;
  bool zero_of_zero = false;
  nlohmann::json factors = {};  // of the current layer, where the layers after it need them
};

// Between two pieces of work: all ranks stop together when one has a fault, or when one got so many signals. Collective.
void check_in(Comm& comm, const std::optional<UserError>& fault, int signals, const std::string& where) {
  const double code = fault ? static_cast<double>(fault->code) : 0.0;
  int most_signals = 0;
  double first_code = 0.0;
  const std::vector<double> all = comm.all_gather({static_cast<double>(signals_received()), code});
  for (std::size_t i = 0; i < all.size(); i += 2) {
    most_signals = std::max(most_signals, static_cast<int>(all[i]));
    if (first_code == 0.0) first_code = all[i + 1];
  }
  if (first_code != 0.0) throw UserError(static_cast<ExitCode>(first_code), comm.first_failure(fault ? fault->what() : ""));
  if (most_signals >= signals)
    throw UserError(ExitCode::temporary, "stopped by a signal " + where + "; run the same command again to go on");
}

std::string describe(const Layer& layer, const Step& step) {
  return fmt::format("layer {}, input of {}", layer.index, layer.linears[step.linears.front()].name);
}

// The step's linears that are quantized, as indices into Layer::linears.
std::vector<std::size_t> chosen(const Loop& loop, const Layer& layer, const Step& step) {
  std::vector<std::size_t> result;
  for (const std::size_t i : step.linears)
    if (!loop.plan.modules.at(layer.linears[i].name).skip) result.push_back(i);
  return result;
}

std::vector<LinearSettings> settings_of(const Loop& loop, const Layer& layer, const std::vector<std::size_t>& linears) {
  std::vector<LinearSettings> settings;
  for (const std::size_t i : linears) settings.push_back(loop.plan.modules.at(layer.linears[i].name));
  return settings;
}

// Values that are not finite are a fault of the data, which all ranks find alike.
template <class Work>
auto as_user_error(Work work) {
  try {
    return work();
  } catch (const std::domain_error& error) {
    throw UserError(ExitCode::data, error.what());
  }
}

std::vector<QuantizedLinear> solve_linears(Loop& loop, const Hessian* hessian, const std::vector<const Linear*>& linears,
                                           const std::vector<LinearSettings>& settings) {
  Timed timed(loop.report.seconds.solve, loop.comm, loop.stream);
  return as_user_error([&] { return solve(hessian, linears, settings, loop.comm, loop.stream); });
}

void store_solved(Loop& loop, const std::string& name, const QuantizedLinear& q) {
  {
    Timed timed(loop.report.seconds.write, loop.comm, loop.stream);
    loop.store.put(name, q, loop.stream);
  }
  loop.zero_of_zero = loop.zero_of_zero || q.has_zero_of_zero;
  loop.report.modules.push_back({name, q.settings.bits, q.settings.group_size, q.mean_squared_error, q.damp, q.fell_back, false});
  if (q.fell_back)
    loop.progress.say("warning: " + name +
                      ": its Hessian is not positive definite at any damping; rounded to nearest. Use more calibration samples.");
}

void solve_step(Loop& loop, Layer& layer, const Step& step, const Hessian* hessian) {
  const std::vector<std::size_t> indices = chosen(loop, layer, step);
  if (indices.empty()) return;
  std::vector<const Linear*> linears;
  for (const std::size_t i : indices) linears.push_back(&layer.linears[i]);
  const std::vector<QuantizedLinear> solved = solve_linears(loop, hessian, linears, settings_of(loop, layer, indices));
  for (std::size_t i = 0; i < solved.size(); ++i) {
    store_solved(loop, linears[i]->name, solved[i]);
    if (loop.plan.quantized_propagation) dequantize_into(solved[i], linears[i]->weight, loop.stream);
  }
}

void forward_step(Loop& loop, const DecoderTables& tables, const Layer& layer, StepKind kind, Activations& activations) {
  Timed timed(loop.report.seconds.forward, loop.comm, loop.stream);
  for (Block& block : activations.blocks)
    advance(loop.architecture, tables, layer, kind, activations.blocking.seqlen, block, activations.scratch, loop.stream);
  check_in(loop.comm, loop.store.fault(), 2, fmt::format("inside layer {}", layer.index));
}

void start(Loop& loop, const Layer& layer, Activations& activations) {
  Timed timed(loop.report.seconds.forward, loop.comm, loop.stream);
  for (Block& block : activations.blocks) start_layer(loop.architecture, layer, block, loop.stream);
}

Hessian calibrate_step(Loop& loop, const Layer& layer, const Step& step, const Activations& activations) {
  Timed timed(loop.report.seconds.hessian, loop.comm, loop.stream);
  return as_user_error([&] { return calibrate(activations, describe(layer, step), loop.comm, loop.stream); });
}

// Each linear is solved on the input that the quantized linears before it give.
void quantize_layer_sequentially(Loop& loop, const DecoderTables& tables, Layer& layer, Activations& activations) {
  start(loop, layer, activations);
  for (const Step& step : layer_steps(loop.architecture)) {
    if (!chosen(loop, layer, step).empty()) {
      const Hessian hessian = calibrate_step(loop, layer, step, activations);
      solve_step(loop, layer, step, &hessian);
    }
    forward_step(loop, tables, layer, step.kind, activations);
  }
}

// The layer with the weights that it has now.
void run_layer(Loop& loop, const DecoderTables& tables, const Layer& layer, Activations& activations) {
  start(loop, layer, activations);
  for (const Step& step : layer_steps(loop.architecture)) forward_step(loop, tables, layer, step.kind, activations);
}

// The layer's input, where run_again will need it.
Buffer save_hidden(Loop& loop, const Activations& activations) {
  if (!loop.plan.quantized_propagation) return {};
  Buffer saved(activations.hidden_memory.bytes(), loop.stream);
  copy_on_device(saved.data(), activations.hidden_memory.data(), saved.bytes(), loop.stream);
  return saved;
}

void run_again(Loop& loop, const DecoderTables& tables, const Layer& layer, const Buffer& saved, Activations& activations) {
  copy_on_device(activations.hidden_memory.data(), saved.data(), saved.bytes(), loop.stream);
  run_layer(loop, tables, layer, activations);
}

// true_sequential = false: all of the layer's Hessians see its original weights; the layer runs again with the quantized ones.
void quantize_layer_at_once(Loop& loop, const DecoderTables& tables, Layer& layer, Activations& activations) {
  const Buffer saved = save_hidden(loop, activations);
  const std::vector<Step> steps = layer_steps(loop.architecture);
  std::vector<Hessian> hessians(steps.size());
  start(loop, layer, activations);
  for (std::size_t i = 0; i < steps.size(); ++i) {
    if (!chosen(loop, layer, steps[i]).empty()) hessians[i] = calibrate_step(loop, layer, steps[i], activations);
    forward_step(loop, tables, layer, steps[i].kind, activations);
  }
  for (std::size_t i = 0; i < steps.size(); ++i) {
    solve_step(loop, layer, steps[i], &hessians[i]);
    hessians[i] = Hessian{};
  }
  if (loop.plan.quantized_propagation) run_again(loop, tables, layer, saved, activations);
}

ScaledPair search_pair(Loop& loop, const DecoderTables& tables, Layer& layer, const ScalingPair& pair, const Activations& activations,
                       const Hessian& hessian) {
  Timed timed(loop.report.seconds.search, loop.comm, loop.stream);
  const Options::Awq& o = loop.options.awq;
  const ScaleSearch search{o.search == "exact" ? ScaleLoss::exact : ScaleLoss::gram, o.grid, o.duo_scaling, o.search_tokens};
  ScaledPair found = search_scale(loop.architecture, tables, layer, pair, settings_of(loop, layer, pair.linears), activations, hessian,
                                  search, loop.comm, loop.stream);
  ScaleReport report{layer_prefix(loop.architecture, layer.index) + source_name(loop.architecture, pair), {}, found.ratio, found.loss};
  for (const std::size_t i : pair.linears) report.linears.push_back(layer.linears[i].name);
  loop.report.scales.push_back(report);
  return found;
}

// What the factors change in tensors that are not packed.
void store_scaled(Loop& loop, const Layer& layer, const std::vector<ScaledPair>& pairs, const std::vector<LinearFactors>& factors) {
  Timed timed(loop.report.seconds.write, loop.comm, loop.stream);
  for (const ChangedTensor& tensor : divided_vectors(loop.architecture, layer, pairs, loop.stream))
    loop.store.replace(tensor.name, tensor.values);
  for (std::size_t i = 0; i < layer.linears.size(); ++i) {
    const std::string name = layer.linears[i].name + ".weight";
    if (factors[i].none() || !loop.plan.modules.at(layer.linears[i].name).skip || !loop.store.owns(name)) continue;
    const Array<float> weight = scaled_weight(layer.linears[i], factors[i], loop.stream);
    std::vector<float> values(static_cast<std::size_t>(weight.view.size()));
    copy_to_host(values.data(), weight.view.data, weight.memory.bytes(), loop.stream);
    loop.store.replace(name, values);
  }
}

// Clips and rounds the scaled weights of one step. hessian: of the input that the scaled layer has.
void solve_scaled_step(Loop& loop, const Layer& layer, const Step& step, const std::vector<LinearFactors>& factors,
                       const Hessian& hessian) {
  const std::vector<std::size_t> indices = chosen(loop, layer, step);
  const std::vector<LinearSettings> settings = settings_of(loop, layer, indices);
  std::vector<Linear> scaled;
  std::vector<Array<float>> memory;
  for (std::size_t i = 0; i < indices.size(); ++i) {
    Timed timed(loop.report.seconds.search, loop.comm, loop.stream);
    const Linear& linear = layer.linears[indices[i]];
    memory.push_back(scaled_weight(linear, factors[indices[i]], loop.stream));
    if (loop.options.awq.clip && may_clip(linear.name)) clip_weight(memory.back(), hessian, settings[i], loop.comm, loop.stream);
    scaled.push_back(linear);
    scaled.back().stored = memory.back().view;
  }
  std::vector<const Linear*> linears;
  for (const Linear& linear : scaled) linears.push_back(&linear);
  std::vector<QuantizedLinear> solved = solve_linears(loop, &hessian, linears, settings);
  for (std::size_t i = 0; i < solved.size(); ++i) {
    const Linear& linear = layer.linears[indices[i]];
    solved[i].mean_squared_error = output_error(linear, factors[indices[i]], solved[i], hessian, loop.comm, loop.stream);
    store_solved(loop, linear.name, solved[i]);
    if (loop.plan.quantized_propagation) unscaled_weight_into(solved[i], factors[indices[i]], linear.weight, loop.stream);
  }
}

// AWQ: every pair's factors are searched with the layer's original weights; then the layer is scaled, clipped and rounded.
void quantize_layer_awq(Loop& loop, const DecoderTables& tables, Layer& layer, Activations& activations) {
  const Buffer saved = save_hidden(loop, activations);
  const std::vector<Step> steps = layer_steps(loop.architecture);
  const std::vector<ScalingPair> candidates = scaling_pairs(loop.architecture);
  std::vector<Hessian> hessians(steps.size());
  std::vector<ScaledPair> pairs;
  start(loop, layer, activations);
  for (std::size_t i = 0; i < steps.size(); ++i) {
    if (!chosen(loop, layer, steps[i]).empty()) {
      hessians[i] = calibrate_step(loop, layer, steps[i], activations);
      for (const ScalingPair& pair : candidates)
        if (pair.step == steps[i].kind) pairs.push_back(search_pair(loop, tables, layer, pair, activations, hessians[i]));
    }
    forward_step(loop, tables, layer, steps[i].kind, activations);
  }
  const std::vector<LinearFactors> factors = linear_factors(layer, pairs);
  if (loop.plan.quantized_propagation) loop.factors = factors_json(factors);
  store_scaled(loop, layer, pairs, factors);
  for (std::size_t i = 0; i < steps.size(); ++i) {
    if (chosen(loop, layer, steps[i]).empty()) continue;
    for (const ScaledPair& p : pairs)
      if (p.pair.step == steps[i].kind) divide_input(hessians[i], p.scale, loop.stream);
    solve_scaled_step(loop, layer, steps[i], factors, hessians[i]);
    hessians[i] = Hessian{};
  }
  if (loop.plan.quantized_propagation) run_again(loop, tables, layer, saved, activations);
}

void quantize_without_calibration(Loop& loop, Layer& layer) {
  for (const Step& step : layer_steps(loop.architecture)) solve_step(loop, layer, step, nullptr);
}

void quantize_layer(Loop& loop, const DecoderTables& tables, Layer& layer, Activations& activations) {
  if (!loop.plan.calibrated)
    quantize_without_calibration(loop, layer);
  else if (loop.plan.awq)
    quantize_layer_awq(loop, tables, layer, activations);
  else if (loop.options.quantize.true_sequential && loop.plan.quantized_propagation)
    quantize_layer_sequentially(loop, tables, layer, activations);
  else
    quantize_layer_at_once(loop, tables, layer, activations);
}

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
  if (dry_run) return report;

  const Tokens calibration = plan.calibrated ? load_calibration(options, architecture, comm) : Tokens{};
  const Tokens evaluation = options.evaluate.data.empty() ? Tokens{} : load_evaluation(options, architecture, comm);
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
    report.gpu_peak_bytes = stream.on_cuda() ? stream.bytes_peak() : 0;
    on_root(comm, [&] { write_folder(options, source, plan, shards.index(), report); });

    if (evaluation.samples > 0 && options.evaluate.after) {
      Timed timed(report.seconds.evaluate, comm, stream);
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
