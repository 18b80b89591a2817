// The type of what is not quantized, which the model then computes in. float16 ends at 65504:
// tensors beyond it are found before the first layer, activations while layers are calibrated.
#pragma once

#include "pipeline/journal/journal.h"
#include "pipeline/prepare.h"

namespace qpipe {

// Throws UserError(data) that names the first tensor to be copied that has a value which the
// output's type does not hold, or that is not finite. Reads them; ranks share the work. Collective.
void check_model_type(Run& run);

// bfloat16, where an earlier run with this journal came to that. Collective.
void take_up_model_type(Run& run, const Journal& journal);

// Whether a layer that is done had activations beyond float16, and output.dtype = "auto" may become
// bfloat16 for it: the run then begins again, which takes nothing but time. Where it may not, the
// user is told, once for each layer. The same on all ranks.
bool needs_bfloat16(Run& run);

// After needs_bfloat16: the plan, the journal and the report as they are for bfloat16 and no layer.
// Nothing of the plan is in use. Collective.
void begin_again_in_bfloat16(Run& run, Journal& journal);

}  // namespace qpipe
