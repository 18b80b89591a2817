// A quantized checkpoint as `qpipe verify` reads it: config.json, then model.safetensors as its
// header alone (its data are the numbers 1, 2, 3, …) or whole.
#include <charconv>

#include "pipeline/commands/verify.h"
#include "pipeline/files/error.h"
#include "tests/fuzz/fuzz.h"

namespace {

// What the largest end of a range in the header asks for.
std::size_t data_bytes(std::string_view header) {
  std::size_t largest = 0;
  for (std::size_t at = header.find("data_offsets"); at != std::string_view::npos;
       at = header.find("data_offsets", at + 1)) {
    const std::size_t comma = header.find(',', at);
    if (comma == std::string_view::npos) break;
    const std::size_t digit = header.find_first_of("0123456789", comma);
    if (digit == std::string_view::npos) break;
    std::size_t end = 0;
    std::from_chars(header.data() + digit, header.data() + header.size(), end);
    if (end <= 1'000'000) largest = std::max(largest, end);
  }
  return largest;
}

std::string file_of(std::string_view header) {
  const std::uint64_t bytes = header.size();
  std::string file(reinterpret_cast<const char*>(&bytes), sizeof bytes);
  file += header;
  for (std::size_t i = data_bytes(header); i > 0; --i) file += static_cast<char>(i * 37 % 251);
  return file;
}

}  // namespace

void qpipe::fuzz::run_input(std::string_view input) {
  const std::vector<std::string_view> parts = parts_of(input, 2);
  write_file("config.json", parts[0]);
  write_file("model.safetensors",
             parts[1].starts_with('{') ? file_of(parts[1]) : std::string(parts[1]));
  for (const std::string& fault : verify_checkpoint(scratch_folder()).faults)
    if (fault.find('\n') != std::string::npos) fail("a fault of several lines: " + fault);
}
