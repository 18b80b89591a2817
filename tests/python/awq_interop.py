#!/usr/bin/env python3
"""GPTQModel loads AWQ folders of qpipe, and AutoAWQ's own unpacking gives their weights: awq_interop.py QPIPE GOLDEN SHARED, run by the
Python that has the peers.

AutoAWQ is deprecated and its package does not import beside today's transformers; its packing_utils.py is run by itself."""
import importlib.util
import json
import os
import sys

import interop
from interop import Answer, Setting

import torch
from gptqmodel import BACKEND, GPTQModel
from safetensors.torch import load_file

GEMM = {"quant_method": "awq", "version": "gemm", "bits": 4, "zero_point": True}
SETTINGS = {
    "g32": Setting(["quantize.method=awq", "quantize.group_size=32"], {**GEMM, "group_size": 32}, other_models=True),
    "g64": Setting(["quantize.method=awq", "quantize.group_size=64"], {**GEMM, "group_size": 64}),
    "g64-short-search": Setting(
        ["quantize.method=awq", "quantize.group_size=64", "awq.grid=2", "awq.clip=false"], {**GEMM, "group_size": 64}, smollm2=True
    ),
    "by-gptq": Setting(["quantize.method=awq", "quantize.group_size=32", "awq.rounding=gptq"], GEMM),
    "gram": Setting(["quantize.method=awq", "quantize.group_size=32", "awq.search=gram"], GEMM),
    "gptq-asym": Setting(["output.format=awq", "quantize.group_size=32", "quantize.symmetric=false"], GEMM, other_models=True),
    "rtn": Setting(["output.format=awq", "quantize.method=rtn", "quantize.group_size=32"], GEMM),
    "skip": Setting(
        [
            "quantize.method=awq",
            "quantize.group_size=32",
            "quantize.overrides=[{match = 'layers.1.mlp.down_proj', skip = true}]",
        ],
        {"modules_to_not_convert": ["model.layers.1.mlp.down_proj"]},
    ),
}
OTHER_MODELS = ["qwen2", "qwen3", "falcon-40b-style"]


def autoawq_packing_utils():
    package = importlib.util.find_spec("awq").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("packing_utils", os.path.join(package, "utils", "packing_utils.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def dequantized(folder):
    """A float32 model with the weights that AutoAWQ's dequantize_gemm gives."""
    packing = autoawq_packing_utils()
    with open(os.path.join(folder, "config.json")) as f:
        group_size = json.load(f)["quantization_config"]["group_size"]
    tensors = load_file(os.path.join(folder, "model.safetensors"))
    for name in [name for name in tensors if name.endswith(".qweight")]:
        module = name.removesuffix(".qweight")
        code, zero, scale = (tensors.pop(f"{module}.{part}") for part in ("qweight", "qzeros", "scales"))
        tensors[module + ".weight"] = packing.dequantize_gemm(code, zero, scale.float(), 4, group_size).T
    return interop.float32_model(folder, tensors)


def answers(folder, name, input_ids):
    model = GPTQModel.load(folder, device="cpu", backend=BACKEND.TORCH_AWQ, dtype=torch.float16)
    linears = sum(type(module).__name__ == "AwqTorchLinear" for module in model.model.modules())
    if linears == 0:
        raise RuntimeError(f"GPTQModel found no quantized linear in the folder: {sorted({type(m).__name__ for m in model.model.modules()})}")
    yield Answer(f"GPTQModel with {linears} linears", interop.logits_of(model.model, input_ids), 1e-2)
    yield Answer("AutoAWQ's weights in float32", interop.logits_of(dequantized(folder), input_ids), interop.FLOAT32)


if __name__ == "__main__":
    sys.exit(interop.main(SETTINGS, OTHER_MODELS, answers))
