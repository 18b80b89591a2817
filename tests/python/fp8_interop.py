#!/usr/bin/env python3
"""transformers loads block-wise FP8 folders of qpipe: fp8_interop.py QPIPE GOLDEN SHARED, run by the Python that has the peers.

Its kernels need a GPU; without one it dequantizes the weights while loading, here in a float32 model."""
import sys

import interop
from interop import Answer, Setting

import torch
from transformers import AutoModelForCausalLM

BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
SETTINGS = {
    "block": Setting(["quantize.method=fp8-block"], {**BLOCKS, "modules_to_not_convert": ["lm_head"]}, other_models=True),
    "skip": Setting(
        ["quantize.method=fp8-block", "quantize.overrides=[{match = 'layers.1.mlp.down_proj', skip = true}]"],
        {**BLOCKS, "modules_to_not_convert": ["model.layers.1.mlp.down_proj", "lm_head"]},
    ),
}
OTHER_MODELS = ["qwen2", "qwen3", "falcon-40b-style"]


def answers(folder, name, input_ids):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    yield Answer("transformers in float32", interop.logits_of(model, input_ids), 1e-5)


if __name__ == "__main__":
    sys.exit(interop.main(SETTINGS, OTHER_MODELS, answers))
