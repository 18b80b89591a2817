#include "stages/formats/packing.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "kernels/gptq_sweep.h"
#include "kernels/pack.h"
#include "kernels/simd_half.h"

namespace qpipe {

std::runtime_error not_finite(const std::string& tensor) {
  return std::runtime_error(tensor +
                            ": a scale is not finite; check the checkpoint for damaged weights");
}

PackedTensor packed_tensor(NamedTensor info, const void* values, std::size_t bytes) {
  const auto* begin = static_cast<const unsigned char*>(values);
  return {std::move(info), std::vector<unsigned char>(begin, begin + bytes)};
}

namespace {

template <class Narrow, class Widen>
PackedTensor exact_scales(NamedTensor info, const std::vector<float>& scales, Narrow narrow,
                          Widen widen) {
  std::vector<decltype(narrow(0.0f))> stored(scales.size());
  bool exact = true;
  for (std::size_t i = 0; i < scales.size(); ++i) {
    stored[i] = narrow(scales[i]);
    exact &= widen(stored[i]) == scales[i];
  }
  if (!exact)
    throw std::invalid_argument(info.name + ": a scale is not a value of " +
                                std::string(name_of(info.dtype)) +
                                ", so the codes were chosen for another one");
  return packed_tensor(std::move(info), stored);
}

}  // namespace

PackedTensor packed_scales(NamedTensor info, const std::vector<float>& scales) {
  if (!std::all_of(scales.begin(), scales.end(), [](float s) { return std::isfinite(s); }))
    throw not_finite(info.name);
  switch (info.dtype) {
    case DType::f32: return packed_tensor(std::move(info), scales);
    case DType::f16:
      return exact_scales(
          std::move(info), scales, [](float x) { return simd_to_f16(x); },
          [](f16 x) { return simd_to_float(x); });
    case DType::bf16:
      return exact_scales(
          std::move(info), scales, [](float x) { return to_bf16(x); },
          [](bf16 x) { return to_float(x); });
    default: throw std::invalid_argument(info.name + ": scales are stored as F32, F16 or BF16");
  }
}

PackedTensor packed_scales(NamedTensor info, const QuantizedLinear& quantized,
                           Matrix<const std::int32_t> place, Stream& stream) {
  Array<f16> scales(quantized.scale.view.cols, quantized.scale.view.rows, stream);
  Array<std::int32_t> inexact(1, 1, stream);
  fill_zero(inexact.view.data, inexact.memory.bytes(), stream);
  pack_scales(quantized.scale, place, scales, inexact, stream);
  PackedTensor packed = downloaded_tensor(std::move(info), scales.view, stream);
  if (download_matrix(inexact.view, stream).front() != 0)
    throw std::invalid_argument(
        packed.info.name +
        ": a scale is not a finite value of F16, so the codes were chosen for another one");
  return packed;
}

Array<std::uint8_t> stored_zeros(const QuantizedLinear& quantized, Matrix<const std::int32_t> place,
                                 Stream& stream) {
  Array<std::uint8_t> zero(quantized.zero.view.rows, quantized.zero.view.cols, stream);
  scatter_columns(quantized.zero, place, zero, stream);
  return zero;
}

void require_contiguous_groups(const std::string& module, const QuantizedLinear& quantized) {
  const std::size_t groups = quantized.stored_group.size();
  const std::size_t in = quantized.group_of.size();
  for (std::size_t k = 0; k < in; ++k)
    if (static_cast<std::size_t>(
            quantized.stored_group[static_cast<std::size_t>(quantized.group_of[k])]) !=
        k * groups / in)
      throw std::invalid_argument(
          module + ": groups are not runs of columns, which this format has no index for");
}

ContiguousGroups contiguous_groups(const std::string& module, const QuantizedLinear& quantized,
                                   Stream& stream) {
  require_contiguous_groups(module, quantized);
  const std::int64_t out = quantized.scale.view.rows;
  const std::size_t groups = quantized.stored_group.size();
  const auto scale = download_matrix(quantized.scale.view, stream);
  const auto zero = download_matrix(quantized.zero.view, stream);
  ContiguousGroups result{std::vector<float>(scale.size()), std::vector<std::uint8_t>(zero.size())};
  for (std::size_t r = 0; r < static_cast<std::size_t>(out); ++r)
    for (std::size_t g = 0; g < groups; ++g) {
      const std::size_t to = r * groups + static_cast<std::size_t>(quantized.stored_group[g]);
      result.scale[to] = scale[r * groups + g];
      result.zero[to] = zero[r * groups + g];
    }
  return result;
}

Array<std::int32_t> runs_of_columns(std::int64_t in_features, std::int64_t groups, Stream& stream) {
  std::vector<std::int32_t> group_of(static_cast<std::size_t>(in_features));
  for (std::int64_t k = 0; k < in_features; ++k)
    group_of[static_cast<std::size_t>(k)] = static_cast<std::int32_t>(k * groups / in_features);
  return upload(group_of, stream);
}

}  // namespace qpipe
