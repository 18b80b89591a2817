#include "pipeline/data/packed_file.h"

#include <fmt/format.h>
#include <zlib.h>

#include <memory>
#include <string_view>
#include <utility>

#include "pipeline/data/python_helper.h"
#include "pipeline/files/error.h"
#include "pipeline/files/input_file.h"

namespace qpipe {

namespace fs = std::filesystem;

namespace {

constexpr const char* again = "copy or download the file again";

[[noreturn]] void refuse(const fs::path& path, const std::string& fault) {
  throw UserError(ExitCode::data, fmt::format("{}: {}", path.string(), fault));
}

[[noreturn]] void too_much(const fs::path& path, std::int64_t most, std::int64_t packed_bytes) {
  refuse(path, fmt::format("unpacks to more than {} bytes of text, from {} bytes; {}", most,
                           packed_bytes, less_text));
}

// Runs the helper on it.
std::string unpacked(ChildProgram helper, const fs::path& path, std::int64_t most,
                     std::int64_t packed_bytes) {
  helper.most_output = static_cast<std::size_t>(most);
  constexpr std::int64_t slowest_bytes_per_second = 1 << 20;
  helper.timeout = std::chrono::seconds(600 + most / slowest_bytes_per_second);
  const ChildResult result =
      run_child(helper, "set QPIPE_PYTHON to a Python with the packages of requirements.txt");
  using End = ChildResult::End;
  if (result.end == End::too_much_output) too_much(path, most, packed_bytes);
  if (result.end == End::timeout)
    refuse(path, fmt::format("unpacking it does not come to an end; {}", again));
  if (result.end == End::killed)
    refuse(path, fmt::format("unpacking it crashed or took too much memory (signal {}); {}",
                             result.status, again));
  if (result.status == 0) return result.output;
  const std::string reason = last_line(result.errors);
  if (result.status == static_cast<int>(ExitCode::data)) refuse(path, reason);
  throw UserError(ExitCode::unavailable,
                  fmt::format("{}: cannot be unpacked: {}", path.string(),
                              reason.empty() ? "the Python helper says nothing; set QPIPE_PYTHON "
                                               "to a Python with the packages of requirements.txt"
                                             : reason));
}

}  // namespace

std::string read_gzip(const fs::path& path, std::int64_t most) {
  const InputFile readable(path);
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"), gzclose);
  if (!file) throw UserError(ExitCode::no_input, path.string() + ": cannot be opened");
  // gzread hands on what is not gzip as it is.
  if (gzdirect(file.get()) != 0)
    refuse(path, fmt::format("is named .gz but is not a gzip file; {}", again));
  std::string text;
  std::string block(1 << 20, '\0');
  int count = 0;
  while ((count = gzread(file.get(), block.data(), static_cast<unsigned>(block.size()))) > 0) {
    if (std::cmp_greater(text.size() + static_cast<std::size_t>(count), most))
      too_much(path, most, readable.bytes());
    text.append(block.data(), static_cast<std::size_t>(count));
  }
  // A file that ends early gives its text, then Z_BUF_ERROR.
  int status = Z_OK;
  const char* fault = gzerror(file.get(), &status);
  if (count < 0 || status == Z_BUF_ERROR)
    refuse(path, fmt::format("damaged gzip data after {} bytes of text ({}); {}", text.size(),
                             fault, again));
  return text;
}

std::string read_zstd(const fs::path& path, std::int64_t most) {
  const InputFile readable(path);
  ChildProgram helper = python_program({"unzstd"});
  helper.input_file = path;
  return unpacked(std::move(helper), path, most, readable.bytes());
}

std::string read_parquet(const fs::path& path, const std::string& bytes,
                         const std::string& text_field, std::int64_t most) {
  const InputFile readable(path);
  ChildProgram helper = python_program({"rows", text_field});
  if (bytes.empty())
    helper.input_file = path;
  else
    helper.next_input = input_of(bytes);
  return unpacked(std::move(helper), path, most, readable.bytes());
}

}  // namespace qpipe
