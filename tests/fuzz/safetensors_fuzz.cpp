// A whole file, or (an input that begins with a brace) a header alone, which gets its length and
// as much data as its offsets name: so that a change in it reaches what stands behind the length.
#include <algorithm>
#include <charconv>

#include "pipeline/model/safetensors.h"
#include "tests/fuzz/fuzz.h"

namespace {

// The largest number in the text of up to a hundred thousand.
std::size_t largest_number(std::string_view text) {
  std::size_t largest = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    std::size_t value = 0;
    const auto [end, error] = std::from_chars(text.data() + i, text.data() + text.size(), value);
    if (error == std::errc() && value <= 100'000) largest = std::max(largest, value);
    if (end > text.data() + i) i = static_cast<std::size_t>(end - text.data());
  }
  return largest;
}

std::string file_of(std::string_view header) {
  std::uint64_t bytes = header.size();
  std::string file(reinterpret_cast<const char*>(&bytes), sizeof bytes);
  file += header;
  return file + std::string(largest_number(header), '\x01');
}

}  // namespace

void qpipe::fuzz::run_input(std::string_view input) {
  const bool header_alone = input.starts_with('{');
  const SafetensorsFile file(
      write_file("a.safetensors", header_alone ? file_of(input) : std::string(input)));
  std::vector<char> data;
  for (const auto& [name, info] : file.tensors()) {
    if (info.bytes() < 0 || info.bytes() > static_cast<std::int64_t>(input.size() + 100'000))
      fail(name + " has more bytes than the file");
    data.resize(static_cast<std::size_t>(info.bytes()));
    file.read(name, data.data());
  }
}
