"""The weights of the peers' compressed-tensors and AWQ checkpoints, dequantized by a transcription of the peers' own code in NumPy, as
CRC-32 of each linear's float32 bytes: tests/golden/ct_dequantized.json, which pipeline/ct_oracle_test.cpp compares with.

    python3 tests/python/ct_dequantize.py ORACLES > tests/golden/ct_dequantized.json     (needs numpy and ml_dtypes)

ORACLES holds models/llama-mha and checkpoints/ (see its README). The transcription itself is judged by the peers' answers: a plain
float32 Llama is run with the dequantized weights and must give the logits that the peer's loader gave.
"""

import json
import struct
import sys
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np

DTYPES = {
    "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "U8": np.uint8, "I32": np.int32, "I64": np.int64,
}  # fmt: skip
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def load(path):
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    tensors = {}
    for name, info in json.loads(raw[8 : 8 + size]).items():
        if name != "__metadata__":
            begin, end = info["data_offsets"]
            data = raw[8 + size + begin : 8 + size + end]
            tensors[name] = np.frombuffer(data, DTYPES[info["dtype"]]).reshape(info["shape"])
    return tensors


def unpack_from_int32(words, bits, count):
    """compressors/pack_quantized/helpers.py for widths that divide 32, along the last dimension; returns q."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    fields = (words.view(np.uint32)[..., None] >> shifts) & np.uint32(2**bits - 1)
    return fields.reshape(*words.shape[:-1], -1)[..., :count].astype(np.int32) - 2 ** (bits - 1)


def integer(t, module, bits):
    rows, cols = t[module + ".weight_shape"]
    scale = t[module + ".weight_scale"].astype(np.float32)
    q = unpack_from_int32(t[module + ".weight_packed"], bits, cols)
    zero = np.zeros(scale.shape, np.int32)
    if module + ".weight_zero_point" in t:
        zero = unpack_from_int32(np.ascontiguousarray(t[module + ".weight_zero_point"].T), bits, rows).T
    group = cols // scale.shape[1]
    return (q - np.repeat(zero, group, 1)).astype(np.float32) * np.repeat(scale, group, 1)


def float8(t, module):
    return t[module + ".weight"].astype(np.float32) * t[module + ".weight_scale"].astype(np.float32)


def e2m1(packed):
    return E2M1[np.stack([packed & 15, packed >> 4], -1).reshape(packed.shape[0], -1)]


def nvfp4(t, module):
    scale = t[module + ".weight_scale"].astype(np.float32) / t[module + ".weight_global_scale"]
    return (e2m1(t[module + ".weight_packed"]) * np.repeat(scale, 16, 1)).astype(ml_dtypes.bfloat16).astype(np.float32)


def mxfp4(t, module):
    scale = np.ldexp(np.float32(1), t[module + ".weight_scale"].astype(np.int32) - 127)
    return (e2m1(t[module + ".weight_packed"]) * np.repeat(scale, 32, 1)).astype(ml_dtypes.bfloat16).astype(np.float32)


def awq(t, module):
    """AutoAWQ, utils/packing_utils.py: unpack in order, then take AWQ_REVERSE_ORDER."""

    def unpack(words):
        nibbles = (words.view(np.uint32)[..., None] >> np.arange(0, 32, 4, dtype=np.uint32)) & np.uint32(15)
        return nibbles[..., [0, 4, 1, 5, 2, 6, 3, 7]].reshape(words.shape[0], -1).astype(np.int32)

    code, zero, scale = unpack(t[module + ".qweight"]), unpack(t[module + ".qzeros"]), t[module + ".scales"].astype(np.float32)
    group = code.shape[0] // scale.shape[0]
    return np.ascontiguousarray(((code - np.repeat(zero, group, 0)).astype(np.float32) * np.repeat(scale, group, 0)).T)


CHECKPOINTS = {
    "ct-gptq-w4-sym": lambda t, m: integer(t, m, 4),
    "ct-gptq-w4-asym-static": lambda t, m: integer(t, m, 4),
    "ct-awq-w4-asym": lambda t, m: integer(t, m, 4),
    "ct-rtn-w8": lambda t, m: integer(t, m, 8),
    "ct-fp8-dynamic": float8,
    "ct-nvfp4a16": nvfp4,
    "ct-mxfp4a16": mxfp4,
    "awq-gemm-g32": awq,
}


def llama(config, w, ids, float8_inputs):
    """float8_inputs: a linear's input is quantized to e4m3, one scale a token, as FP8 dynamic does."""
    heads, width = config["num_attention_heads"], config["hidden_size"] // config["num_attention_heads"]

    def linear(x, name):
        if float8_inputs:
            scale = np.abs(x).max(-1, keepdims=True) / np.float32(448)
            x = (x / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
        return x @ w[name].T

    def norm(x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"]) * w[name + ".weight"].astype(np.float32)

    def rotate(x):
        angle = np.arange(x.shape[1])[:, None] * 10000.0 ** (-np.arange(0, width, 2) / width)
        cos, sin = (np.concatenate([f(angle)] * 2, -1)[None, :, None].astype(np.float32) for f in (np.cos, np.sin))
        return x * cos + np.concatenate([-x[..., width // 2 :], x[..., : width // 2]], -1) * sin

    h = w["model.embed_tokens.weight"].astype(np.float32)[ids]
    batch, length = ids.shape
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        x = norm(h, p + "input_layernorm")
        q, k, v = (linear(x, p + f"self_attn.{n}_proj").reshape(batch, length, heads, width) for n in "qkv")
        score = np.einsum("bqhd,bkhd->bhqk", rotate(q), rotate(k)) / np.sqrt(width)
        score = np.where(np.tri(length, dtype=bool), score, -np.inf)
        weight = np.exp(score - score.max(-1, keepdims=True))
        weight /= weight.sum(-1, keepdims=True)
        h = h + linear(np.einsum("bhqk,bkhd->bqhd", weight, v).reshape(batch, length, -1).astype(np.float32), p + "self_attn.o_proj")
        x = norm(h, p + "post_attention_layernorm")
        gate = linear(x, p + "mlp.gate_proj")
        h = h + linear(gate / (1 + np.exp(-gate)) * linear(x, p + "mlp.up_proj"), p + "mlp.down_proj")
    return norm(h, "model.norm") @ w["lm_head.weight"].astype(np.float32).T


def main():
    oracles = Path(sys.argv[1])
    names = load(oracles / "models/llama-mha/model.safetensors")
    modules = sorted(n[: -len(".weight")] for n in names if n.endswith("proj.weight"))
    answer = {}
    for checkpoint, dequantized in CHECKPOINTS.items():
        folder = oracles / "checkpoints" / checkpoint
        tensors = load(folder / "model.safetensors")
        weights = {module: dequantized(tensors, module) for module in modules}
        answer[checkpoint] = {module: zlib.crc32(np.ascontiguousarray(w).tobytes()) for module, w in weights.items()}
        reference = load(folder / "reference.safetensors")
        config = json.loads((folder / "config.json").read_text())
        logits = llama(config, {**tensors, **weights}, reference["input_ids"], "fp8" in checkpoint)
        wanted = reference["logits_float32" if "awq-gemm" in checkpoint else "logits"]
        error = np.linalg.norm(logits - wanted) / np.linalg.norm(wanted)
        print(f"{checkpoint}: relative error of the logits {error:.2e}", file=sys.stderr)
        assert error < (0.03 if "fp4" in checkpoint else 1e-3), checkpoint
    json.dump(answer, sys.stdout, indent=1)
    print()


main()
