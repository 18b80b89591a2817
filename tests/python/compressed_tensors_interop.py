#!/usr/bin/env python3
"""transformers with compressed-tensors loads what qpipe writes: compressed_tensors_interop.py QPIPE GOLDEN SHARED, run by the Python that
has the peers.

Two answers: the loaded model as it is (compressed-tensors decompresses at the first forward pass; for FP8 it rounds the inputs, too), and
the weights decompressed while loading (`dequantize`) in a float32 model."""
import os
import sys

import interop
from interop import Answer, Setting

import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig


def weights(format, **args):
    """format, and arguments of the group's weights"""
    return {"format": format, "config_groups": {"group_0": {"weights": args}}}


PACKED = ["output.format=compressed-tensors"]
SETTINGS = {
    "gptq4-sym-g32": Setting(
        [*PACKED, "quantize.group_size=32"],
        weights("pack-quantized", num_bits=4, symmetric=True, strategy="group", group_size=32),
        other_models=True,
    ),
    "gptq4-asym-g32": Setting(
        [*PACKED, "quantize.group_size=32", "quantize.symmetric=false"],
        weights("pack-quantized", num_bits=4, symmetric=False),
        other_models=True,
    ),
    "gptq4-static-groups": Setting(
        [*PACKED, "quantize.group_size=32", "quantize.desc_act=true", "quantize.static_groups=true"], weights("pack-quantized", num_bits=4)
    ),
    "rtn4-sym-g32": Setting(
        [*PACKED, "quantize.method=rtn", "quantize.group_size=32"], weights("pack-quantized", symmetric=True), smollm2=True
    ),
    "rtn4-asym-g32": Setting(
        [*PACKED, "quantize.method=rtn", "quantize.group_size=32", "quantize.symmetric=false"],
        weights("pack-quantized", symmetric=False),
        smollm2=True,
    ),
    "rtn8-channel": Setting(
        [*PACKED, "quantize.method=rtn", "quantize.bits=8", "quantize.group_size=-1"],
        weights("pack-quantized", num_bits=8, strategy="channel"),
    ),
    "rtn8-asym-channel": Setting(
        [*PACKED, "quantize.method=rtn", "quantize.bits=8", "quantize.group_size=-1", "quantize.symmetric=false"],
        weights("pack-quantized", num_bits=8, strategy="channel", symmetric=False),
    ),
    "awq4-g32": Setting([*PACKED, "quantize.method=awq", "quantize.group_size=32"], weights("pack-quantized", num_bits=4)),
    "overrides": Setting(
        [
            *PACKED,
            "quantize.method=rtn",
            "quantize.group_size=32",
            "quantize.overrides=[{match = 'down_proj', bits = 8}, {match = 'layers.1.mlp.up_proj', skip = true}]",
        ],
        {"ignore": ["model.layers.1.mlp.up_proj", "lm_head"]},
    ),
    "fp8": Setting(
        ["quantize.method=fp8"],
        weights("float-quantized", num_bits=8, type="float", strategy="channel"),
        other_models=True,
        smollm2=True,
    ),
    "nvfp4": Setting(
        ["quantize.method=nvfp4"], weights("nvfp4-pack-quantized", num_bits=4, group_size=16), other_models=True, smollm2=True
    ),
    "mxfp4": Setting(
        ["quantize.method=mxfp4"], weights("mxfp4-pack-quantized", num_bits=4, group_size=32), other_models=True, smollm2=True
    ),
}
OTHER_MODELS = ["qwen3", "falcon-40b-style"]


# compressed-tensors rounds code times scale to the scale's or the model's type, by 2^-11 (float16) or 2^-8 (bfloat16) between neighbours; over
# 12 linears one after another sqrt(12) times as much at most: 1.7e-3 and 1.4e-2. mxfp4's products are exact.
FLOAT16_WEIGHTS, BFLOAT16_WEIGHTS = 3e-3, 1.5e-2
IN_FLOAT32 = {"mxfp4": interop.FLOAT32, "nvfp4": BFLOAT16_WEIGHTS, "fp8": BFLOAT16_WEIGHTS}
# As loaded, integer codes run in float16 and the others in bfloat16. FP8 also rounds each linear's inputs to e4m3: 2.6 % in the root mean
# square, and over 12 linears sqrt(12) * 2.6 % = 9e-2.
FLOAT16, FLOAT8_INPUTS = 1e-2, 2e-1


def runs_as_loaded(folder, name):
    """Two faults of the peers: compressed-tensors 0.20 makes room for unpacked zero points, and so refuses llm-compressor's checkpoints as well;
    Falcon's initialization in transformers 5.24 asks packed linears for their weight."""
    return "asym" not in name and "awq" not in name and not ("falcon" in folder and name != "fp8")


def answers(folder, name, input_ids):
    bound = {"fp8": FLOAT8_INPUTS}.get(name, FLOAT16)
    if name != "overrides":  # transformers dequantizes all linears by the first group's settings
        dequantize = CompressedTensorsConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=dequantize)
        logits = interop.logits_of(model, input_ids)
        yield Answer("compressed-tensors' weights in float32", logits, IN_FLOAT32.get(name, FLOAT16_WEIGHTS))
        if name in ("nvfp4", "mxfp4"):
            bound = interop.bfloat16_bound(model, input_ids, logits)
    if runs_as_loaded(os.path.basename(folder), name):
        model = AutoModelForCausalLM.from_pretrained(folder)
        linears = sum(hasattr(module, "quantization_scheme") for module in model.modules())
        if linears == 0:
            raise RuntimeError("compressed-tensors found no quantized linear in the folder")
        yield Answer(f"transformers with {linears} linears", interop.logits_of(model, input_ids), bound)


if __name__ == "__main__":
    sys.exit(interop.main(SETTINGS, OTHER_MODELS, answers))
