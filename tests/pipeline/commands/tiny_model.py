"""A random Llama of a few kilobytes, and token ids for it, with the standard library alone."""
import json
import os
import random
import struct

VOCABULARY, HIDDEN, FFN = 64, 32, 64


def write_safetensors(path, tensors):
    """tensors: name → (dtype, shape, bytes)."""
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))


def bf16(values):
    return b"".join(struct.pack("<f", value)[2:] for value in values)


def write_model(folder, layers=2, **config):
    rng = random.Random(7)
    os.makedirs(folder)

    def weight(*shape):
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        return "BF16", list(shape), bf16(rng.gauss(0, 0.1) if len(shape) > 1 else 1.0 for _ in range(count))

    tensors = {"model.embed_tokens.weight": weight(VOCABULARY, HIDDEN), "lm_head.weight": weight(VOCABULARY, HIDDEN), "model.norm.weight": weight(HIDDEN)}
    for layer in range(layers):
        for name, shape in (("input_layernorm", (HIDDEN,)), ("post_attention_layernorm", (HIDDEN,)), ("self_attn.q_proj", (HIDDEN, HIDDEN)),
                            ("self_attn.k_proj", (HIDDEN, HIDDEN)), ("self_attn.v_proj", (HIDDEN, HIDDEN)), ("self_attn.o_proj", (HIDDEN, HIDDEN)),
                            ("mlp.gate_proj", (FFN, HIDDEN)), ("mlp.up_proj", (FFN, HIDDEN)), ("mlp.down_proj", (HIDDEN, FFN))):
            tensors[f"model.layers.{layer}.{name}.weight"] = weight(*shape)
    write_safetensors(os.path.join(folder, "model.safetensors"), tensors)
    values = dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="silu", rms_norm_eps=1e-5, tie_word_embeddings=False, hidden_size=HIDDEN,
                  intermediate_size=FFN, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=4, vocab_size=VOCABULARY,
                  max_position_embeddings=128, torch_dtype="bfloat16")
    values.update(config)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(values, f)
    for name in ("tokenizer_config.json", "generation_config.json"):
        with open(os.path.join(folder, name), "w") as f:
            f.write("{}")


def write_tokens(path, samples=8, length=16):
    rng = random.Random(8)
    ids = struct.pack(f"<{samples * length}i", *(rng.randrange(VOCABULARY) for _ in range(samples * length)))
    write_safetensors(path, {"input_ids": ("I32", [samples, length], ids)})
