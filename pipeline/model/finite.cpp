#include "pipeline/model/finite.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "kernels/dtype.h"
#include "pipeline/files/json_text.h"

namespace qpipe {

namespace {

constexpr std::int64_t piece_bytes = std::int64_t{4} << 20;

// Numbers whose bits under `exponent` are all set are no numbers. Blocks without any are passed
// over at the speed of memory.
template <class Word>
std::optional<std::int64_t> first_with(Word exponent, const void* data, std::int64_t bytes) {
  constexpr std::int64_t block = 4096;
  const auto* words = static_cast<const Word*>(data);
  const std::int64_t count = bytes / static_cast<std::int64_t>(sizeof(Word));
  for (std::int64_t begin = 0; begin < count; begin += block) {
    const std::int64_t end = std::min(count, begin + block);
    Word found = 0;
    for (std::int64_t i = begin; i < end; ++i)
      found |= static_cast<Word>((words[i] & exponent) == exponent);
    if (found == 0) continue;
    for (std::int64_t i = begin; i < end; ++i)
      if ((words[i] & exponent) == exponent) return i;
  }
  return std::nullopt;
}

// The indices of element `number` of a tensor.
std::vector<std::int64_t> place_of(std::int64_t number, const std::vector<std::int64_t>& shape) {
  std::vector<std::int64_t> place(shape.size());
  for (std::size_t axis = shape.size(); axis-- > 0;) {
    place[axis] = number % shape[axis];
    number /= shape[axis];
  }
  return place;
}

// Of finite numbers, whose magnitudes are ordered as their bits.
template <class Number, class Word>
float largest_of(const std::vector<unsigned char>& bytes, std::int64_t count, Word all_but_sign) {
  Word largest = 0;
  const auto* words = reinterpret_cast<const Word*>(bytes.data());
  for (std::int64_t i = 0; i < count / static_cast<std::int64_t>(sizeof(Word)); ++i)
    largest = std::max(largest, static_cast<Word>(words[i] & all_but_sign));
  return to_float(std::bit_cast<Number>(largest));
}

}  // namespace

std::optional<std::int64_t> first_not_finite(DType dtype, const void* data, std::int64_t bytes) {
  switch (dtype) {
    case DType::f64: return first_with<std::uint64_t>(0x7ff0000000000000u, data, bytes);
    case DType::f32: return first_with<std::uint32_t>(0x7f800000u, data, bytes);
    case DType::f16: return first_with<std::uint16_t>(0x7c00u, data, bytes);
    case DType::bf16: return first_with<std::uint16_t>(0x7f80u, data, bytes);
    case DType::f8_e4m3: return first_with<std::uint8_t>(0x7fu, data, bytes);  // no infinity
    case DType::f8_e5m2: return first_with<std::uint8_t>(0x7cu, data, bytes);
    case DType::f8_e8m0: return first_with<std::uint8_t>(0xffu, data, bytes);
    default: return std::nullopt;
  }
}

DType number_type(StoredFormat format, const Checkpoint& checkpoint, const TensorInfo& tensor) {
  if (format == StoredFormat::bnb_four_bit && checkpoint.contains(tensor.name + ".absmax"))
    return DType::u8;
  if (format == StoredFormat::ct_mxfp4 && tensor.dtype == DType::u8 &&
      tensor.name.ends_with(".weight_scale"))
    return DType::f8_e8m0;
  return tensor.dtype;
}

void check_finite(const Checkpoint& checkpoint, const TensorInfo& tensor, DType as,
                  std::int64_t begin, const void* data, std::int64_t bytes) {
  const std::optional<std::int64_t> found = first_not_finite(as, data, bytes);
  if (!found) return;
  const std::int64_t first = begin / static_cast<std::int64_t>(size_of(as));
  throw UserError(
      ExitCode::data,
      fmt::format("{}: {}: element {} is not finite; the checkpoint is damaged, so get it again",
                  checkpoint.place_of(tensor.name).string(), tensor.name,
                  place_of(first + *found, tensor.shape)));
}

float largest_magnitude(const Checkpoint& checkpoint, const TensorInfo& tensor) {
  std::vector<unsigned char> data(static_cast<std::size_t>(std::min(piece_bytes, tensor.bytes())));
  float largest = 0.0f;
  for (std::int64_t begin = 0; begin < tensor.bytes(); begin += piece_bytes) {
    const std::int64_t count = std::min(piece_bytes, tensor.bytes() - begin);
    checkpoint.read(tensor.name, begin, count, data.data());
    check_finite(checkpoint, tensor, tensor.dtype, begin, data.data(), count);
    switch (tensor.dtype) {
      case DType::f32:
        largest = std::max(largest, largest_of<float, std::uint32_t>(data, count, 0x7fffffffu));
        break;
      case DType::f16:
        largest = std::max(largest, largest_of<f16, std::uint16_t>(data, count, 0x7fffu));
        break;
      case DType::bf16:
        largest = std::max(largest, largest_of<bf16, std::uint16_t>(data, count, 0x7fffu));
        break;
      default: break;  // is copied as it is
    }
  }
  return largest;
}

}  // namespace qpipe
