"""A tiny Llama or Qwen3-MoE with random weights and calibration tokens, made with Python's standard library: the same bytes on every machine.

Tests of whole runs that must not need other programs' files make their model with make_model() and make_tokens()."""
import array
import json
import os
import random
import struct

VOCABULARY = 96


def bfloat16(value):
    """The upper half of the float32, rounded to nearest even."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) & 0xFFFF


def write_safetensors(path, tensors):
    """tensors: name -> (dtype, shape, bytes)"""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))


def configuration(layers=8, hidden=32, ffn=64, experts=0, vocabulary=VOCABULARY):
    mixture = dict(architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", num_experts=experts, num_experts_per_tok=2,
                   moe_intermediate_size=ffn // 2, norm_topk_prob=True)
    return llama(layers, hidden, ffn, vocabulary) | (mixture if experts else {})


def llama(layers, hidden, ffn, vocabulary):
    return dict(architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=vocabulary, hidden_size=hidden, intermediate_size=ffn,
                num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=2, head_dim=hidden // 2, hidden_act="silu",
                max_position_embeddings=128, rms_norm_eps=1e-6, rope_theta=10000.0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
                torch_dtype="bfloat16")


def make_model(folder, layers=8, hidden=32, ffn=64, seed=7, shards=1, experts=0, vocabulary=VOCABULARY):
    """config.json and model.safetensors, or that many shards with an index. experts: of each layer, in place of its MLP."""
    os.makedirs(folder)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(configuration(layers, hidden, ffn, experts, vocabulary), f, indent=1)
    rng = random.Random(seed)

    def tensor(shape, scale, shift=0.0):
        count = shape[0] * (shape[1] if len(shape) == 2 else 1)
        # A sum of uniform values: random() is the same everywhere, gauss() need not be.
        values = (shift + scale * (rng.random() + rng.random() + rng.random() - 1.5) * 2 for _ in range(count))
        return "BF16", shape, array.array("H", [bfloat16(v) for v in values]).tobytes()

    tensors = {"model.embed_tokens.weight": tensor((vocabulary, hidden), 0.5)}
    for layer in range(layers):
        p = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[p + norm + ".weight"] = tensor((hidden,), 0.1, 1.0)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors[p + f"self_attn.{name}.weight"] = tensor((hidden, hidden), 1.2 / hidden**0.5)
        width = ffn // 2 if experts else ffn
        for module in [f"mlp.experts.{e}" for e in range(experts)] or ["mlp"]:
            for name, rows, cols in (("gate_proj", width, hidden), ("up_proj", width, hidden), ("down_proj", hidden, width)):
                tensors[p + f"{module}.{name}.weight"] = tensor((rows, cols), 1.2 / cols**0.5)
        if experts:
            tensors[p + "mlp.gate.weight"] = tensor((experts, hidden), 1.2 / hidden**0.5)
            for name in ("q_norm", "k_norm"):
                tensors[p + f"self_attn.{name}.weight"] = tensor((hidden // 2,), 0.1, 1.0)
    tensors["model.norm.weight"] = tensor((hidden,), 0.1, 1.0)
    tensors["lm_head.weight"] = tensor((vocabulary, hidden), 1.2 / hidden**0.5)
    if shards == 1:
        write_safetensors(os.path.join(folder, "model.safetensors"), tensors)
        return
    names = sorted(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        weight_map.update({name: file for name in part})
        write_safetensors(os.path.join(folder, file), part)
    with open(os.path.join(folder, "model.safetensors.index.json"), "w") as f:
        json.dump({"metadata": {"total_size": sum(len(data) for _, _, data in tensors.values())}, "weight_map": weight_map}, f, indent=1)


def make_tokens(path, samples=24, seqlen=48, seed=11):
    rng = random.Random(seed)
    ids = array.array("i", [rng.randrange(VOCABULARY) for _ in range(samples * seqlen)])
    write_safetensors(path, {"input_ids": ("I32", (samples, seqlen), ids.tobytes())})
