#!/usr/bin/env python3
"""Logits of weights that the peers dequantize, run in float32 by transformers: make_read_back_golden.py ORACLES OUT.safetensors

For the checkpoints whose own logits come from other arithmetic: bitsandbytes' CPU matmul works in bfloat16 whatever the compute dtype,
LLM.int8 and float-quantized round activations. OUT holds NAME = float32 [samples, vocab], the logits of each sample's last position.
Made with bitsandbytes 0.50.2 and transformers 5.17 or newer.
"""
import json
import os
import sys

import bitsandbytes.functional as F
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

NAMES = ("bnb-nf4", "bnb-nf4-double", "bnb-nf4-bf16storage", "bnb-fp4", "bnb-int8", "ct-fp8-dynamic")


def dequantized(tensors):
    weights = {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if not name.endswith(".weight"):
            continue
        if name + ".absmax" in tensors:
            state = {k[len(name) + 1:]: v for k, v in tensors.items() if k.startswith(name + ".")}
            weights[name] = F.dequantize_4bit(tensor, F.QuantState.from_dict(state, device=torch.device("cpu")))
        elif module + ".SCB" in tensors:
            weights[name] = F.int8_vectorwise_dequant(tensor, tensors[module + ".SCB"])
        elif module + ".weight_scale" in tensors:
            weights[name] = tensor.float() * tensors[module + ".weight_scale"]
        else:
            weights[name] = tensor
    return {name: w.float() for name, w in weights.items()}


def main():
    oracles, out = sys.argv[1:]
    logits = {}
    for name in NAMES:
        folder = os.path.join(oracles, "checkpoints", name)
        with open(os.path.join(folder, "config.json")) as f:
            config = json.load(f)
        del config["quantization_config"]
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32).eval()
        model.load_state_dict(dequantized(load_file(os.path.join(folder, "model.safetensors"))))
        ids = load_file(os.path.join(folder, "reference.safetensors"))["input_ids"]
        with torch.no_grad():
            logits[name] = model(input_ids=ids).logits[:, -1].contiguous()
        print(name, tuple(logits[name].shape), logits[name].norm().item())
    save_file(logits, out)


if __name__ == "__main__":
    main()
