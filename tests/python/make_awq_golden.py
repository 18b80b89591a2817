#!/usr/bin/env python3
"""Makes tests/golden/autoawq_search.safetensors: make_awq_golden.py PEERS OUTPUT, PEERS a folder with autoawq 0.2.9 and transformers 4.51.3.

AutoAWQ's own search over tests/golden/models/llama-mha on calib_tiny.safetensors, in float32 on the CPU: scale.N and clip.N in the order
of the searches, their modules in the metadata. As released it keeps `org_sd = {k: v.cpu()}` to restore the weights after each candidate,
which on a CPU shares memory with the weights that it multiplies in place; here .cpu() copies, as it does from a GPU."""
import importlib.machinery
import json
import os
import sys
import types

sys.path.insert(0, sys.argv[1])
import torch
from safetensors.torch import load_file, save_file

datasets = types.ModuleType("datasets")  # AutoAWQ imports it and, given ids, does not use it
datasets.load_dataset, datasets.Dataset, datasets.__version__ = None, object, "3.0.0"
datasets.__spec__ = importlib.machinery.ModuleSpec("datasets", None)
sys.modules["datasets"] = datasets
from awq import AutoAWQForCausalLM
from awq.quantize import quantizer

golden = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden")
calib = load_file(os.path.join(golden, "calib_tiny.safetensors"))["calib"].long()
quantizer.get_calib_dataset = lambda **kwargs: [calib[i:i + 1] for i in range(len(calib))]
Quantizer = quantizer.AwqQuantizer
tensors, modules = {}, {}


def record(kind, about, value):
    name = f"{kind}.{sum(n.startswith(kind) for n in tensors)}"
    tensors[name], modules[name] = value.float().clone().contiguous(), about


compute_best_scale, search_best_scale, search_best_clip = Quantizer._compute_best_scale, Quantizer._search_best_scale, Quantizer._search_best_clip


def compute_with_copies(self, *args, **kwargs):
    cpu = torch.Tensor.cpu
    torch.Tensor.cpu = lambda tensor: cpu(tensor).clone()
    try:
        return compute_best_scale(self, *args, **kwargs)
    finally:
        torch.Tensor.cpu = cpu


def record_scale(self, *args, **kwargs):
    found = search_best_scale(self, *args, **kwargs)
    record("scale", json.dumps([found[0], list(found[1])]), found[2])
    return found


def record_clip(self, *args, **kwargs):
    found = search_best_clip(self, *args, **kwargs)
    for name, limit in found:
        record("clip", name, limit)
    return found


Quantizer._compute_best_scale, Quantizer._search_best_scale, Quantizer._search_best_clip = compute_with_copies, record_scale, record_clip
model = AutoAWQForCausalLM.from_pretrained(os.path.join(golden, "models", "llama-mha"), device_map="cpu", torch_dtype=torch.float32)
model.quantize(None, quant_config={"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}, max_calib_samples=len(calib),
               max_calib_seq_len=calib.shape[1])
save_file(tensors, sys.argv[2], metadata=modules)
