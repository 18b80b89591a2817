#include "pipeline/commands/evaluate_command.h"

#include <fmt/format.h>

#include "launch/clock.h"
#include "launch/comm.h"
#include "launch/device.h"
#include "pipeline/data/tokens_on_ranks.h"
#include "pipeline/evaluate.h"
#include "pipeline/files/error.h"
#include "pipeline/files/terminal.h"
#include "pipeline/files/user_output.h"
#include "pipeline/model/model.h"
#include "pipeline/plan/memory_check.h"

namespace qpipe {

namespace {

constexpr std::int64_t micro_batch = 16384;  // tokens

}  // namespace

int run_eval(const EvalRequest& request) {
  if (!request.logits.empty()) user_output_file(request.logits);  // before the work
  const Checkpoint checkpoint(request.model);
  const Architecture architecture = read_architecture(checkpoint);
  check_tensors(architecture, checkpoint);

  const Placement placement = place_rank(request.backend, false);
  set_cpu_threads(0, placement.local_ranks);
  check_address_space();
  Stream stream(placement.backend, placement.device);
  Comm comm(stream, Comm::Options{});
  if (!request.logits.empty() && comm.size() > 1)
    throw UserError(ExitCode::usage,
                    "--logits needs a single rank: its file holds the logits of all samples");

  DatasetRequest dataset;
  dataset.data = request.data;
  dataset.dataset = request.dataset;
  dataset.text_field = request.text_field;
  dataset.mode = "sequential";
  dataset.samples = request.samples;
  dataset.seqlen = request.seqlen;
  dataset.tokenizer = request.model;
  dataset.vocab = architecture.vocab;
  const Tokens tokens = load_tokens_on_all_ranks(dataset, comm);

  std::vector<float> all_logits;
  LogitsSink sink;
  if (!request.logits.empty())
    sink = [&](std::int64_t, const std::vector<float>& logits) {
      all_logits.insert(all_logits.end(), logits.begin(), logits.end());
    };
  const Clock clock;
  const Perplexity perplexity =
      evaluate(checkpoint, architecture, tokens, micro_batch, Places{}, comm, stream, sink);
  const double seconds = clock.seconds();

  if (!request.logits.empty()) {
    SafetensorsWriter writer(
        user_output_file(request.logits),
        {{"logits", DType::f32, {tokens.samples, tokens.seqlen, architecture.vocab}}});
    writer.write("logits", all_logits.data());
    writer.finish();
  }
  if (comm.root())
    print_result("perplexity {:.4f}  ({} tokens predicted in {} windows of {}, {:.1f} s on {})\n",
                 perplexity.value, perplexity.tokens, tokens.samples, tokens.seqlen, seconds,
                 stream.device_name());
  return 0;
}

}  // namespace qpipe
