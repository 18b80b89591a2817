#include "pipeline/data/dataset.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <new>
#include <optional>
#include <utility>

#include "pipeline/data/text_file.h"
#include "pipeline/data/token_cache.h"
#include "pipeline/data/token_file.h"
#include "pipeline/data/windows.h"
#include "pipeline/files/error.h"
#include "pipeline/files/json_text.h"
#include "pipeline/files/xxh3.h"
#include "pipeline/options/limits.h"
#include "pipeline/options/sizes.h"

namespace qpipe {

namespace fs = std::filesystem;

namespace {

using Ids = std::vector<std::int32_t>;

// An eos_token_id is one id or a list of ids, the first of which ends a text (the others end a turn
// of a chat).
std::optional<std::int32_t> eos_token_of(const nlohmann::json& config) {
  const auto found = config.find("eos_token_id");
  if (found == config.end()) return std::nullopt;
  const nlohmann::json& id = found->is_array() && !found->empty() ? found->front() : *found;
  return integer_of<std::int32_t>(id);
}

std::optional<std::int32_t> eos_token(const fs::path& folder) {
  for (const char* name : {"config.json", "generation_config.json"}) {
    std::error_code error;
    if (!fs::exists(folder / name, error)) continue;
    const nlohmann::json config = read_json_object(folder / name);
    if (const auto id = eos_token_of(config)) return id;
    if (const auto text = config.find("text_config"); text != config.end() && text->is_object())
      if (const auto id = eos_token_of(*text)) return id;
  }
  return std::nullopt;
}

Ids joined(const TokenizedText& text, std::optional<std::int32_t> separator) {
  Ids ids;
  ids.reserve(text.ids.size() + text.counts.size());
  auto document = text.ids.begin();
  for (const std::int64_t count : text.counts) {
    if (count == 0) continue;
    if (!ids.empty() && separator && ids.back() != *separator) ids.push_back(*separator);
    ids.insert(ids.end(), document, document + count);
    document += count;
  }
  return ids;
}

void append(Tokens& tokens, const Ids& ids, std::int64_t start) {
  tokens.ids.insert(tokens.ids.end(), ids.begin() + start, ids.begin() + start + tokens.seqlen);
}

// The part of load_tokens for text.
struct TextCut {
  const DatasetRequest& request;
  const TokenizedText& text;

  std::string where() const { return request.data.string(); }

  [[noreturn]] void too_little(std::int64_t tokens, std::int64_t needed) const {
    throw UserError(ExitCode::data,
                    fmt::format("{}: has {} tokens but {} are needed ({} samples of {}); give more "
                                "text or lower samples or seqlen",
                                where(), tokens, needed, needed / request.seqlen, request.seqlen));
  }

  Tokens windows() const {
    if (request.samples == 0)
      throw UserError(ExitCode::config,
                      "samples = 0 (all) has no meaning for random windows; set samples, or mode = "
                      "\"sequential\"");
    const Ids ids = joined(text, eos_token(request.tokenizer));
    const auto count = static_cast<std::int64_t>(ids.size());
    if (count < request.seqlen) too_little(count, request.seqlen);
    Tokens tokens{{}, request.samples, request.seqlen, {}, {}};
    for (const std::int64_t start :
         random_windows(count, request.seqlen, request.samples, request.seed))
      append(tokens, ids, start);
    tokens.source = fmt::format("{}: {} random windows of {} tokens (seed {}) of {}", where(),
                                tokens.samples, tokens.seqlen, request.seed, count);
    return tokens;
  }

  Tokens sequential() const {
    const Ids ids = joined(text, eos_token(request.tokenizer));
    const auto count = static_cast<std::int64_t>(ids.size());
    const std::int64_t samples =
        request.samples == 0 ? std::max<std::int64_t>(count / request.seqlen, 1) : request.samples;
    if (count / request.seqlen < samples) too_little(count, samples * request.seqlen);
    Tokens tokens{{}, samples, request.seqlen, {}, {}};
    tokens.ids.assign(ids.begin(), ids.begin() + samples * request.seqlen);
    tokens.source = fmt::format("{}: first {} windows of {} tokens of {}", where(), samples,
                                request.seqlen, count);
    return tokens;
  }

  Tokens documents() const {
    std::vector<std::int64_t> starts;
    std::int64_t start = 0;
    for (const std::int64_t count : text.counts) {
      if (count >= request.seqlen) starts.push_back(start);
      start += count;
    }
    const auto usable = static_cast<std::int64_t>(starts.size());
    const std::int64_t samples =
        request.samples == 0 ? std::max<std::int64_t>(usable, 1) : request.samples;
    if (usable < samples)
      throw UserError(ExitCode::data,
                      fmt::format("{}: {} of {} documents have {} tokens or more but {} are "
                                  "needed; give more text, lower samples or seqlen, or "
                                  "set mode = \"windows\"",
                                  where(), usable, text.counts.size(), request.seqlen, samples));
    Tokens tokens{{}, samples, request.seqlen, {}, {}};
    for (const std::int64_t document : random_choice(usable, samples, request.seed))
      append(tokens, text.ids, starts[static_cast<std::size_t>(document)]);
    tokens.source =
        fmt::format("{}: first {} tokens of {} documents (seed {}) of {} that are long enough",
                    where(), request.seqlen, samples, request.seed, usable);
    return tokens;
  }
};

Tokens read_text(const DatasetRequest& request) {
  if (request.seqlen < 1)
    throw UserError(ExitCode::config,
                    fmt::format("seqlen is {}; text needs seqlen >= 1", request.seqlen));
  const std::vector<fs::path> tokenizer = tokenizer_files(request.tokenizer);
  if (tokenizer.empty())
    throw UserError(
        ExitCode::no_input,
        fmt::format("{}: is missing, and {} is text; add the model's tokenizer.json or "
                    "tokenizer.model, or give token ids (.h5)",
                    (request.tokenizer / "tokenizer.json").string(), request.data.string()));
  const TokenizedText text =
      tokenize_once(request.data, request.text_field, tokenizer, request.cache);
  const TextCut cut{request, text};
  if (request.mode == "windows") return cut.windows();
  if (request.mode == "documents") return cut.documents();
  if (request.mode == "sequential") return cut.sequential();
  throw UserError(
      ExitCode::config,
      fmt::format("mode is \"{}\"; it must be windows, documents or sequential", request.mode));
}

void check_ids(const Tokens& tokens, std::int64_t vocab, const fs::path& path) {
  const auto outside = std::find_if(tokens.ids.begin(), tokens.ids.end(), [&](std::int32_t id) {
    return id < 0 || static_cast<std::int64_t>(id) >= vocab;
  });
  if (outside == tokens.ids.end()) return;
  const std::int64_t at = outside - tokens.ids.begin();
  throw UserError(ExitCode::data, fmt::format("{}: sample {}, position {}: token id {} is outside "
                                              "the model's vocabulary of {}; use this "
                                              "model's tokenizer",
                                              path.string(), at / tokens.seqlen, at % tokens.seqlen,
                                              *outside, vocab));
}

std::string hash_of(const Tokens& tokens) {
  Xxh3 hash;
  hash.add(&tokens.samples, sizeof tokens.samples);
  hash.add(&tokens.seqlen, sizeof tokens.seqlen);
  hash.add(tokens.ids.data(), tokens.ids.size() * sizeof(std::int32_t));
  return hash.hexadecimal();
}

void check_request(const DatasetRequest& request) {
  if (request.samples < 0 || request.seqlen < 0)
    throw UserError(ExitCode::config,
                    fmt::format("samples is {} and seqlen is {}; neither may be negative",
                                request.samples, request.seqlen));
  if (request.samples > most_samples || request.seqlen > most_seqlen ||
      request.samples * request.seqlen > most_tokens)
    throw UserError(
        ExitCode::config,
        fmt::format("samples is {} and seqlen is {}; that is more than {} samples, {} "
                    "tokens of each or {} tokens",
                    request.samples, request.seqlen, most_samples, most_seqlen, most_tokens));
  const std::int64_t memory_bytes = sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
  const std::int64_t bytes =
      request.samples * request.seqlen * static_cast<std::int64_t>(sizeof(std::int32_t));
  if (bytes > memory_bytes / 2)
    throw UserError(ExitCode::config,
                    fmt::format("{} samples of {} tokens take {}, more than half of this machine's "
                                "memory; lower samples or seqlen",
                                request.samples, request.seqlen, size_text(bytes)));
}

Tokens read(const DatasetRequest& request) {
  if (is_text_file(request.data)) return read_text(request);
  if (is_token_file(request.data))
    return read_token_file(request.data, request.dataset, request.samples, request.seqlen);
  throw UserError(ExitCode::no_input,
                  fmt::format("{}: unknown kind of file; give token ids (.h5, .hdf5, "
                              ".safetensors) or text (.txt, .jsonl, .parquet, also .gz and .zst)",
                              request.data.string()));
}

}  // namespace

Tokens load_tokens(const DatasetRequest& request) {
  check_request(request);
  try {
    Tokens tokens = read(request);
    check_ids(tokens, request.vocab, request.data);
    tokens.hash = hash_of(tokens);
    return tokens;
  } catch (const std::bad_alloc&) {
    throw UserError(ExitCode::data,
                    fmt::format("{}: this machine's memory does not hold it; ask for fewer samples "
                                "or give a smaller file",
                                request.data.string()));
  } catch (const fs::filesystem_error& error) {
    throw UserError(ExitCode::io, error.what());
  }
}

Tokens load_mix(const std::vector<MixPart>& parts, std::int64_t samples) {
  std::vector<double> shares;
  for (const MixPart& part : parts) shares.push_back(part.share);
  const std::vector<std::int64_t> counts = divide_by_shares(samples, shares);
  Tokens all;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (counts[i] == 0) continue;
    DatasetRequest request = parts[i].request;
    request.samples = counts[i];
    Tokens tokens = load_tokens(request);
    if (parts.size() == 1) return tokens;
    all.samples += tokens.samples;
    all.seqlen = tokens.seqlen;
    all.ids.insert(all.ids.end(), tokens.ids.begin(), tokens.ids.end());
    all.source += (all.source.empty() ? "" : "; ") + tokens.source;
  }
  all.hash = hash_of(all);
  return all;
}

}  // namespace qpipe
