#include "stages/formats/format.h"

#include <cmath>
#include <stdexcept>

#include "kernels/float4.h"
#include "kernels/float8.h"
#include "kernels/int8_rows.h"
#include "stages/formats/awq_format.h"
#include "stages/formats/compressed_tensors_format.h"
#include "stages/formats/fp8_format.h"

namespace qpipe {

namespace {

// The global scale of NVFP4 linears that are run as one.
float shared_global_scale(const std::vector<const Linear*>& linears, Stream& stream) {
  Array<float> largest(1, 1, stream);
  fill_zero(largest.view.data, sizeof(float), stream);
  for (const Linear* linear : linears) accumulate_absmax(linear->stored, largest, stream);
  float absmax = 0.0f;
  copy_to_host(&absmax, largest.view.data, sizeof(absmax), stream);
  if (!std::isfinite(absmax))
    throw std::runtime_error(
        linears.front()->name +
        " or a linear of the same input: a weight is not finite; check the checkpoint");
  return nvfp4_global_scale(absmax);
}

std::vector<PackedTensor> cast_linear(const Linear& linear, float global_scale,
                                      const StorageSettings& storage, Stream& stream) {
  const ConstTensor w = linear.stored;
  switch (storage.codec) {
    case Codec::nf4:
    case Codec::fp4: {
      Array<float> absmax(1, block_count(w.size(), storage.four_bit.block_size), stream);
      Array<std::uint8_t> packed(1, (w.size() + 1) / 2, stream);
      quantize_blocks(w, storage.four_bit.kind, storage.four_bit.block_size, absmax, packed,
                      stream);
      return pack_four_bit(linear.name, w.rows, w.cols, storage.four_bit, packed.view, absmax.view,
                           stream);
    }
    case Codec::int8_rows: {
      Array<float> scb(1, w.rows, stream);
      Array<std::int8_t> code(w.rows, w.cols, stream);
      quantize_int8_rows(w, scb, code, stream);
      return pack_int8(linear.name, code.view, scb.view, stream);
    }
    case Codec::float8_rows: {
      Array<float> scale(w.rows, 1, stream);
      Array<std::uint8_t> code(w.rows, w.cols, stream);
      quantize_float8_rows(w, storage.dtype, code, scale, stream);
      return pack_ct_float8(linear.name, code.view, scale.view, storage.dtype, stream);
    }
    case Codec::float8_blocks: {
      const auto blocks = [](std::int64_t n) { return (n + float8_block - 1) / float8_block; };
      Array<float> scale(blocks(w.rows), blocks(w.cols), stream);
      Array<std::uint8_t> code(w.rows, w.cols, stream);
      quantize_float8_blocks(w, code, scale, stream);
      return pack_fp8(linear.name, code.view, scale.view, stream);
    }
    case Codec::nvfp4: {
      Array<std::uint8_t> packed(w.rows, w.cols / 2, stream);
      Array<std::uint8_t> scale(w.rows, w.cols / nvfp4_group, stream);
      quantize_nvfp4(w, global_scale, packed, scale, stream);
      return pack_ct_nvfp4(linear.name, packed.view, scale.view, global_scale, stream);
    }
    case Codec::mxfp4: {
      Array<std::uint8_t> packed(w.rows, w.cols / 2, stream);
      Array<std::uint8_t> scale(w.rows, w.cols / mxfp4_group, stream);
      quantize_mxfp4(w, packed, scale, stream);
      return pack_ct_mxfp4(linear.name, packed.view, scale.view, stream);
    }
    case Codec::integer: break;
  }
  throw std::invalid_argument("cast_linears: integer codes come from solve()");
}

}  // namespace

const char* name_of(Format format) {
  switch (format) {
    case Format::gptq: return "gptq";
    case Format::gptq_v2: return "gptq_v2";
    case Format::awq: return "awq";
    case Format::compressed_tensors: return "compressed-tensors";
    case Format::bitsandbytes: return "bitsandbytes";
    case Format::fp8: return "fp8";
  }
  return "?";
}

std::vector<NamedTensor> stored_tensors(const std::string& module, std::int64_t out,
                                        std::int64_t in, const LinearSettings& settings,
                                        const StorageSettings& storage) {
  switch (storage.codec) {
    case Codec::nf4:
    case Codec::fp4: return four_bit_tensors(module, out, in, storage.four_bit);
    case Codec::int8_rows: return int8_tensors(module, out, in);
    case Codec::float8_rows: return ct_float8_tensors(module, out, in, storage.dtype);
    case Codec::float8_blocks: return fp8_tensors(module, out, in);
    case Codec::nvfp4: return ct_nvfp4_tensors(module, out, in);
    case Codec::mxfp4: return ct_mxfp4_tensors(module, out, in);
    case Codec::integer: break;
  }
  if (storage.format == Format::awq) return awq_tensors(module, out, in, settings.group_size);
  if (storage.format == Format::compressed_tensors)
    return ct_integer_tensors(module, out, in, settings.bits, settings.group_size,
                              settings.symmetric, storage.dtype);
  return gptq_tensors(module, out, in, settings.bits, settings.group_size);
}

std::vector<PackedTensor> pack_integer(const std::string& module, const QuantizedLinear& quantized,
                                       const StorageSettings& storage, Stream& stream) {
  switch (storage.format) {
    case Format::gptq: return pack_gptq(module, quantized, GptqFormat::v1, stream);
    case Format::gptq_v2: return pack_gptq(module, quantized, GptqFormat::v2, stream);
    case Format::awq: return pack_awq_linear(module, quantized, stream);
    case Format::compressed_tensors:
      return pack_ct_integer(module, quantized, storage.dtype, stream);
    case Format::bitsandbytes:
    case Format::fp8: break;
  }
  throw std::invalid_argument(std::string("pack_integer: ") + name_of(storage.format) +
                              " holds no integer codes");
}

std::vector<PackedTensor> cast_linears(const std::vector<const Linear*>& linears,
                                       const StorageSettings& storage, Stream& stream) {
  const float global_scale =
      storage.codec == Codec::nvfp4 ? shared_global_scale(linears, stream) : 0.0f;
  std::vector<PackedTensor> tensors;
  for (const Linear* linear : linears)
    for (PackedTensor& tensor : cast_linear(*linear, global_scale, storage, stream))
      tensors.push_back(std::move(tensor));
  return tensors;
}

}  // namespace qpipe
