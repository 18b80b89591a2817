#!/usr/bin/env python3
"""transformers loads block-wise FP8 folders of qpipe: fp8_interop.py QPIPE GOLDEN SHARED, run by the Python that has the peers.

Its kernels need a GPU; without one it dequantizes the weights while loading, here in a float32 model. That way refuses sizes that 128 does
not divide (transformers 5.24), which are all of SmolLM2's linears; compressed-tensors' dequantization of blocks takes them."""
import os
import sys

import interop
from interop import Answer, Setting

import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
SETTINGS = {
    "block": Setting(["quantize.method=fp8-block"], {**BLOCKS, "modules_to_not_convert": ["lm_head"]}, other_models=True, smollm2=True),
    "skip": Setting(
        ["quantize.method=fp8-block", "quantize.overrides=[{match = 'layers.1.mlp.down_proj', skip = true}]"],
        {**BLOCKS, "modules_to_not_convert": ["model.layers.1.mlp.down_proj", "lm_head"]},
    ),
}
OTHER_MODELS = ["qwen2", "qwen3", "falcon-40b-style"]


def dequantized(folder):
    """A float32 model with the weights that compressed-tensors gives."""
    args = QuantizationArgs(num_bits=8, type="float", strategy="block", block_structure=[128, 128])
    tensors = load_file(os.path.join(folder, "model.safetensors"))
    for name in [name for name in tensors if name.endswith("_scale_inv")]:
        scale, weight = tensors.pop(name), name.removesuffix("_scale_inv")
        tensors[weight] = dequantize(tensors[weight].float(), scale, args=args, dtype=torch.float32)
    return interop.float32_model(folder, tensors)


def transformers_reads(folder):
    """It takes the blocks' size from the number of scales: right for whole blocks and for a single one."""
    tensors = load_file(os.path.join(folder, "model.safetensors"))
    sizes = [size for name, weight in tensors.items() if name + "_scale_inv" in tensors for size in weight.shape]
    return all(size <= 128 or size % 128 == 0 for size in sizes)


def answers(folder, name, input_ids):
    yield Answer("compressed-tensors' weights in float32", interop.logits_of(dequantized(folder), input_ids), interop.FLOAT32)
    if transformers_reads(folder):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        yield Answer("transformers in float32", interop.logits_of(model, input_ids), interop.FLOAT32)


if __name__ == "__main__":
    sys.exit(interop.main(SETTINGS, OTHER_MODELS, answers))
