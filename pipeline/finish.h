// The end of a run: output folder, evaluation, report.
#pragma once

#include "pipeline/prepare.h"

namespace qpipe {

// The layers are done: brings the shards to the disk and writes the output folder. Collective.
void finish_output(Run& run, Opened& open);

// The output's perplexity, into report and model card, if the options ask for it. Collective.
void evaluate_output(Run& run, Opened& open);

// Writes the report and removes the run folder. Collective.
void finish_report(Run& run, Opened& open);

}  // namespace qpipe
