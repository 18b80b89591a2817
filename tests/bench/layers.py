#!/usr/bin/env python3
"""Quantizes decoder layers in the shapes of published models, with random weights: seconds a layer by phase, beside their floor.

    python3 tests/bench/layers.py --qpipe build/release/qpipe [--shape qwen3-30b-a3b|deepseek-v3|qwen3.5-27b] [--method gptq] [--layers 4] [--samples 128]
                                  [--seqlen 2048] [--repeat 1] [--work DIR] [--launcher "mpirun -np 2"] [--set k=v ...]

tests/bench/published_shapes.py says what they are. `--shape deepseek-v3 --layers 1 --set memory.gpu=22GiB` is a layer of DeepSeek-V3 on a card of 24 GB. Random tokens
meet random experts, so that all of them are reached alike. `--model-only` stops when the model is there; tests/bench/peer.py quantizes the same files. Needs torch."""
import argparse
import json
import os

import llama7b
from published_shapes import SHAPES, VOCAB


def make_model(folder, shape, layers):
    import torch
    from safetensors.torch import save_file

    os.makedirs(folder, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device=device).manual_seed(1)
    weight = lambda rows, cols: (torch.randn(rows, cols, generator=generator, device=device) / cols**0.5).to(torch.bfloat16)
    vector = lambda size: torch.ones(size, dtype=torch.bfloat16, device=device)
    index, pending, files = {}, {}, 0

    def flush():
        nonlocal pending, files
        name = f"model-{files:05d}.safetensors"
        save_file(pending, os.path.join(folder, name), metadata={"format": "pt"})
        index.update(dict.fromkeys(pending, name))
        pending, files = {}, files + 1

    for layer in range(layers):
        for name, tensor in shape.tensors(layer, weight, vector):
            pending[name] = tensor.cpu()
            if sum(t.numel() * t.element_size() for t in pending.values()) > 3 << 30:
                flush()
    pending.update({shape.prefix + "embed_tokens.weight": (weight(VOCAB, shape.hidden) * shape.hidden**0.5 * 0.02).cpu(),
                    "lm_head.weight": weight(VOCAB, shape.hidden).cpu(), shape.prefix + "norm.weight": vector(shape.hidden).cpu()})
    flush()
    with open(os.path.join(folder, "model.safetensors.index.json"), "w") as f:
        json.dump({"metadata": {}, "weight_map": index}, f)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(shape.config(layers), f)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    llama7b.add_arguments(parser, SHAPES, "qwen3-30b-a3b", 4)
    parser.add_argument("--model-only", action="store_true")
    args = parser.parse_args()
    shape = SHAPES[args.shape]

    model = os.path.join(args.work, f"{args.shape}-{args.layers}")
    if not os.path.exists(os.path.join(model, "config.json")):
        make_model(model, shape, args.layers)
    tokens = llama7b.tokens_in(args.work, args.samples, args.seqlen)
    if args.model_only:
        return
    output, config = os.path.join(args.work, "out"), os.path.join(args.work, "layers.toml")
    llama7b.write_config(config, model, tokens, output, args.method, args.samples, args.seqlen)
    command = args.launcher.split() + args.qpipe.split() + [config] + [w for s in args.set for w in ("--set", s)]
    flops = shape.flops(args.method, args.layers, args.samples * args.seqlen, args.seqlen) if args.method in ("gptq", "awq") else {}
    for run in range(args.repeat):
        report, wall = llama7b.timed_run(command, output)
        print(f"\nrun {run + 1}: ", end="")
        llama7b.print_phases(report, wall, flops)
        work = sum(seconds for phase, seconds in report["seconds"].items() if phase in ("forward", "hessian", "search", "solve"))
        print(f"  a layer  {work / args.layers:8.3f} s  (forward, hessian, search and solve)")


if __name__ == "__main__":
    main()
