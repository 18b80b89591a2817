// Token ids for calibration and evaluation.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace qpipe {

// Row-major [samples, seqlen].
struct Tokens {
  std::vector<std::int32_t> ids;
  std::int64_t samples = 0;
  std::int64_t seqlen = 0;
  std::string source;  // for the report: file, and how it was cut
  std::string hash;    // XXH3-128 of ids and shape, hexadecimal
};

struct DatasetRequest {
  std::filesystem::path data;  // .h5 .hdf5 .safetensors, or text (text_file.h)
  std::string dataset = "input_ids";
  std::string text_field = "text";
  std::string mode = "windows";  // windows: random windows of the concatenated text; documents:
                                 // each document's first seqlen tokens; sequential: consecutive
                                 // windows from the start (evaluation)
  std::int64_t samples = 0;      // 0: all there are
  std::int64_t seqlen = 0;
  std::int64_t seed = 0;
  std::filesystem::path tokenizer;  // folder with tokenizer.json or tokenizer.model, for text
  std::filesystem::path cache;      // folder for tokenized text; empty: the user's cache folder
  std::int64_t vocab = 0;           // ids must be in [0, vocab)
};

// Token ids: the first `samples` rows and `seqlen` columns (seqlen 0: all) of `dataset`, integers
// [samples, seqlen]; mode and seed do not matter. Text: .txt is one document, each row of .jsonl
// and .parquet is one, a chat as the model's template writes it. Documents are tokenized one by
// one, with the special tokens that tokenizer.json's post-processor adds and no others (so no
// beginning-of-sequence token unless it says so). For windows and sequential they are joined with
// one end-of-sequence token between neighbours (the first eos_token_id of config.json, else of
// generation_config.json, else none). Windows may overlap, and need only seqlen tokens of text.
// documents takes different ones, chosen at random, that have seqlen tokens or more. Throws
// UserError: missing file, wrong shape or type, too few tokens (says how many there are and how
// many are needed), id outside the vocabulary (names sample and position), tokenizer failure,
// memory that does not hold it; ExitCode::temporary when a stop signal came.
Tokens load_tokens(const DatasetRequest& request);

// Several sources, each with its share of the samples.
struct MixPart {
  DatasetRequest request;  // its `samples` is not asked for
  double share = 1.0;
};

// `samples` of them, divided as divide_by_shares does it, one part behind the other. A single part
// is load_tokens. Throws UserError as load_tokens.
Tokens load_mix(const std::vector<MixPart>& parts, std::int64_t samples);

// Writes `dataset` int32 [samples, seqlen] as HDF5: under PATH.tmp, then renamed. Throws UserError.
void write_tokens_hdf5(const Tokens& tokens, const std::filesystem::path& path,
                       const std::string& dataset);

}  // namespace qpipe
