// What the format files share: host copies of a solved linear's parts, in the order and type that
// is stored.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "stages/formats/gptq_format.h"
#include "stages/transfer.h"

namespace qpipe {

// A contiguous device matrix as it is in memory.
template <class T>
PackedTensor downloaded_tensor(NamedTensor info, Matrix<T> matrix, Stream& stream) {
  PackedTensor result{std::move(info),
                      HostBuffer(static_cast<std::size_t>(matrix.size()) * sizeof(T), stream)};
  copy_to_host(result.data.data(), matrix.data, result.data.bytes(), stream);
  return result;
}

// values → tensor.data as they are in memory.
PackedTensor packed_tensor(NamedTensor info, const void* values, std::size_t bytes);

inline PackedTensor packed_tensor(NamedTensor info, std::vector<unsigned char>&& bytes) {
  return {std::move(info), std::move(bytes)};
}

template <class T>
PackedTensor packed_tensor(NamedTensor info, const std::vector<T>& values) {
  return packed_tensor(std::move(info), values.data(), values.size() * sizeof(T));
}

// The fault that a NaN or an infinity in the source weights is by the time scales are stored.
std::runtime_error not_finite(const std::string& tensor);

// Scales as info.dtype (f32, f16 or bf16). Throws not_finite, and std::invalid_argument naming the
// tensor when a scale is not a value of that type: rounding it now would store something else than
// what the codes were chosen for.
PackedTensor packed_scales(NamedTensor info, const std::vector<float>& scales);

// The linear's scales as info.dtype, float16, [groups, out] in stored order. place:
// quantized.stored_group on the device. Packed there. Throws std::invalid_argument naming the
// tensor when a scale is not a finite value of that type.
PackedTensor packed_scales(NamedTensor info, const QuantizedLinear& quantized,
                           Matrix<const std::int32_t> place, Stream& stream);
// Its zeros on the device, [out, groups] in stored order.
Array<std::uint8_t> stored_zeros(const QuantizedLinear& quantized, Matrix<const std::int32_t> place,
                                 Stream& stream);

// Formats without a group index hold groups that are runs of columns. Throws std::invalid_argument
// naming the module when columns of a stored group do not stand together (desc_act without static
// groups).
void require_contiguous_groups(const std::string& module, const QuantizedLinear& quantized);
struct ContiguousGroups {
  std::vector<float> scale;        // [out, groups], stored order
  std::vector<std::uint8_t> zero;  // [out, groups], stored order
};
ContiguousGroups contiguous_groups(const std::string& module, const QuantizedLinear& quantized,
                                   Stream& stream);

// [rows, cols] → [cols, rows].
template <class T>
std::vector<T> transposed(const std::vector<T>& x, std::int64_t rows, std::int64_t cols) {
  std::vector<T> result(x.size());
  for (std::int64_t c = 0; c < cols; ++c)
    for (std::int64_t r = 0; r < rows; ++r)
      result[static_cast<std::size_t>(c * rows + r)] = x[static_cast<std::size_t>(r * cols + c)];
  return result;
}

// Column → group for groups of equal runs of columns, on the device.
Array<std::int32_t> runs_of_columns(std::int64_t in_features, std::int64_t groups, Stream& stream);

}  // namespace qpipe
