#include <fmt/format.h>
#include <hdf5.h>

#include <array>

#include "pipeline/data/dataset.h"
#include "pipeline/files/error.h"
#include "pipeline/files/new_file.h"
#include "pipeline/files/user_output.h"

namespace qpipe {

namespace fs = std::filesystem;

namespace {

// HDF5 prints its error stack by default; while this lives it does not.
class QuietHdf5 {
 public:
  QuietHdf5() {
    H5Eget_auto2(H5E_DEFAULT, &print_, &data_);
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  }
  ~QuietHdf5() { H5Eset_auto2(H5E_DEFAULT, print_, data_); }
  QuietHdf5(const QuietHdf5&) = delete;
  QuietHdf5& operator=(const QuietHdf5&) = delete;

 private:
  H5E_auto2_t print_ = nullptr;
  void* data_ = nullptr;
};

class Hdf5Id {
 public:
  Hdf5Id(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  ~Hdf5Id() {
    if (id_ >= 0) close_(id_);
  }
  Hdf5Id(const Hdf5Id&) = delete;
  Hdf5Id& operator=(const Hdf5Id&) = delete;
  explicit operator bool() const { return id_ >= 0; }
  operator hid_t() const { return id_; }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

[[noreturn]] void fail(const fs::path& path, const char* what) {
  throw UserError(ExitCode::cannot_create,
                  fmt::format("{}: {}; choose another place or free space", path.string(), what));
}

hid_t checked(hid_t id, const fs::path& path) {
  if (id < 0) fail(path, "cannot be written");
  return id;
}

void write_dataset(const Tokens& tokens, const fs::path& to, const std::string& dataset,
                   const fs::path& path) {
  const Hdf5Id file(H5Fcreate(to.c_str(), H5F_ACC_EXCL, H5P_DEFAULT, H5P_DEFAULT), H5Fclose);
  if (!file) fail(path, "cannot be created");
  const std::array<hsize_t, 2> sizes{static_cast<hsize_t>(tokens.samples),
                                     static_cast<hsize_t>(tokens.seqlen)};
  const Hdf5Id space(checked(H5Screate_simple(2, sizes.data(), nullptr), path), H5Sclose);
  const Hdf5Id links(checked(H5Pcreate(H5P_LINK_CREATE), path), H5Pclose);
  H5Pset_create_intermediate_group(links, 1);
  const Hdf5Id data(checked(H5Dcreate2(file, dataset.c_str(), H5T_STD_I32LE, space, links,
                                       H5P_DEFAULT, H5P_DEFAULT),
                            path),
                    H5Dclose);
  if (H5Dwrite(data, H5T_NATIVE_INT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, tokens.ids.data()) < 0 ||
      H5Fflush(file, H5F_SCOPE_LOCAL) < 0)
    fail(path, "cannot be written");
}

}  // namespace

void write_tokens_hdf5(const Tokens& tokens, const fs::path& path, const std::string& dataset) {
  const QuietHdf5 quiet;
  const fs::path file = user_output_file(path);
  const fs::path temporary = temporary_beside(file);
  std::error_code error;
  try {
    write_dataset(tokens, temporary, dataset, path);
    fs::rename(temporary, file, error);
    if (error) fail(path, "cannot be replaced");
  } catch (...) {
    fs::remove(temporary, error);
    throw;
  }
}

}  // namespace qpipe
