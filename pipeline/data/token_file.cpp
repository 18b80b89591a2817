#include "pipeline/data/token_file.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <hdf5.h>

#include <algorithm>
#include <array>
#include <utility>

#include "pipeline/files/error.h"
#include "pipeline/files/input_file.h"
#include "pipeline/files/json_text.h"
#include "pipeline/files/new_file.h"
#include "pipeline/files/user_output.h"
#include "pipeline/model/safetensors.h"

namespace qpipe {

namespace fs = std::filesystem;

namespace {

using Shape = std::vector<std::int64_t>;

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

[[noreturn]] void refuse(const std::string& where, const std::string& fault) {
  throw UserError(ExitCode::data, where + ": " + fault);
}

// What a file holds, and how much of it is wanted.
struct Cut {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t samples = 0;
  std::int64_t seqlen = 0;
};

Cut cut(const Shape& shape, std::int64_t samples, std::int64_t seqlen, const std::string& where) {
  if (shape.size() != 2)
    refuse(where, fmt::format("has the shape [{}]; token ids must be [samples, seqlen]",
                              fmt::join(shape, ", ")));
  const Cut result{shape[0], shape[1], samples == 0 ? shape[0] : samples,
                   seqlen == 0 ? shape[1] : seqlen};
  if (result.rows == 0 || result.columns == 0)
    refuse(where, fmt::format("is empty: [{}, {}]", result.rows, result.columns));
  if (result.rows < result.samples)
    refuse(where,
           fmt::format("has {} samples but {} are needed; ask for fewer samples or give more",
                       result.rows, result.samples));
  if (result.columns < result.seqlen)
    refuse(where,
           fmt::format(
               "has samples of {} tokens but seqlen is {}; lower seqlen or give longer samples",
               result.columns, result.seqlen));
  return result;
}

// `values`: `stride` of them in each row, of which the first seqlen are wanted.
template <typename Integer>
Tokens to_tokens(const std::vector<Integer>& values, const Cut& cut, std::int64_t stride,
                 const std::string& where) {
  Tokens tokens;
  tokens.samples = cut.samples;
  tokens.seqlen = cut.seqlen;
  tokens.ids.reserve(static_cast<std::size_t>(cut.samples * cut.seqlen));
  for (std::int64_t sample = 0; sample < cut.samples; ++sample)
    for (std::int64_t position = 0; position < cut.seqlen; ++position) {
      const Integer id = values[static_cast<std::size_t>(sample * stride + position)];
      if (!std::in_range<std::int32_t>(id))
        refuse(where,
               fmt::format("sample {}, position {}: {} is not a token id", sample, position, id));
      tokens.ids.push_back(static_cast<std::int32_t>(id));
    }
  const auto part = [](std::int64_t taken, std::int64_t all) {
    return taken == all ? fmt::format("all {}", all) : fmt::format("first {} of {}", taken, all);
  };
  tokens.source = fmt::format("{}: {} samples, {} tokens of each", where,
                              part(cut.samples, cut.rows), part(cut.seqlen, cut.columns));
  return tokens;
}

std::vector<std::string> names_in(hid_t group) {
  std::vector<std::string> names;
  H5G_info_t info;
  if (H5Gget_info(group, &info) < 0) return names;
  for (hsize_t i = 0; i < info.nlinks; ++i) {
    std::array<char, 256> name{};
    if (H5Lget_name_by_idx(group, ".", H5_INDEX_NAME, H5_ITER_INC, i, name.data(), name.size(),
                           H5P_DEFAULT) >= 0)
      names.push_back(in_quotes(name.data()));
  }
  return names;
}

Tokens read_hdf5(const fs::path& path, const std::string& dataset, std::int64_t samples,
                 std::int64_t seqlen) {
  const InputFile readable(path);  // says better than HDF5 why a file cannot be read
  const QuietHdf5 quiet;
  // Read-only file systems refuse the lock that HDF5 takes by default.
  const Hdf5Id access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5Pset_file_locking(access, false, true);
  const Hdf5Id file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access), H5Fclose);
  if (!file) refuse(path.string(), "is not an HDF5 file, or is damaged");
  const Hdf5Id data(H5Dopen2(file, dataset.c_str(), H5P_DEFAULT), H5Dclose);
  if (!data)
    refuse(path.string(), fmt::format("has no dataset {}; set dataset to one of: {}",
                                      in_quotes(dataset), fmt::join(names_in(file), ", ")));

  const std::string where = fmt::format("{} ({})", path.string(), dataset);
  const Hdf5Id type(H5Dget_type(data), H5Tclose);
  if (H5Tget_class(type) != H5T_INTEGER)
    refuse(where, "does not hold integers; token ids must be int32, int64, uint16 or uint32");
  const Hdf5Id space(H5Dget_space(data), H5Sclose);
  std::array<hsize_t, H5S_MAX_RANK> sizes{};
  const int rank = H5Sget_simple_extent_dims(space, sizes.data(), nullptr);
  const Cut wanted =
      cut(Shape(sizes.begin(), sizes.begin() + std::max(rank, 0)), samples, seqlen, where);

  const std::array<hsize_t, 2> start{0, 0};
  const std::array<hsize_t, 2> count{static_cast<hsize_t>(wanted.samples),
                                     static_cast<hsize_t>(wanted.seqlen)};
  const Hdf5Id memory(H5Screate_simple(2, count.data(), nullptr), H5Sclose);
  std::vector<std::int64_t> values(count[0] * count[1]);
  if (H5Sselect_hyperslab(space, H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr) <
          0 ||
      H5Dread(data, H5T_NATIVE_INT64, memory, space, H5P_DEFAULT, values.data()) < 0)
    refuse(where,
           "cannot be read: the file is damaged or needs an HDF5 filter that is not installed");
  return to_tokens(values, wanted, wanted.seqlen, where);
}

template <typename Integer>
Tokens read_tensor(const SafetensorsFile& file, const std::string& name, const Cut& wanted,
                   const std::string& where) {
  std::vector<Integer> values(static_cast<std::size_t>(wanted.rows * wanted.columns));
  file.read(name, values.data());
  return to_tokens(values, wanted, wanted.columns, where);
}

Tokens read_safetensors(const fs::path& path, const std::string& dataset, std::int64_t samples,
                        std::int64_t seqlen) {
  const SafetensorsFile file(path);
  const TensorInfo& info = file.info(dataset);
  const std::string where = fmt::format("{} ({})", path.string(), dataset);
  const Cut wanted = cut(info.shape, samples, seqlen, where);
  switch (info.dtype) {
    case DType::i64: return read_tensor<std::int64_t>(file, dataset, wanted, where);
    case DType::i32: return read_tensor<std::int32_t>(file, dataset, wanted, where);
    case DType::i16: return read_tensor<std::int16_t>(file, dataset, wanted, where);
    default:
      refuse(where,
             fmt::format("holds {}; token ids must be I32, I64 or I16", name_of(info.dtype)));
  }
}

}  // namespace

bool is_token_file(const fs::path& path) {
  const std::string extension = path.extension().string();
  return extension == ".h5" || extension == ".hdf5" || extension == ".safetensors";
}

Tokens read_token_file(const fs::path& path, const std::string& dataset, std::int64_t samples,
                       std::int64_t seqlen) {
  return path.extension() == ".safetensors" ? read_safetensors(path, dataset, samples, seqlen)
                                            : read_hdf5(path, dataset, samples, seqlen);
}

void write_tokens_hdf5(const Tokens& tokens, const fs::path& path, const std::string& dataset) {
  const QuietHdf5 quiet;
  const fs::path file_path = user_output_file(path);
  const fs::path temporary = temporary_beside(file_path);
  const auto fail = [&](const char* what) {
    std::error_code ignored;
    fs::remove(temporary, ignored);
    throw UserError(ExitCode::cannot_create,
                    fmt::format("{}: {}; choose another place or free space", path.string(), what));
  };
  const auto checked = [&](hid_t id) { return id >= 0 ? id : (fail("cannot be written"), id); };
  {
    Hdf5Id file(H5Fcreate(temporary.c_str(), H5F_ACC_EXCL, H5P_DEFAULT, H5P_DEFAULT), H5Fclose);
    if (!file) fail("cannot be created");
    const std::array<hsize_t, 2> sizes{static_cast<hsize_t>(tokens.samples),
                                       static_cast<hsize_t>(tokens.seqlen)};
    const Hdf5Id space(checked(H5Screate_simple(2, sizes.data(), nullptr)), H5Sclose);
    const Hdf5Id links(checked(H5Pcreate(H5P_LINK_CREATE)), H5Pclose);
    H5Pset_create_intermediate_group(links, 1);
    const Hdf5Id data(checked(H5Dcreate2(file, dataset.c_str(), H5T_STD_I32LE, space, links,
                                         H5P_DEFAULT, H5P_DEFAULT)),
                      H5Dclose);
    if (H5Dwrite(data, H5T_NATIVE_INT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, tokens.ids.data()) < 0 ||
        H5Fflush(file, H5F_SCOPE_LOCAL) < 0)
      fail("cannot be written");
  }
  std::error_code error;
  fs::rename(temporary, file_path, error);
  if (error) fail("cannot be replaced");
}

}  // namespace qpipe
