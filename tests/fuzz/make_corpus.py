#!/usr/bin/env python3
"""Seeds of the fuzz harnesses: make_corpus.py FOLDER makes FOLDER/NAME/... for each tests/fuzz/NAME_fuzz.cpp, the same each time.

Inputs that once were a fault are files in tests/fuzz/corpus/NAME."""
import gzip
import json
import os
import shutil
import struct
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDEN = os.path.join(HERE, "..", "golden")
CONFIGS = os.path.join(HERE, "..", "..", "configs")
SEPARATOR = b"\n--- \n"
HIDDEN, VOCABULARY, GROUP = 32, 8, 32
LINEARS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
SIZES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I8": 1, "U8": 1, "F8_E4M3": 1}


def header_of(tensors):
    head, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, data) in tensors.items():
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(head, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def safetensors(tensors):
    header = header_of(tensors)
    return struct.pack("<Q", len(header)) + header + b"".join(data for _, _, data in tensors.values())


def filled(dtype, shape, pattern=None):
    count = 1
    for size in shape:
        count *= size
    pattern = pattern if pattern is not None else {"F16": b"\x00\x3c", "BF16": b"\x80\x3f", "F32": b"\x00\x00\x80\x3f"}.get(dtype, b"\x01" * SIZES[dtype])
    return dtype, shape, (pattern * count)[:count * SIZES[dtype]]


def text_tensor(text):
    return "U8", [len(text)], text.encode()


def configuration(**more):
    return dict(architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=HIDDEN,
                num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=HIDDEN // 2, hidden_act="silu", max_position_embeddings=64,
                rms_norm_eps=1e-6, rope_theta=10000.0, tie_word_embeddings=False, torch_dtype="bfloat16", **more)


def packed_linear(kind):
    """Tensors of one linear of 32 inputs and 32 outputs."""
    n = HIDDEN
    if kind == "gptq":
        return {"qweight": filled("I32", [n // 8, n]), "qzeros": filled("I32", [1, n // 8]), "scales": filled("F16", [1, n]),
                "g_idx": filled("I32", [n], bytes(4))}
    if kind == "awq":
        return {"qweight": filled("I32", [n, n // 8]), "qzeros": filled("I32", [1, n // 8]), "scales": filled("F16", [1, n])}
    if kind == "compressed-tensors":
        return {"weight_packed": filled("I32", [n, n // 8]), "weight_scale": filled("F32", [n, 1]), "weight_shape": ("I64", [2], struct.pack("<2q", n, n))}
    if kind == "fp8":
        return {"weight": filled("F8_E4M3", [n, n]), "weight_scale_inv": filled("F32", [1, 1])}
    if kind == "bnb-int8":
        return {"weight": filled("I8", [n, n]), "SCB": filled("F32", [n]), "weight_format": ("U8", [], b"\0")}
    state = json.dumps({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [n, n]})
    nf4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
           0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
           0.7229568362236023, 1.0]
    return {"weight": filled("U8", [n * n // 2, 1]), "weight.absmax": filled("F32", [n * n // 64]), "weight.quant_map": ("F32", [16], struct.pack("<16f", *nf4)),
            "weight.quant_state.bitsandbytes__nf4": text_tensor(state)}


QUANTIZATION = {
    "gptq": dict(quant_method="gptq", bits=4, group_size=GROUP, desc_act=False, sym=True, checkpoint_format="gptq", lm_head=False),
    "awq": dict(quant_method="awq", bits=4, group_size=GROUP, version="gemm", zero_point=True, modules_to_not_convert=None),
    "compressed-tensors": dict(quant_method="compressed-tensors", format="pack-quantized", quantization_status="compressed", ignore=["lm_head"], kv_cache_scheme=None,
                               config_groups=dict(group_0=dict(format="pack-quantized", targets=["Linear"], input_activations=None, output_activations=None,
                                                               weights=dict(num_bits=4, type="int", symmetric=True, strategy="group", group_size=GROUP,
                                                                            dynamic=False, actorder=None)))),
    "fp8": dict(quant_method="fp8", activation_scheme="dynamic", fmt="e4m3", weight_block_size=[128, 128]),
    "bnb-int8": dict(quant_method="bitsandbytes", load_in_8bit=True, load_in_4bit=False, llm_int8_threshold=6.0),
    "bnb-nf4": dict(quant_method="bitsandbytes", load_in_8bit=False, load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_quant_storage="uint8",
                    bnb_4bit_use_double_quant=False, bnb_4bit_compute_dtype="bfloat16"),
}


def packed_checkpoint(kind):
    tensors = {"model.embed_tokens.weight": filled("BF16", [VOCABULARY, HIDDEN])}
    for linear in LINEARS:
        for part, tensor in packed_linear(kind).items():
            tensors[f"model.layers.0.{linear}.{part}"] = tensor
    for norm in ("model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm", "model.norm"):
        tensors[norm + ".weight"] = filled("BF16", [HIDDEN])
    tensors["lm_head.weight"] = filled("BF16", [VOCABULARY, HIDDEN])
    return configuration(quantization_config=QUANTIZATION[kind]), tensors


def seeds():
    """(harness, name, bytes) of each."""
    for i, text in enumerate((b"plain", "Grüße \u202e \x1b[31m\n\r\t".encode(), b"\xff\xfe\x80\xe2\x82", b"x" * 3000, "\u00e9".encode() * 900)):
        yield "printable", str(i), text
    for text in ("5GB", "500 MiB", "4096", "4096B", "1.5TiB", "0", "9223372036854775807", "8EiB", "1e3"):
        yield "sizes", text.replace(" ", "_"), text.encode()
    lines = b'{"text": "It is a truth"}\n\n{"text": "universally", "id": 3}\r\n{"other": [1, 2.5e3, null, true, "\\ud83d\\ude00"], "text": ""}\n'
    yield "text", "json", b'{"a": [1, -2.5e3, true, null, "\\u00e9"], "b": {"c": {}}}'
    yield "text", "lines", b"l" + lines
    yield "text", "plain", b"t" + lines
    yield "text", "gzip", b"z" + gzip.compress(lines, mtime=0)
    tensors = {"a": filled("F32", [2, 3]), "b": filled("BF16", [4]), "c": filled("I64", []), "d": filled("U8", [0, 5])}
    yield "safetensors", "whole", safetensors(tensors)
    yield "safetensors", "header", header_of(tensors)
    index = {"metadata": {"total_size": 16}, "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00001-of-00002.safetensors",
                                                            "c": "model-00002-of-00002.safetensors", "d": "model-00002-of-00002.safetensors"}}
    yield "index", "two-shards", json.dumps(index).encode()
    for family in sorted(os.listdir(os.path.join(GOLDEN, "models"))):
        with open(os.path.join(GOLDEN, "models", family, "config.json"), "rb") as f:
            yield "config", family, f.read()
    for kind, quantization in QUANTIZATION.items():
        yield "config", "packed-" + kind, json.dumps(configuration(quantization_config=quantization), indent=1).encode()
    with open(os.path.join(GOLDEN, "tokens_h5py.h5"), "rb") as f:
        yield "tokens", "h5py", f.read()
    for dtype in ("I32", "I64", "I8", "U8"):
        yield "tokens", dtype, safetensors({"input_ids": filled(dtype, [3, 4])})
    for name in sorted(os.listdir(CONFIGS)):
        if name.endswith(".toml"):
            with open(os.path.join(CONFIGS, name), "rb") as f:
                yield "options", name, f.read()
    every = (b'[model]\npath = "m"\n[calibration]\ndata = "d.h5"\nsamples = 8\nmode = "documents"\n[output]\npath = "o"\nmax_shard_size = "5GB"\n'
             b'[quantize]\nmethod = "awq"\nbits = 4\ngroup_size = 128\n[[quantize.overrides]]\nmatch = "down_proj$"\nbits = 8\n'
             b'[[quantize.overrides]]\nmatch = "lm_head"\nskip = true\n[memory]\ngpu = "22GiB"\n')
    yield "options", "overrides", every
    yield "options", "sets", every + SEPARATOR + b"quantize.bits=3" + SEPARATOR + b"memory.gpu=10 GiB" + SEPARATOR + b'calibration.samples = 1_0'
    record = dict(layer=0, part=0, parts=1, tensors={"a": "0" * 32}, held={}, findings=dict(
        modules=[dict(name="model.layers.0.mlp.down_proj", mean_squared_error=0.1, factors=[1.0, 0.5])], scales=[], zero_of_zero=False, factors=[]))
    parts = [json.dumps(value).encode() for value in ({"quantize.bits": 4}, record, {"memory": {"micro_batch": 200}})]
    yield "records", "sealed", SEPARATOR.join(b"seal " + part for part in parts)
    yield "records", "unsealed", SEPARATOR.join(parts)
    yield "records", "empty", b"seal {\"quantize.bits\": 4}"
    for kind in QUANTIZATION:
        config, tensors = packed_checkpoint(kind)
        yield "packed", kind + "-whole", json.dumps(config).encode() + SEPARATOR + safetensors(tensors)
        yield "packed", kind, json.dumps(config).encode() + SEPARATOR + header_of(tensors)
    yield "tokenizer", "two", struct.pack("<3q5i", 2, 3, 2, 1, 2, 3, 4, 5)
    yield "tokenizer", "none", struct.pack("<q", 0)
    modules = "\n".join(f"model.layers.{layer}.{linear}" for layer in (0, 1, 12) for linear in LINEARS)
    yield "patterns", "llama", modules.encode()
    yield "patterns", "beside", b"visual.blocks.0.mlp.fc1\nmodel.layers.61.mlp.experts.0.gate_proj\nmodel.layers.61.mlp.experts.1.gate_proj\nlm_head\na.experts"
    yield "patterns", "match", b"match model\\.layers\\.[01]\\.(mlp|self_attn)\\..*_proj$"
    yield "patterns", "nested", b"match (.+)+_proj$"


def main(folder):
    shutil.rmtree(folder, ignore_errors=True)
    for harness, name, data in seeds():
        os.makedirs(os.path.join(folder, harness), exist_ok=True)
        with open(os.path.join(folder, harness, name), "wb") as f:
            f.write(data)


main(sys.argv[1])
