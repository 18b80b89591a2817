// What the tokenizer's process answers, and the cache keeps: what is taken is whole, and written
// as it was read.
#include <numeric>

#include "pipeline/data/tokenizer.h"
#include "tests/fuzz/fuzz.h"

void qpipe::fuzz::run_input(std::string_view input) {
  const std::string bytes(input);
  const std::optional<TokenizedText> text = from_bytes(bytes);
  if (!text) return;
  if (std::accumulate(text->counts.begin(), text->counts.end(), std::int64_t{0}) !=
      static_cast<std::int64_t>(text->ids.size()))
    fail("counts that are not those of the ids");
  if (to_bytes(*text) != bytes) fail("is not written as it was read");
}
