#include "pipeline/data/token_file.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <utility>

#include "pipeline/data/hdf5_file.h"
#include "pipeline/files/error.h"
#include "pipeline/model/safetensors.h"

namespace qpipe {

namespace fs = std::filesystem;

namespace {

using Shape = std::vector<std::int64_t>;

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

std::string source_of(const Cut& cut, const std::string& where) {
  const auto part = [](std::int64_t taken, std::int64_t all) {
    return taken == all ? fmt::format("all {}", all) : fmt::format("first {} of {}", taken, all);
  };
  return fmt::format("{}: {} samples, {} tokens of each", where, part(cut.samples, cut.rows),
                     part(cut.seqlen, cut.columns));
}

Tokens read_hdf5_tokens(const fs::path& path, const std::string& dataset, std::int64_t samples,
                        std::int64_t seqlen) {
  Hdf5Ids found = read_hdf5(path, dataset, samples, seqlen);
  const std::string where = fmt::format("{} ({})", path.string(), dataset);
  const Cut wanted = cut(found.sizes, samples, seqlen, where);
  // As many as the reader handed on, so that the product cannot overflow.
  const auto ids = static_cast<std::int64_t>(found.ids.size());
  if (ids % wanted.seqlen != 0 || ids / wanted.seqlen != wanted.samples)
    refuse(where, "its reader gave half an answer; write the tokens anew");
  return {std::move(found.ids), wanted.samples, wanted.seqlen, source_of(wanted, where), {}};
}

// Row by row: of a file with many more samples only those that are wanted are read.
template <typename Integer>
Tokens read_tensor(const SafetensorsFile& file, const std::string& name, const Cut& wanted,
                   const std::string& where) {
  Tokens tokens{{}, wanted.samples, wanted.seqlen, source_of(wanted, where), {}};
  std::vector<Integer> row(static_cast<std::size_t>(wanted.seqlen));
  const std::int64_t row_bytes = wanted.columns * std::int64_t{sizeof(Integer)};
  for (std::int64_t sample = 0; sample < wanted.samples; ++sample) {
    file.read(name, sample * row_bytes, wanted.seqlen * std::int64_t{sizeof(Integer)}, row.data());
    for (std::int64_t position = 0; position < wanted.seqlen; ++position) {
      const Integer id = row[static_cast<std::size_t>(position)];
      if (!std::in_range<std::int32_t>(id))
        refuse(where,
               fmt::format("sample {}, position {}: {} is not a token id", sample, position, id));
      tokens.ids.push_back(static_cast<std::int32_t>(id));
    }
  }
  return tokens;
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
    case DType::u32: return read_tensor<std::uint32_t>(file, dataset, wanted, where);
    case DType::u16: return read_tensor<std::uint16_t>(file, dataset, wanted, where);
    case DType::u8: return read_tensor<std::uint8_t>(file, dataset, wanted, where);
    default:
      refuse(where, fmt::format("holds {}; token ids must be I32, I64, I16, U32, U16 or U8",
                                name_of(info.dtype)));
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
                                            : read_hdf5_tokens(path, dataset, samples, seqlen);
}

}  // namespace qpipe
