// The configuration, and after it one --set in each part. What is accepted is written as TOML that
// reads back equal.
#include "pipeline/files/error.h"
#include "pipeline/options/options.h"
#include "tests/fuzz/fuzz.h"

void qpipe::fuzz::run_input(std::string_view input) {
  std::vector<std::string> sets;
  const std::vector<std::string_view> parts = parts_of(input, 4);
  for (std::size_t i = 1; i < parts.size(); ++i)
    if (!parts[i].empty()) sets.emplace_back(parts[i]);
  const Options options = load_options(write_file("run.toml", parts[0]), sets, Inputs::unchecked);
  const std::string text = options_as_toml(options);
  const Options again = load_options(write_file("again.toml", text), {}, Inputs::unchecked);
  if (options_as_toml(again) != text) fail("is not read back equal:\n" + text);
}
