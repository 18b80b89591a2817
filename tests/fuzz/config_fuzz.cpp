// config.json: what its architecture is, and how its weights are stored.
#include "pipeline/files/error.h"
#include "pipeline/files/json_text.h"
#include "pipeline/model/model.h"
#include "pipeline/model/read_back.h"
#include "tests/fuzz/fuzz.h"

void qpipe::fuzz::run_input(std::string_view input) {
  const nlohmann::json config = read_json_object(write_file("config.json", input));
  // Either reads what the other refuses.
  try {
    read_stored_format(config, "config.json");
  } catch (const UserError& error) {
    if (error.code == ExitCode::software) throw;
  }
  const Architecture architecture = read_architecture(config, "config.json");
  check_sequence_length(architecture, 2048);
  if (architecture.layers <= 200) expected_tensors(architecture, DType::bf16);
}
