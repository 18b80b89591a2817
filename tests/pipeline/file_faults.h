// Temporary folders, safetensors files built byte by byte, and the check of one-line messages.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "pipeline/files/error.h"

namespace qpipe {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "qpipe-test-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = name;
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path write(const std::string& name, const std::string& text) const {
    std::ofstream(path_ / name, std::ios::binary) << text;
    return path_ / name;
  }

 private:
  std::filesystem::path path_;
};

inline std::string little_endian(std::uint64_t value) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(value >> (8 * i) & 0xff);
  return bytes;
}

inline std::string safetensors_bytes(const std::string& header, std::size_t data_bytes) {
  std::string data;
  for (std::size_t i = 0; i < data_bytes; ++i) data += static_cast<char>(i);
  return little_endian(header.size()) + header + data;
}

inline std::string read_bytes(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// `action` must throw a UserError of this kind, whose one line contains every part.
template <class Action>
void expect_fault(Action&& action, ExitCode code, const std::vector<std::string>& parts) {
  try {
    action();
    ADD_FAILURE() << "accepted; expected a fault with: " << parts.back();
  } catch (const UserError& error) {
    const std::string message = error.what();
    EXPECT_EQ(static_cast<int>(error.code), static_cast<int>(code)) << message;
    for (const std::string& part : parts)
      EXPECT_NE(message.find(part), std::string::npos) << message << "\nexpected part: " << part;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_NE(message.find("; "), std::string::npos) << message << "\nlacks what to do";
    EXPECT_LT(message.size(), 1200u) << message;
  }
}

// Without root's right to read everything, for as long as it lives.
class WithoutRootRights {
 public:
  WithoutRootRights() : was_root_(geteuid() == 0) {
    if (was_root_ && seteuid(65534) != 0) throw std::runtime_error("seteuid failed");
  }
  ~WithoutRootRights() {
    if (was_root_ && seteuid(0) != 0) ADD_FAILURE() << "seteuid(0) failed";
  }
  WithoutRootRights(const WithoutRootRights&) = delete;
  WithoutRootRights& operator=(const WithoutRootRights&) = delete;

 private:
  bool was_root_;
};

}  // namespace qpipe
