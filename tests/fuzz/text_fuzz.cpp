// JSON text and JSON lines as documents.
#include "pipeline/data/text_file.h"
#include "pipeline/files/json_text.h"
#include "tests/fuzz/fuzz.h"

void qpipe::fuzz::run_input(std::string_view input) {
  if (input.empty()) return;
  const std::string_view rest = input.substr(1);
  switch (input[0]) {
    case 't': read_documents(write_file("a.txt", rest), "text"); return;
    case 'z': read_documents(write_file("a.jsonl.gz", rest), "text"); return;
    case 'l': read_documents(write_file("a.jsonl", rest), "text"); return;
    default: {
      const nlohmann::json value = parse_json(input, "input", "advice");
      if (parse_json(value.dump(), "again", "advice") != value) fail("is not read back equal");
    }
  }
}
