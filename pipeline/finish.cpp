#include "pipeline/finish.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "pipeline/evaluate.h"
#include "pipeline/files/agree.h"
#include "pipeline/files/json_text.h"
#include "pipeline/files/user_output.h"
#include "pipeline/output/folder.h"

namespace qpipe {

namespace {

void write_output_folder(Run& run, const Opened& open) {
  on_root(run.comm, [&] {
    write_folder(run.options, run.source, run.plan, run.output, open.shards.index(), run.report);
  });
}

void finish_shards(Run& run, Opened& open) {
  const bool v2 = run.plan.may_need_v2 && run.report.zero_of_zero;
  {
    Timed timed(run.report.seconds.write, run.comm, run.stream);
    {
      Timed committing(run.report.seconds.commit);
      open.store.wait_for_commits();
    }
    open.store.finish(v2);
    spdlog::debug("the shards are on the disk");
  }
  if (!v2) return;
  run.plan.storage.format = Format::gptq_v2;
  run.progress.say(
      "note: an asymmetric zero of 0 does not fit checkpoint format gptq (v1): written as gptq_v2");
}

}  // namespace

void finish_output(Run& run, Opened& open) {
  spdlog::debug("all layers are done");
  RunReport& report = run.report;
  const Comm::Traffic traffic = open.team.traffic();
  report.communication = {traffic.bytes - open.traffic_before.bytes,
                          traffic.seconds - open.traffic_before.seconds,
                          open.ring ? open.ring->bytes() : 0};
  run.wait_for_kernels();
  finish_shards(run, open);
  report.bytes = open.shards.total_bytes();
  report.format = name_of(run.plan.storage.format);
  report.dtype = run.plan.storage.dtype == DType::f16 ? "float16" : "bfloat16";
  for (const double peak :
       run.comm.all_gather({static_cast<double>(run.stream.bytes_peak() + open.bytes_of_workers)}))
    report.device_peak_bytes = std::max(report.device_peak_bytes, static_cast<std::int64_t>(peak));
  write_output_folder(run, open);
}

void evaluate_output(Run& run, Opened& open) {
  if (run.evaluation.samples == 0 || !run.options.evaluate.after) return;
  Timed timed(run.report.seconds.evaluate, run.comm, run.stream);
  open.activations = {};  // evaluate has its own
  open.original.reset();
  run.report.perplexity_after =
      evaluate(Checkpoint(run.options.output.path), run.architecture, run.evaluation,
               run.options.memory.micro_batch, run.plan.places, run.comm, run.stream)
          .value;
  run.progress.say(
      fmt::format("perplexity of the quantized model: {:.3f}", *run.report.perplexity_after));
  write_output_folder(run, open);
}

void finish_report(Run& run, Opened& open) {
  RunReport& report = run.report;
  const std::string path = report_path(run.options);
  report.options = options_as_json(without_folders(run.options));
  spdlog::debug("the output folder is written");
  report.seconds.total = run.clock.seconds();
  report.seconds_of_ranks = gather_seconds(report.seconds, run.comm);
  on_root(run.comm, [&] {
    write_user_output(path, to_json_text(report_json(report)));
    open.journal.remove();
  });
  spdlog::debug("the run folder is removed");
  const auto fell_back = std::count_if(report.modules.begin(), report.modules.end(),
                                       [](const auto& module) { return module.fell_back; });
  if (fell_back > 0)
    run.progress.say(
        fmt::format("note: {} of {} modules are rounded to nearest, because no damping made their "
                    "Hessians positive definite; the report names them",
                    fell_back, report.modules.size()));
  const PhaseSeconds& s = report.seconds;
  run.progress.say(fmt::format(
      "wrote {} ({:.2f} GB) in {:.1f} s: start {:.1f}, read {:.1f}, hessian {:.1f}, search {:.1f}, "
      "solve {:.1f}, forward {:.1f}, write {:.1f}, wait {:.1f}, evaluate {:.1f}; report in {}",
      run.options.output.path, static_cast<double>(report.bytes) * 1e-9, s.total, s.start, s.read,
      s.hessian, s.search, s.solve, s.forward, s.write, s.wait, s.evaluate, path));
}

}  // namespace qpipe
