#include <algorithm>
#include <array>
#include <cstdio>
#include <vector>

#include "pipeline/data/hdf5_program/hdf5_program.h"

namespace qpipe::hdf5 {

namespace {

constexpr std::int64_t block_values = std::int64_t{1} << 24;

hid_t checked(hid_t id) {
  if (id < 0) throw Fault("cannot be written");
  return id;
}

}  // namespace

void write_tokens(const std::string& path, const std::string& dataset, std::int64_t samples,
                  std::int64_t seqlen) {
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);  // it prints its error stack by default
  const Id file(H5Fcreate(path.c_str(), H5F_ACC_EXCL, H5P_DEFAULT, H5P_DEFAULT), H5Fclose);
  if (!file) throw Fault("cannot be created");
  const std::array<hsize_t, 2> sizes{static_cast<hsize_t>(samples), static_cast<hsize_t>(seqlen)};
  const Id space(checked(H5Screate_simple(2, sizes.data(), nullptr)), H5Sclose);
  const Id links(checked(H5Pcreate(H5P_LINK_CREATE)), H5Pclose);
  H5Pset_create_intermediate_group(links, 1);
  const Id data(checked(H5Dcreate2(file, dataset.c_str(), H5T_STD_I32LE, space, links, H5P_DEFAULT,
                                   H5P_DEFAULT)),
                H5Dclose);
  const std::int64_t rows = std::clamp<std::int64_t>(block_values / seqlen, 1, samples);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(rows * seqlen));
  for (std::int64_t first = 0; first < samples; first += rows) {
    allow_more_seconds(60);
    const std::int64_t count = std::min(rows, samples - first);
    const auto values = static_cast<std::size_t>(count * seqlen);
    if (std::fread(ids.data(), sizeof(std::int32_t), values, stdin) != values)
      throw Fault("cannot be written: the token ids came to an end too soon");
    const std::array<hsize_t, 2> start{static_cast<hsize_t>(first), 0};
    const std::array<hsize_t, 2> size{static_cast<hsize_t>(count), static_cast<hsize_t>(seqlen)};
    const Id memory(checked(H5Screate_simple(2, size.data(), nullptr)), H5Sclose);
    if (H5Sselect_hyperslab(space, H5S_SELECT_SET, start.data(), nullptr, size.data(), nullptr) <
            0 ||
        H5Dwrite(data, H5T_NATIVE_INT32, memory, space, H5P_DEFAULT, ids.data()) < 0)
      throw Fault("cannot be written");
  }
  if (H5Fflush(file, H5F_SCOPE_LOCAL) < 0) throw Fault("cannot be written");
}

}  // namespace qpipe::hdf5
