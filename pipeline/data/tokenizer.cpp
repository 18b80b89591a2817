#include "pipeline/data/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <utility>

#include "pipeline/data/child_process.h"
#include "pipeline/data/python_helper.h"
#include "pipeline/files/error.h"

namespace qpipe {

namespace fs = std::filesystem;

static_assert(std::endian::native == std::endian::little);

namespace {

// Each document: its length in bytes, u64, and its row, i64, then its text.
class Pieces {
 public:
  explicit Pieces(const std::vector<Document>& documents) : documents_(documents) {}
  std::string_view operator()() {
    if (next_ == documents_.size()) return {};
    const Document& document = documents_[next_];
    header_ = {document.text.size(), document.row};
    const bool text_is_next = std::exchange(header_was_sent_, !header_was_sent_);
    if (text_is_next || document.text.empty()) {
      header_was_sent_ = false;
      ++next_;
    }
    return text_is_next ? std::string_view(document.text)
                        : std::string_view(reinterpret_cast<const char*>(&header_), sizeof header_);
  }

 private:
  struct Header {
    std::uint64_t length = 0;
    std::int64_t row = 0;
  };
  const std::vector<Document>& documents_;
  std::size_t next_ = 0;
  Header header_;
  bool header_was_sent_ = false;
};

// What the environment may tell the helper: how many threads to take and whether it may, and the
// date that templates write.
std::vector<std::string> helper_variables() {
  std::vector<std::string> variables =
      variables_that_are_set({"TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS", "RAYON_RS_NUM_CPUS",
                              "TOKIO_WORKER_THREADS", "SOURCE_DATE_EPOCH", "TZ"});
  if (std::getenv("TOKENIZERS_PARALLELISM") == nullptr)
    variables.emplace_back("TOKENIZERS_PARALLELISM=true");
  return variables;
}

// Signals that the work itself brings on, whatever else the machine does.
bool is_own_fault(int signal) {
  return signal == SIGPROF || signal == SIGABRT || signal == SIGSEGV || signal == SIGBUS ||
         signal == SIGILL || signal == SIGFPE;
}

// Why there is no answer.
UserError fault_of(const ChildResult& result, const std::string& tokenizer_json,
                   const std::string& source) {
  const auto fault = [&](ExitCode code, const std::string& why) {
    return UserError(code, fmt::format("{}: cannot be tokenized: {}", source, why));
  };
  const std::string at_fault = tokenizer_json + " is at fault; restore the model's original file";
  switch (result.end) {
    case ChildResult::End::timeout:
      return fault(ExitCode::data, "it does not come to an end: " + at_fault);
    case ChildResult::End::too_much_output:
      return fault(ExitCode::data,
                   "it makes many more tokens than the text has bytes: " + at_fault);
    case ChildResult::End::killed:
      if (result.status == SIGPROF)
        return fault(ExitCode::data,
                     "it takes a hundred times as long as other tokenizers: " + at_fault);
      if (is_own_fault(result.status))
        return fault(ExitCode::data,
                     fmt::format("the library tokenizers crashed or had no memory left (signal "
                                 "{}): {}",
                                 result.status, at_fault));
      return fault(ExitCode::os, fmt::format("its process was ended by signal {}, as when memory "
                                             "runs out; free memory or give less text",
                                             result.status));
    case ChildResult::End::exited: break;
  }
  const std::string reason = last_line(result.errors);
  // "row 7: …": a fault of the data.
  if (const std::size_t colon = reason.find(": ");
      reason.starts_with("row ") && colon != std::string::npos &&
      result.status == static_cast<int>(ExitCode::data))
    return UserError(ExitCode::data,
                     place_of_row(source, reason.substr(4, colon - 4)) + reason.substr(colon));
  const bool told = result.status == static_cast<int>(ExitCode::data) ||
                    result.status == static_cast<int>(ExitCode::unavailable);
  if (told && !reason.empty()) return fault(static_cast<ExitCode>(result.status), reason);
  return fault(ExitCode::unavailable,
               fmt::format("its Python ends with exit status {} ({}); set QPIPE_PYTHON to a Python "
                           "with the package tokenizers, or give token ids (.h5)",
                           result.status, reason));
}

}  // namespace

std::string to_bytes(const TokenizedText& text) {
  const auto documents = static_cast<std::int64_t>(text.counts.size());
  std::string bytes(reinterpret_cast<const char*>(&documents), sizeof documents);
  bytes.append(reinterpret_cast<const char*>(text.counts.data()),
               text.counts.size() * sizeof(std::int64_t));
  bytes.append(reinterpret_cast<const char*>(text.ids.data()),
               text.ids.size() * sizeof(std::int32_t));
  return bytes;
}

std::optional<TokenizedText> from_bytes(const std::string& bytes) {
  std::uint64_t documents = 0;
  if (bytes.size() < sizeof documents) return std::nullopt;
  std::memcpy(&documents, bytes.data(), sizeof documents);
  const std::size_t body = bytes.size() - sizeof documents;
  if (documents > body / sizeof(std::int64_t)) return std::nullopt;
  const std::size_t counts_bytes = documents * sizeof(std::int64_t);
  TokenizedText text;
  text.counts.resize(documents);
  if (counts_bytes != 0)
    std::memcpy(text.counts.data(), bytes.data() + sizeof documents, counts_bytes);
  const std::size_t ids = (body - counts_bytes) / sizeof(std::int32_t);
  std::uint64_t expected = 0;
  for (const std::int64_t count : text.counts) {
    if (count < 0 || static_cast<std::uint64_t>(count) > ids - expected) return std::nullopt;
    expected += static_cast<std::uint64_t>(count);
  }
  if (expected * sizeof(std::int32_t) != body - counts_bytes) return std::nullopt;
  text.ids.resize(ids);
  if (ids != 0)
    std::memcpy(text.ids.data(), bytes.data() + sizeof documents + counts_bytes,
                ids * sizeof(std::int32_t));
  return text;
}

std::vector<fs::path> tokenizer_files(const fs::path& folder) {
  std::error_code error;
  std::vector<fs::path> files;
  const auto take = [&](const fs::path& path) {
    if (fs::exists(path, error)) files.push_back(path);
  };
  take(folder / "tokenizer.json");
  if (files.empty()) take(folder / "tokenizer.model");
  if (files.empty()) return files;
  for (const char* name : {"added_tokens.json", "chat_template.jinja", "chat_template.json",
                           "special_tokens_map.json", "tokenizer_config.json"})
    take(folder / name);
  std::vector<fs::path> templates;
  for (fs::directory_iterator entry(folder / "additional_chat_templates", error), end;
       !error && entry != end; entry.increment(error))
    if (entry->path().extension() == ".jinja") templates.push_back(entry->path());
  std::sort(templates.begin(), templates.end());
  files.insert(files.end(), templates.begin(), templates.end());
  return files;
}

TokenizedText tokenize(const std::vector<Document>& documents, const fs::path& tokenizer_path,
                       const std::string& source, const std::string& text_field) {
  std::size_t bytes = 0;
  for (const Document& document : documents) bytes += document.text.size();
  const std::string tokenizer = absolute_path(tokenizer_path);
  ChildProgram helper = python_program({"ids", tokenizer, text_field});
  helper.variables = helper_variables();
  helper.next_input = Pieces(documents);
  // A byte is a token at most, but normalizers may turn one character into several; post-processors
  // add a few to each document, and chat templates as many as their system prompt has.
  constexpr std::size_t most_of_a_byte = 8;
  constexpr std::size_t most_of_a_document = 16384;
  helper.most_output =
      sizeof(std::int64_t) * (1 + documents.size()) +
      sizeof(std::int32_t) * (most_of_a_byte * bytes + most_of_a_document * documents.size());
  // The helper limits its processor time; this is for one that stands still.
  constexpr std::size_t slowest_bytes_per_second = 5000;
  helper.timeout =
      std::chrono::seconds(600 + static_cast<std::int64_t>(bytes / slowest_bytes_per_second));
  const ChildResult result = run_child(
      helper, "set QPIPE_PYTHON to a Python with the package tokenizers, or give token ids (.h5)");
  if (result.end != ChildResult::End::exited || result.status != 0)
    throw fault_of(result, tokenizer, source);
  std::optional<TokenizedText> text = from_bytes(result.output);
  if (!text || text->counts.size() != documents.size())
    throw UserError(ExitCode::unavailable,
                    fmt::format("{}: cannot be tokenized: {} gives no answer that can be read; set "
                                "QPIPE_PYTHON to a Python with the package tokenizers",
                                source, helper.arguments[0]));
  return std::move(*text);
}

}  // namespace qpipe
