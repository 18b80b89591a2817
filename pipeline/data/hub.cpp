#include "pipeline/data/hub.h"

#include <fmt/format.h>
#include <unistd.h>

#include <charconv>
#include <utility>

#include "launch/launcher.h"
#include "pipeline/data/python_helper.h"
#include "pipeline/files/error.h"
#include "pipeline/files/terminal.h"
#include "pipeline/options/sizes.h"

namespace qpipe {

namespace {

// What the library and its connections ask the environment for.
const std::vector<std::string> variables{
    "HOME",
    "XDG_CACHE_HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "HF_XET_CACHE",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_TOKEN_PATH",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_HUB_ETAG_TIMEOUT",
    "HF_HUB_DOWNLOAD_TIMEOUT",
    "HF_HUB_DISABLE_XET",
    "HF_XET_HIGH_PERFORMANCE",
    "HF_HUB_DISABLE_SYMLINKS",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
};

// "progress BYTES OF_BYTES" as a line that is drawn anew on a terminal, elsewhere one for each
// tenth. Of the ranks of a machine one fetches and has progress to tell.
class Shown {
 public:
  explicit Shown(std::string what)
      : what_(std::move(what)), terminal_(isatty(STDERR_FILENO) == 1) {}
  ~Shown() {
    if (drawn_) tell("\n");
  }
  Shown(const Shown&) = delete;
  Shown& operator=(const Shown&) = delete;

  void progress(std::int64_t bytes, std::int64_t of_bytes) {
    const std::int64_t tenth = of_bytes > 0 ? 10 * bytes / of_bytes : 10;
    if (!terminal_ && tenth <= last_tenth_) return;
    last_tenth_ = tenth;
    drawn_ = terminal_;
    tell(fmt::format("{}{}: {} of {}{}", terminal_ ? "\r\x1b[K" : "", what_, size_text(bytes),
                     size_text(of_bytes), terminal_ ? "" : "\n"));
  }

  void note(std::string_view line) {
    if (!is_below_launcher() || launcher_in_environment().rank == 0)
      tell(fmt::format("note: {}\n", printable(line.substr(line.find(' ') + 1))));
  }

 private:
  std::string what_;
  bool terminal_;
  bool drawn_ = false;
  std::int64_t last_tenth_ = -1;
};

// Runs the helper and returns its result.
std::string run_hub(ChildProgram helper, const std::string& what) {
  helper.variables = variables_that_are_set(variables);
  helper.most_output = std::size_t{1} << 26;
  helper.timeout = std::chrono::hours(24 * 30);  // the library's own timeouts end what stands still
  Shown shown(what);
  std::string found;
  helper.on_line = [&](std::string_view line) {
    if (constexpr std::string_view result = "result "; line.starts_with(result))
      found = line.substr(result.size());
    if (constexpr std::string_view note = "note "; line.starts_with(note)) shown.note(line);
    std::int64_t bytes = 0;
    std::int64_t of_bytes = 0;
    if (constexpr std::string_view progress = "progress "; line.starts_with(progress)) {
      const char* end = line.data() + line.size();
      const auto first = std::from_chars(line.data() + progress.size(), end, bytes);
      if (first.ec == std::errc() && first.ptr != end &&
          std::from_chars(first.ptr + 1, end, of_bytes).ec == std::errc())
        shown.progress(bytes, of_bytes);
    }
  };
  const ChildResult result =
      run_child(helper, "set QPIPE_PYTHON to a Python with the package huggingface_hub");
  const bool exited = result.end == ChildResult::End::exited;
  if (exited && result.status == 0 && !found.empty()) return found;
  const std::string reason = last_line(result.errors);
  // Its own faults; a Python that fails otherwise ends with 1.
  if (exited && result.status >= static_cast<int>(ExitCode::usage) &&
      result.status <= static_cast<int>(ExitCode::config) && !reason.empty())
    throw UserError(static_cast<ExitCode>(result.status), reason);
  throw UserError(ExitCode::unavailable,
                  fmt::format("{}: the Python helper ended with {} {} ({}); set QPIPE_PYTHON to a "
                              "Python with the package huggingface_hub",
                              what, exited ? "exit status" : "signal", result.status, reason));
}

std::string name_of(const HubModel& model) {
  return model.repository + (model.revision.empty() ? "" : "@" + model.revision);
}

}  // namespace

std::filesystem::path fetch_model(const HubModel& model, HubPart part) {
  ChildProgram helper = python_program(
      {"model", model.repository, model.revision, part == HubPart::whole ? "whole" : "config"});
  helper.input_file = "/dev/null";
  return run_hub(std::move(helper), "fetching " + name_of(model));
}

std::filesystem::path fetch_data(const HubData& data) {
  ChildProgram helper = python_program({"data", data.repository, data.config, data.split});
  helper.input_file = "/dev/null";
  return run_hub(std::move(helper), "fetching " + data.repository);
}

std::string push_files(const std::filesystem::path& folder, const std::vector<std::string>& names,
                       const PushTarget& target) {
  ChildProgram helper = python_program({"push", absolute_path(folder), target.repository,
                                        target.is_private ? "private" : "",
                                        target.create_pr ? "pr" : "", target.revision});
  std::string lines;
  for (const std::string& name : names) lines += name + "\n";
  helper.next_input = input_of(lines);
  return run_hub(std::move(helper), "pushing to " + target.repository);
}

}  // namespace qpipe
