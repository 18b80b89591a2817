// safetensors files, read strictly and written as the format says (formats.md §6).
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/dtype.h"

namespace qpipe {

struct TensorInfo {
  std::string name;
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  std::int64_t bytes() const;
  // The matrix that a 1-d or 2-d tensor is: [1, n] or [rows, cols]; or a depthwise convolution's
  // weight [rows, 1, cols]. Throws UserError for others.
  std::int64_t rows() const;
  std::int64_t cols() const;
};

// One open file: header checked, data read by pread on demand. Throws UserError that names the
// file, the tensor and the fault.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);
  ~SafetensorsFile();
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;

  const std::filesystem::path& path() const;
  const std::map<std::string, TensorInfo>& tensors() const;
  const std::map<std::string, std::string>& metadata() const;
  bool contains(const std::string& name) const { return tensors().count(name) != 0; }
  const TensorInfo& info(const std::string& name) const;  // throws UserError listing near names
  // Reads the whole tensor; `to` has info(name).bytes() bytes. Thread-safe.
  void read(const std::string& name, void* to) const;
  // Reads the tensor's bytes [begin, begin + count). Thread-safe.
  void read(const std::string& name, std::int64_t begin, std::int64_t count, void* to) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// A file written piece by piece: the header and the file's full size first (under a name of its
// own), then
// the tensors in any order, from any thread and from several processes, then fsync, rename and
// fsync of the folder. Without finish() the owner removes the temporary file. The order in the file
// is by descending alignment of the dtype, then by name. __metadata__ is {"format": "pt"}.
class SafetensorsWriter {
 public:
  enum class Role {
    owner,
    helper
  };  // the owner makes the file before any helper joins, and finishes it after all have flushed

  // keep: the name is PATH.tmp, which outlives a writer that does not finish, and the next writer
  // of the same tensors goes on with it, or with a finished PATH. A finished PATH that is another
  // file is refused (UserError). Helpers need `keep`.
  enum class Leftover { replace, keep };

  SafetensorsWriter(const std::filesystem::path& path, const std::vector<TensorInfo>& tensors,
                    Role role = Role::owner, Leftover leftover = Leftover::replace);
  ~SafetensorsWriter();
  SafetensorsWriter(SafetensorsWriter&&) noexcept;
  SafetensorsWriter& operator=(SafetensorsWriter&&) noexcept;

  void write(const std::string& name, const void* data);
  // The same in pieces of piece_bytes: next(begin, count) has the tensor's bytes [begin, begin +
  // count), until it is called again.
  using Pieces = std::function<const void*(std::int64_t begin, std::int64_t count)>;
  void write(const std::string& name, std::int64_t piece_bytes, const Pieces& next);
  // Counts a tensor that an earlier run wrote as written here.
  void adopt(const std::string& name);
  // What is in the file at the tensor's place, written or not. False when the file is too short.
  // Thread-safe.
  bool read(const std::string& name, void* to) const;
  // Bytes of the tensors that this writer wrote or adopted.
  std::int64_t written_bytes() const;
  // fsync; more tensors may follow. Thread-safe, before finish().
  void sync() const;
  // fsync of what this writer wrote; no more tensors after it.
  void flush();
  // Owner only. Every tensor must have been written once, here or by the helpers, which wrote
  // bytes_of_helpers. Throws otherwise.
  void finish(std::int64_t bytes_of_helpers = 0);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace qpipe
