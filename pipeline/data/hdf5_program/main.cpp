// qpipe_hdf5 DATASET SAMPLES SEQLEN < FILE.h5: token ids of a file that nobody vouches for.
// qpipe_hdf5 DATASET SAMPLES SEQLEN FILE.h5 < ids, i32: writes them into a new file.
// libhdf5 can be made to crash, to loop, to take all memory and to open other files, and brings
// thirty libraries along. So it works in this small program, which has limits and, when it reads,
// cannot open any file beside its standard input; pipeline/data/hdf5_file.cpp starts it.
//
// Standard output when it reads: rank i64, sizes i64 [rank]; then, when the rank is 2 and the sizes
// are as large as asked (0: all), the ids i32 [samples, seqlen]. On a fault exit status 65 and one
// line on standard error.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <hdf5.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pipeline/data/hdf5_program/hdf5_program.h"
#include "pipeline/data/unpacked_limit.h"

#if defined(QPIPE_COUNT_LINES)
extern "C" int __llvm_profile_write_file();  // the counts of lines, which only an orderly exit writes
#endif

namespace qpipe::hdf5 {

namespace {

using Sizes = std::vector<std::int64_t>;

constexpr rlim_t most_memory_bytes = rlim_t{4} << 30;
constexpr std::int64_t most_chunk_bytes = std::int64_t{1} << 30;
constexpr std::int64_t block_bytes = std::int64_t{64} << 20;
constexpr hsize_t most_names = 20;

// AddressSanitizer's shadow takes terabytes of addresses, and UndefinedBehaviorSanitizer opens
// pipes.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool can_be_limited = false;
#elif defined(__has_feature)
constexpr bool can_be_limited = !__has_feature(address_sanitizer);
#else
constexpr bool can_be_limited = true;
#endif

// Without the library's tidying up, which follows the file's pointers once more.
[[noreturn]] void leave(int code) {
#if defined(QPIPE_COUNT_LINES)
  __llvm_profile_write_file();
#endif
  std::_Exit(code);
}

void limit(decltype(RLIMIT_AS) resource, rlim_t soft, bool hard) {
  rlimit value{};
  getrlimit(resource, &value);
  value.rlim_cur = std::min(soft, value.rlim_max);
  if (hard) value.rlim_max = value.rlim_cur;
  setrlimit(resource, &value);
}

// a * b of sizes that a file states.
std::int64_t product(std::int64_t a, std::int64_t b, const Sizes& sizes) {
  std::int64_t result = 0;
  if (__builtin_mul_overflow(a, b, &result))
    throw Fault(
        fmt::format("has the impossible size [{}]; write the tokens anew", fmt::join(sizes, ", ")));
  return result;
}

std::string names_in(hid_t file) {
  std::vector<std::string> names;
  H5G_info_t info;
  if (H5Gget_info(file, &info) < 0) return "(its list of names is damaged)";
  for (hsize_t i = 0; i < std::min(info.nlinks, most_names); ++i) {
    std::array<char, 256> name{};
    if (H5Lget_name_by_idx(file, ".", H5_INDEX_NAME, H5_ITER_INC, i, name.data(), name.size(),
                           H5P_DEFAULT) >= 0)
      names.push_back(fmt::format("\"{}\"", name.data()));
  }
  if (info.nlinks > most_names) names.push_back("...");
  return fmt::format("{}", fmt::join(names, ", "));
}

// Whether a part of the path is a link into another file.
bool leads_elsewhere(hid_t file, const std::string& dataset) {
  for (std::size_t end = 1; end <= dataset.size(); ++end) {
    if (end != dataset.size() && dataset[end] != '/') continue;
    H5L_info_t link;
    if (H5Lget_info(file, dataset.substr(0, end).c_str(), &link, H5P_DEFAULT) < 0) return false;
    if (link.type >= H5L_TYPE_EXTERNAL) return true;
  }
  return false;
}

struct Shape {
  Sizes sizes;
  std::int64_t element_bytes = 0;
  std::int64_t rows_of_a_chunk = 1;
};

void check_filters(hid_t properties) {
  const int filters = H5Pget_nfilters(properties);
  for (int i = 0; i < filters; ++i) {
    unsigned flags = 0;
    unsigned options = 0;
    std::size_t values = 0;
    std::array<char, 64> name{};
    const H5Z_filter_t filter =
        H5Pget_filter2(properties, static_cast<unsigned>(i), &flags, &values, nullptr, name.size(),
                       name.data(), &options);
    // Those of the library itself; the others are programs from elsewhere.
    if (filter < H5Z_FILTER_DEFLATE || filter > H5Z_FILTER_SCALEOFFSET ||
        H5Zfilter_avail(filter) <= 0)
      throw Fault(
          fmt::format("is packed by the HDF5 filter {} ({}), which is not read; write the "
                      "tokens anew, with gzip or unpacked",
                      static_cast<int>(filter), name.data()));
  }
}

// Whether its author said what stands where nothing was written; else it is zeros, which nobody
// meant as tokens.
bool has_fill_value(hid_t properties) {
  H5D_fill_value_t status = H5D_FILL_VALUE_ERROR;
  return H5Pfill_value_defined(properties, &status) >= 0 && status == H5D_FILL_VALUE_USER_DEFINED;
}

// That what is stored is in the file, and as much as the sizes say.
void check_storage(hid_t data, hid_t properties, Shape& shape, std::int64_t file_bytes) {
  if (H5Pget_external_count(properties) > 0)
    throw Fault(
        "keeps its values in another file, which is not read; write the tokens anew, into "
        "one file");
  std::int64_t bytes = shape.element_bytes;
  for (const std::int64_t size : shape.sizes) bytes = product(bytes, size, shape.sizes);
  if (bytes == 0) return;
  const H5D_layout_t layout = H5Pget_layout(properties);
  if (layout == H5D_VIRTUAL)
    throw Fault(
        "is a virtual dataset: its values are in other files, which are not read; write "
        "the tokens anew, into one file");
  const hsize_t stored = H5Dget_storage_size(data);
  const bool filled = stored == 0 && has_fill_value(properties);
  if (stored == 0 && !filled) throw Fault("has no values: nothing was ever written to it");
  if (stored > static_cast<hsize_t>(file_bytes))
    throw Fault(
        fmt::format("stores {} bytes, more than the file has; copy or download it again", stored));
  if (layout == H5D_CHUNKED) {
    std::array<hsize_t, H5S_MAX_RANK> chunk{};
    const int rank = H5Pget_chunk(properties, H5S_MAX_RANK, chunk.data());
    std::int64_t chunk_bytes = shape.element_bytes;
    for (int i = 0; i < rank; ++i)
      chunk_bytes = product(chunk_bytes, static_cast<std::int64_t>(chunk[i]), shape.sizes);
    if (rank < 1 || chunk_bytes > most_chunk_bytes)
      throw Fault(
          fmt::format("has chunks of {} bytes (limit {}); write the tokens anew, in "
                      "smaller chunks",
                      chunk_bytes, most_chunk_bytes));
    shape.rows_of_a_chunk = static_cast<std::int64_t>(chunk[0]);
  }
  if (layout == H5D_CHUNKED || filled) {
    // Handed on as i32, which is more than an i8 is here.
    const auto id_bytes = static_cast<std::int64_t>(sizeof(std::int32_t));
    if (shape.element_bytes < id_bytes)
      bytes = product(bytes / shape.element_bytes, id_bytes, shape.sizes);
    const std::int64_t most = most_unpacked_bytes(static_cast<std::int64_t>(stored));
    if (bytes > most)
      throw Fault(
          fmt::format("has {} bytes of values in {} bytes of the file, which is too much "
                      "(limit {}); write the tokens anew",
                      bytes, stored, most));
    return;
  }
  const haddr_t begin = H5Dget_offset(data);
  if (stored < static_cast<hsize_t>(bytes) ||
      (begin != HADDR_UNDEF && begin > static_cast<hsize_t>(file_bytes) - stored))
    throw Fault(
        fmt::format("has the size [{}] but not all of its values are in the file; copy or "
                    "download it again",
                    fmt::join(shape.sizes, ", ")));
}

Shape shape_of(hid_t data, std::int64_t file_bytes) {
  const Id type(H5Dget_type(data), H5Tclose);
  if (H5Tget_class(type) != H5T_INTEGER || H5Tget_size(type) > sizeof(std::int64_t))
    throw Fault("does not hold integers; token ids must be int32, int64, uint16 or uint32");
  const Id space(H5Dget_space(data), H5Sclose);
  std::array<hsize_t, H5S_MAX_RANK> sizes{};
  const int rank = std::max(H5Sget_simple_extent_dims(space, sizes.data(), nullptr), 0);
  Shape shape;
  shape.element_bytes = static_cast<std::int64_t>(H5Tget_size(type));
  for (int i = 0; i < rank; ++i) {
    if (!std::in_range<std::int64_t>(sizes[i]))
      throw Fault(fmt::format("has the impossible size {}; write the tokens anew", sizes[i]));
    shape.sizes.push_back(static_cast<std::int64_t>(sizes[i]));
  }
  const Id properties(H5Dget_create_plist(data), H5Pclose);
  check_filters(properties);
  check_storage(data, properties, shape, file_bytes);
  return shape;
}

void write(const void* values, std::size_t bytes) {
  if (bytes == 0) return;  // values may be null
  if (std::fwrite(values, 1, bytes, stdout) != bytes) throw Fault("cannot be handed on");
}

// Rows in blocks that fill whole chunks where these are small enough.
void write_ids(hid_t data, const Shape& shape, std::int64_t samples, std::int64_t seqlen) {
  const std::int64_t row_bytes = product(seqlen, sizeof(std::int64_t), shape.sizes);
  std::int64_t rows = std::max<std::int64_t>(block_bytes / row_bytes, 1);
  if (shape.rows_of_a_chunk <= 8 * rows)
    rows = std::max(rows / shape.rows_of_a_chunk, std::int64_t{1}) * shape.rows_of_a_chunk;
  rows = std::min(rows, samples);
  std::vector<std::int64_t> values(static_cast<std::size_t>(rows * seqlen));
  std::vector<std::int32_t> ids(values.size());
  const Id space(H5Dget_space(data), H5Sclose);
  for (std::int64_t first = 0; first < samples; first += rows) {
    allow_more_seconds(60);
    const std::int64_t count = std::min(rows, samples - first);
    const std::array<hsize_t, 2> start{static_cast<hsize_t>(first), 0};
    const std::array<hsize_t, 2> size{static_cast<hsize_t>(count), static_cast<hsize_t>(seqlen)};
    const Id memory(H5Screate_simple(2, size.data(), nullptr), H5Sclose);
    if (H5Sselect_hyperslab(space, H5S_SELECT_SET, start.data(), nullptr, size.data(), nullptr) <
            0 ||
        H5Dread(data, H5T_NATIVE_INT64, memory, space, H5P_DEFAULT, values.data()) < 0)
      throw Fault("cannot be read: the file is damaged; copy or download it again");
    const auto end = static_cast<std::size_t>(count * seqlen);
    for (std::size_t i = 0; i < end; ++i) {
      if (!std::in_range<std::int32_t>(values[i]))
        throw Fault(fmt::format("sample {}, position {}: {} is not a token id",
                                first + static_cast<std::int64_t>(i) / seqlen,
                                static_cast<std::int64_t>(i) % seqlen, values[i]));
      ids[i] = static_cast<std::int32_t>(values[i]);
    }
    write(ids.data(), end * sizeof(std::int32_t));
  }
}

std::int64_t number(std::string_view text) {
  std::int64_t value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0)
    throw Fault("qpipe_hdf5 DATASET SAMPLES SEQLEN [FILE.h5]; qpipe starts it");
  return value;
}

void read(const std::string& dataset, std::int64_t samples, std::int64_t seqlen) {
  struct stat status {};
  if (fstat(STDIN_FILENO, &status) != 0 || !S_ISREG(status.st_mode))
    throw Fault("is not a regular file");
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);  // it prints its error stack by default
  H5PLset_loading_state(0);
  H5Lunregister(H5L_TYPE_EXTERNAL);  // links into other files lead nowhere
  // Read-only file systems refuse the lock that HDF5 takes by default.
  const Id access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5Pset_file_locking(access, false, true);
  const Id file(H5Fopen("/proc/self/fd/0", H5F_ACC_RDONLY, access), H5Fclose);
  if (!file) throw Fault("is not an HDF5 file, or is damaged");
  // From here on no file can be opened, whatever the data ask for.
  if (can_be_limited) limit(RLIMIT_NOFILE, 0, true);
  if (leads_elsewhere(file, dataset))
    throw Fault(
        fmt::format("\"{}\" is a link into another file, which is not read; write the "
                    "tokens anew, into one file",
                    dataset));
  const Id data(H5Dopen2(file, dataset.c_str(), H5P_DEFAULT), H5Dclose);
  if (!data)
    throw Fault(fmt::format("{} \"{}\"; set dataset to one of: {}",
                            H5Lexists(file, dataset.c_str(), H5P_DEFAULT) > 0
                                ? "holds a group, a damaged dataset, or a link that leads nowhere "
                                  "in this file at"
                                : "has no dataset",
                            dataset, names_in(file)));
  const Shape shape = shape_of(data, status.st_size);
  const auto rank = static_cast<std::int64_t>(shape.sizes.size());
  write(&rank, sizeof rank);
  write(shape.sizes.data(), shape.sizes.size() * sizeof(std::int64_t));
  if (rank != 2) return;
  const std::int64_t rows = samples == 0 ? shape.sizes[0] : samples;
  const std::int64_t columns = seqlen == 0 ? shape.sizes[1] : seqlen;
  if (rows > shape.sizes[0] || columns > shape.sizes[1] || rows == 0 || columns == 0) return;
  write_ids(data, shape, rows, columns);
}

}  // namespace

// A loop that does not end is ended by SIGXCPU; a slow disk takes no processor time.
void allow_more_seconds(rlim_t seconds) {
  rusage used{};
  getrusage(RUSAGE_SELF, &used);
  limit(RLIMIT_CPU, static_cast<rlim_t>(used.ru_utime.tv_sec + used.ru_stime.tv_sec) + seconds + 1,
        false);
}

}  // namespace qpipe::hdf5

int main(int argc, char** argv) {
  using namespace qpipe::hdf5;
  constexpr int data_fault = 65;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  limit(RLIMIT_CORE, 0, true);
  if (can_be_limited) limit(RLIMIT_AS, most_memory_bytes, true);
  allow_more_seconds(10);
  std::string fault;
  try {
    if (argc != 4 && argc != 5) number("");
    if (argc == 5) {
      write_tokens(argv[4], argv[1], number(argv[2]), number(argv[3]));
      return 0;
    }
    read(argv[1], number(argv[2]), number(argv[3]));
    if (std::fflush(stdout) != 0) throw Fault("cannot be handed on");
    leave(0);
  } catch (const Fault& error) {
    fault = error.what();
  } catch (const std::bad_alloc&) {
    fault = fmt::format("needs more than {} bytes of memory to be read; write the tokens anew",
                        most_memory_bytes);
  }
  std::fprintf(stderr, "%s\n", fault.c_str());
  std::fflush(stderr);
  leave(data_fault);
}
