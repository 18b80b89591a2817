#include "tests/fuzz/fuzz.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "pipeline/files/error.h"

namespace qpipe::fuzz {

namespace fs = std::filesystem;

void fail(const std::string& what) {
  std::fprintf(stderr, "fuzz: %s\n", what.c_str());
  std::abort();
}

void expect_answer(std::string_view input) try { run_input(input); } catch (const UserError& e) {
  if (e.code == ExitCode::software) fail(std::string("a defect is reported: ") + e.what());
  if (std::string_view(e.what()).find('\n') != std::string_view::npos)
    fail(std::string("a message of several lines: ") + e.what());
} catch (const std::exception& e) {
  fail(std::string("an exception that is no UserError: ") + e.what());
}

fs::path scratch_folder() {
  struct Folder {
    fs::path path;
    Folder() {
      const fs::path memory = "/dev/shm";
      std::error_code error;
      const fs::path base = fs::is_directory(memory, error) && access(memory.c_str(), W_OK) == 0
                                ? memory
                                : fs::temp_directory_path();
      std::string name = (base / "qpipe-fuzz-XXXXXX").string();
      if (mkdtemp(name.data()) == nullptr) fail("cannot make " + name);
      path = name;
    }
    ~Folder() {
      std::error_code ignored;
      fs::remove_all(path, ignored);
    }
  };
  static const Folder folder;
  return folder.path;
}

fs::path write_file(const std::string& name, std::string_view bytes) {
  const fs::path path = scratch_folder() / name;
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!file.flush()) fail("cannot write " + path.string());
  return path;
}

std::vector<std::string_view> parts_of(std::string_view input, std::size_t count) {
  constexpr std::string_view separator = "\n--- \n";
  std::vector<std::string_view> parts;
  while (parts.size() + 1 < count) {
    const std::size_t end = input.find(separator);
    if (end == std::string_view::npos) break;
    parts.push_back(input.substr(0, end));
    input.remove_prefix(end + separator.size());
  }
  parts.push_back(input);
  parts.resize(count);
  return parts;
}

}  // namespace qpipe::fuzz
