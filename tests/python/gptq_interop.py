#!/usr/bin/env python3
"""GPTQModel loads GPTQ folders of qpipe and computes the same: gptq_interop.py QPIPE GOLDEN SHARED, run by the Python that has the peers.

GPTQModel runs in float16 with its plain torch kernel on the CPU; float16 leaves 2e-3 over the three layers of the tiny
models and 3e-3 over SmolLM2's thirty."""
import sys

import interop
from interop import Answer, Setting

import torch
from gptqmodel import BACKEND, GPTQModel

SETTINGS = {
    "sym4-g32": Setting(["quantize.group_size=32"], {"checkpoint_format": "gptq", "bits": 4, "sym": True}, other_models=True),
    "sym4-g64": Setting(["quantize.group_size=64"], {"checkpoint_format": "gptq", "group_size": 64, "sym": True}, smollm2=True),
    "sym8-channel": Setting(["quantize.bits=8", "quantize.group_size=-1"], {"checkpoint_format": "gptq", "bits": 8}),
    "asym4-g32": Setting(
        ["quantize.group_size=32", "quantize.symmetric=false"], {"checkpoint_format": "gptq_v2", "sym": False}, other_models=True
    ),
    "sym3-g32": Setting(["quantize.bits=3", "quantize.group_size=32"], {"bits": 3}),
    "asym3-g64-mse": Setting(
        ["quantize.bits=3", "quantize.group_size=64", "quantize.symmetric=false", "quantize.mse=2.4"],
        {"checkpoint_format": "gptq_v2", "bits": 3},
    ),
    "sym2-g32": Setting(["quantize.bits=2", "quantize.group_size=32"], {"bits": 2}),
    "desc-act": Setting(["quantize.group_size=32", "quantize.desc_act=true"], {"desc_act": True}),
    "static-groups": Setting(
        ["quantize.group_size=32", "quantize.desc_act=true", "quantize.static_groups=true"], {"desc_act": False}
    ),
    "group-aware": Setting(["quantize.group_size=32", "quantize.act_group_aware=true"], {"desc_act": False}),
    "target": Setting(["quantize.group_size=32", "quantize.target=original"], {"checkpoint_format": "gptq", "bits": 4}),
    "rtn": Setting(["quantize.method=rtn", "quantize.group_size=32"], {"bits": 4}),
    "rtn-asym4-g64": Setting(
        ["quantize.method=rtn", "quantize.group_size=64", "quantize.symmetric=false"],
        {"checkpoint_format": "gptq_v2", "group_size": 64, "sym": False},
        smollm2=True,
    ),
}
OTHER_MODELS = ["llama", "llama-mha-tied-bias", "mistral", "qwen2", "qwen3", "falcon-7b-style", "falcon-40b-style"]


def answers(folder, name, input_ids):
    model = GPTQModel.load(folder, device="cpu", backend=BACKEND.TORCH, dtype=torch.float16)
    linears = sum(type(module).__name__ == "TorchLinear" for module in model.model.modules())
    if linears == 0:
        raise RuntimeError("GPTQModel found no quantized linear in the folder")
    yield Answer(f"GPTQModel with {linears} linears", interop.logits_of(model.model, input_ids), 1e-2)


if __name__ == "__main__":
    sys.exit(interop.main(SETTINGS, OTHER_MODELS, answers))
