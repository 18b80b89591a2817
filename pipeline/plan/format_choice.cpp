#include "pipeline/plan/format_choice.h"

#include <fmt/format.h>

#include <algorithm>

#include "pipeline/files/error.h"

namespace qpipe {

namespace {

[[noreturn]] void refuse(const std::string& message) { throw UserError(ExitCode::config, message); }

Codec codec_of(const std::string& method) {
  if (method == "bnb-nf4") return Codec::nf4;
  if (method == "bnb-fp4") return Codec::fp4;
  if (method == "bnb-int8") return Codec::int8_rows;
  if (method == "fp8") return Codec::float8_rows;
  if (method == "fp8-block") return Codec::float8_blocks;
  if (method == "nvfp4") return Codec::nvfp4;
  if (method == "mxfp4") return Codec::mxfp4;
  return Codec::integer;
}

Format format_of(Codec codec) {
  switch (codec) {
    case Codec::nf4:
    case Codec::fp4:
    case Codec::int8_rows: return Format::bitsandbytes;
    case Codec::float8_blocks: return Format::fp8;
    case Codec::float8_rows:
    case Codec::nvfp4:
    case Codec::mxfp4: return Format::compressed_tensors;
    case Codec::integer: break;
  }
  return Format::gptq;
}

// Groups are formed in activation order and need a group index.
bool needs_g_idx(const LinearSettings& s) {
  return s.desc_act && !s.static_groups && s.group_size > 0;
}

bool vllm_group(std::int64_t size) { return size == -1 || size == 32 || size == 64 || size == 128; }

bool vllm_serves_gptq(const LinearSettings& s) {
  return s.symmetric && (s.bits == 4 || s.bits == 8) && vllm_group(s.group_size) && !needs_g_idx(s);
}

bool compressed_tensors_holds(const LinearSettings& s) {
  return (s.bits == 4 || s.bits == 8) && !needs_g_idx(s);
}

// Integer codes: the format when output.format = "auto".
Format automatic_format(const Options& options, const LinearSettings& s) {
  const bool awq =
      options.quantize.method == "awq" && s.bits == 4 && s.group_size > 0 && !needs_g_idx(s);
  if (options.output.target == "vllm") {
    if (awq && !s.symmetric) return Format::awq;
    if (vllm_serves_gptq(s)) return Format::gptq;
    if (compressed_tensors_holds(s)) return Format::compressed_tensors;
    refuse(
        fmt::format("output.target = \"vllm\": vLLM serves 4- and 8-bit weights without desc_act, "
                    "and quantize.bits = {}{}; change them or "
                    "the target",
                    s.bits, needs_g_idx(s) ? " with quantize.desc_act = true" : ""));
  }
  if (awq) return Format::awq;
  return s.symmetric ? Format::gptq : Format::gptq_v2;
}

Format integer_format(const Options& options, const LinearSettings& s) {
  const std::string& format = options.output.format;
  if (format == "auto") return automatic_format(options, s);
  if (format == "gptq") return Format::gptq;
  if (format == "gptq_v2") return Format::gptq_v2;
  if (format == "awq") {
    if (s.bits != 4 || s.group_size < 0)
      refuse(
          "output.format = \"awq\" holds 4-bit codes in groups; set quantize.bits = 4 and a "
          "group_size above 0");
    if (needs_g_idx(s))
      refuse(
          "output.format = \"awq\" has no group index; set quantize.static_groups = true or "
          "quantize.desc_act = false");
    return Format::awq;
  }
  if (s.bits != 4 && s.bits != 8)
    refuse(
        fmt::format("output.format = \"compressed-tensors\" is read alike by all loaders for 4 and "
                    "8 bits only, and quantize.bits = {}",
                    s.bits));
  if (needs_g_idx(s))
    refuse(
        "output.format = \"compressed-tensors\" has no group index; set quantize.static_groups = "
        "true or quantize.desc_act = false");
  return Format::compressed_tensors;
}

DType model_dtype(const std::string& option, DType source, const StorageSettings& storage) {
  const bool codes_of_half_scales = storage.codec == Codec::integer;
  if (option == "bfloat16") {
    if (!takes_bfloat16(storage))
      refuse(
          "output.dtype = \"bfloat16\": compressed-tensors keeps the scales in the model's type, "
          "and they were chosen as float16; use "
          "float16");
    return DType::bf16;
  }
  if (option == "float16" || codes_of_half_scales) return DType::f16;
  return source == DType::f16 ? DType::f16 : DType::bf16;
}

void add_notes(const Options& options, const LinearSettings& s, FormatChoice& choice) {
  const auto note = [&](const std::string& text) { choice.notes.push_back(text); };
  const bool for_vllm = options.output.target != "transformers";
  switch (choice.storage.format) {
    case Format::gptq:
    case Format::gptq_v2:
      if (for_vllm && !vllm_serves_gptq(s)) {
        if (compressed_tensors_holds(s))
          note(
              "vLLM does not serve this GPTQ variant (it takes symmetric 4- and 8-bit codes "
              "without desc_act, groups of 32, 64, 128 or "
              "-1); "
              "output.target = \"vllm\" writes one that it does");
        else
          note(
              "vLLM does not serve this GPTQ variant: it takes quantize.bits = 4 or 8, symmetric = "
              "true, desc_act = false");
      }
      if (options.output.target != "vllm" &&
          std::any_of(options.quantize.overrides.begin(), options.quantize.overrides.end(),
                      [](const ModuleOverride& o) {
                        return o.bits != 0 || o.group_size != 0 || !o.symmetric.empty();
                      }))
        note(
            "transformers ignores settings of single modules (`dynamic`): load this result with "
            "GPTQModel or vLLM, or leave bits, "
            "group_size "
            "and symmetric out of quantize.overrides");
      break;
    case Format::awq:
      if (for_vllm && !vllm_group(s.group_size))
        note("vLLM's fast AWQ kernels need quantize.group_size = 32, 64 or 128; others run slowly");
      break;
    case Format::bitsandbytes:
      if (for_vllm)
        note(
            "vLLM itself does not load bitsandbytes checkpoints (a plug-in does); for vLLM use "
            "quantize.method = \"gptq\", \"awq\" or "
            "\"fp8\"");
      break;
    case Format::compressed_tensors:
      // compressed-tensors 0.19 and 0.20 make room for unpacked zero points when they load into
      // their compressed form.
      if (options.output.target != "vllm" && choice.storage.codec == Codec::integer && !s.symmetric)
        note(
            "transformers loads asymmetric compressed-tensors codes only with "
            "quantization_config=CompressedTensorsConfig(dequantize=True)");
      break;
    case Format::fp8: break;
  }
}

}  // namespace

bool takes_bfloat16(const StorageSettings& storage) {
  return storage.codec != Codec::integer || storage.format != Format::compressed_tensors;
}

DType dtype_named(const std::string& name) {
  if (name == "bfloat16") return DType::bf16;
  if (name == "float16") return DType::f16;
  if (name == "float32") return DType::f32;
  return DType::u8;
}

FormatChoice choose_format(const Options& options, const LinearSettings& settings, DType source) {
  FormatChoice choice;
  StorageSettings& storage = choice.storage;
  storage.codec = codec_of(options.quantize.method);
  if (storage.codec == Codec::integer) {
    storage.format = integer_format(options, settings);
  } else {
    storage.format = format_of(storage.codec);
    if (options.output.format != "auto" && options.output.format != name_of(storage.format))
      refuse(
          fmt::format("output.format = \"{}\": quantize.method = \"{}\" is written as {}; leave "
                      "output.format out",
                      options.output.format, options.quantize.method, name_of(storage.format)));
  }
  storage.dtype = model_dtype(options.output.dtype, source, storage);
  storage.four_bit.kind = storage.codec == Codec::fp4 ? FourBitKind::fp4 : FourBitKind::nf4;
  storage.four_bit.block_size = options.bnb.block_size;
  storage.four_bit.double_quant = options.bnb.double_quant;
  storage.four_bit.storage = dtype_named(options.bnb.storage);
  storage.four_bit.dtype = storage.dtype;
  add_notes(options, settings, choice);
  return choice;
}

void apply_override(const ModuleOverride& o, LinearSettings& s) {
  s.skip = o.skip;
  if (o.bits != 0) s.bits = static_cast<int>(o.bits);
  if (o.group_size != 0) s.group_size = o.group_size;
  if (!o.symmetric.empty()) s.symmetric = o.symmetric == "true";
}

}  // namespace qpipe
