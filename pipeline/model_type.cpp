#include "pipeline/model_type.h"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <future>
#include <limits>
#include <mutex>
#include <set>

#include "launch/share.h"
#include "pipeline/files/agree.h"
#include "pipeline/model/finite.h"
#include "pipeline/plan/format_choice.h"

namespace qpipe {

namespace {

constexpr double largest_float16 = 65504.0;
constexpr const char* remembered_type = "model_type";

// From here on a number rounds to infinity.
double too_large_for(DType dtype) {
  return dtype == DType::f16    ? 65520.0
         : dtype == DType::bf16 ? 0x1.ffp127
                                : std::numeric_limits<double>::infinity();
}

void set_type(QuantizePlan& plan, DType dtype) {
  std::set<std::string> kept;
  for (TensorInfo& tensor : plan.kept) {
    if (tensor.dtype == DType::f32) continue;  // float32 in any output
    tensor.dtype = dtype;
    kept.insert(tensor.name);
  }
  for (TensorInfo& tensor : plan.tensors)
    if (kept.contains(tensor.name)) tensor.dtype = dtype;
  plan.storage.dtype = plan.storage.four_bit.dtype = dtype;
}

// What output.dtype = "bfloat16" needs beside it.
std::string how_to_get_bfloat16(const QuantizePlan& plan) {
  return takes_bfloat16(plan.storage)
             ? "set output.dtype = \"bfloat16\""
             : "set output.dtype = \"bfloat16\" and output.format = \"gptq\"";
}

void check_tensor(const Run& run, const TensorInfo& kept) {
  const TensorInfo& tensor = run.source.info(kept.name);
  const double largest = double{largest_magnitude(run.source, tensor)};
  if (largest < too_large_for(kept.dtype)) return;
  throw UserError(ExitCode::data,
                  fmt::format("{}: the value {:g} does not fit {}; {}", tensor.name, largest,
                              kept.dtype == DType::f16 ? "float16" : "bfloat16",
                              kept.dtype == DType::f16
                                  ? how_to_get_bfloat16(run.plan)
                                  : "no type of this output holds it: check the checkpoint"));
}

// Casts copy all before anything else, and what keeps its type fits.
bool is_checked_as_copied(const Run& run, const TensorInfo& kept) {
  return run.plan.casts() && run.source.info(kept.name).dtype == kept.dtype;
}

}  // namespace

void check_model_type(Run& run) {
  const std::vector<TensorInfo>& kept = run.plan.kept;
  std::vector<double> bytes;
  for (const TensorInfo& tensor : kept)
    bytes.push_back(static_cast<double>(run.source.info(tensor.name).bytes()));
  const std::vector<int> owner = share_by_cost(bytes, run.comm.size());
  std::vector<std::size_t> mine;
  for (std::size_t i = 0; i < kept.size(); ++i)
    if (owner[i] == run.comm.rank() && !is_checked_as_copied(run, kept[i])) mine.push_back(i);

  // The first in the plan's order that is at fault on this rank, whoever finds it first.
  std::atomic<std::size_t> next{0};
  std::mutex mutex;
  std::size_t first = kept.size();
  std::optional<UserError> fault;
  const auto work = [&] {
    for (std::size_t at = next++; at < mine.size(); at = next++) {
      const std::optional<UserError> found = fault_of([&] { check_tensor(run, kept[mine[at]]); });
      const std::lock_guard lock(mutex);
      if (!found || mine[at] > first) continue;
      first = mine[at];
      fault = found;
    }
  };
  std::vector<std::future<void>> workers;
  for (int i = 1; i < omp_get_max_threads(); ++i)
    workers.push_back(std::async(std::launch::async, work));
  work();
  for (std::future<void>& worker : workers) worker.get();
  agree(run.comm, fault);
}

void take_up_model_type(Run& run, const Journal& journal) {
  if (journal.remembered(remembered_type) == "bfloat16") set_type(run.plan, DType::bf16);
}

bool needs_bfloat16(Run& run) {
  if (run.plan.storage.dtype != DType::f16) return false;
  const std::vector<double>& largest = run.report.largest_activations;
  for (; run.layers_judged < largest.size(); ++run.layers_judged) {
    const double magnitude = largest[run.layers_judged];
    if (magnitude <= largest_float16) continue;
    if (run.options.output.dtype == "auto" && takes_bfloat16(run.plan.storage)) return true;
    run.progress.say(fmt::format(
        "warning: activations of layer {} reach {:g}, which float16 does not hold (65504): the "
        "result needs a server that computes in bfloat16; {}",
        run.layers_judged, magnitude, how_to_get_bfloat16(run.plan)));
  }
  return false;
}

void begin_again_in_bfloat16(Run& run, Journal& journal) {
  run.progress.say(fmt::format(
      "note: activations of layer {} reach {:g}, which float16 does not hold (65504): begins again "
      "with bfloat16, because output.dtype = \"auto\"",
      run.layers_judged, run.report.largest_activations.at(run.layers_judged)));
  journal.remember(remembered_type, "bfloat16", run.comm);
  set_type(run.plan, DType::bf16);
  RunReport& report = run.report;
  report.modules.clear();
  report.scales.clear();
  report.largest_activations.clear();
  report.zero_of_zero = false;
  const double evaluate = report.seconds.evaluate;
  report.seconds = {};  // the time until now counts as that before the first layer
  report.seconds.evaluate = evaluate;
}

}  // namespace qpipe
