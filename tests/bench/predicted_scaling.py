#!/usr/bin/env python3
"""The scaling model as Markdown: what `qpipe plan` predicts for 1 to 64 GPUs, from the rates measured on H100s (docs/performance.md). Needs no GPU.

    python3 tests/bench/predicted_scaling.py --qpipe build/release/qpipe [--ranks 1,2,4,8,16,32,64] [--ranks-per-node 8] [--rate NAME=X ...] [--set k=v ...]

128 x 2048 tokens, 4 bits, group 128; Llama-2-7B's 32 layers and 70B's 80. Efficiency is the speed-up over the first row divided by the ratio of GPUs."""
import argparse
import json
import os
import subprocess
import tempfile

import llama7b

LAYERS = {"7B": 32, "70B": 80}


def write_inputs(folder):
    with open(os.path.join(folder, "plan.toml"), "w") as f:
        f.write("[calibration]\ndata = \"tokens.h5\"\nsamples = 128\nseqlen = 2048\n[quantize]\nbits = 4\ngroup_size = 128\nmse = 0\n")
    for name, layers in LAYERS.items():
        os.makedirs(os.path.join(folder, name))
        with open(os.path.join(folder, name, "config.json"), "w") as f:
            json.dump(llama7b.model_config(*llama7b.SHAPES[name.lower()], layers), f)


def plan(args, folder, shape, ranks, teams, method, propagate):
    out = os.path.join(folder, "plan.json")
    command = [args.qpipe, "plan", os.path.join(folder, "plan.toml"), "--ranks", str(ranks), "--teams", str(teams), "--ranks-per-node",
               str(args.ranks_per_node), "--gpu-memory", args.gpu_memory, "--json", out]
    for setting in (f"model.path={os.path.join(folder, shape)}", f"output.path={os.path.join(folder, 'out')}", f"quantize.method={method}",
                    f"quantize.propagate={propagate}"):
        command += ["--set", setting]
    for setting in args.set:
        command += ["--set", setting]
    for rate in args.rate:
        command += ["--rate", rate]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with open(out) as f:
        return json.load(f)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qpipe", default="build/release/qpipe")
    parser.add_argument("--ranks", default="1,2,4,8,16,32,64")
    parser.add_argument("--ranks-per-node", type=int, default=8)
    parser.add_argument("--gpu-memory", default="79GiB")
    parser.add_argument("--rate", action="append", default=[], help="NAME=X, as qpipe plan takes it")
    parser.add_argument("--set", action="append", default=[], help="further options of qpipe, section.key=value")
    args = parser.parse_args()
    counts = [int(r) for r in args.ranks.split(",")]
    largest = counts[-1]
    divided = [(largest, teams) for teams in (largest, largest // 2, largest // 4, largest // 8) if teams > 1]
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(folder)
        for title, shape, method, propagate, layouts in (
                ("GPTQ, propagate = quantized: one team", "7B", "gptq", "quantized", [(r, 1) for r in counts]),
                ("GPTQ, propagate = quantized: one team", "70B", "gptq", "quantized", [(r, 1) for r in counts]),
                ("GPTQ, propagate = original: a ring of teams", "70B", "gptq", "original", [(r, 0) for r in counts] + divided[1:]),
                ("AWQ, propagate = original: a ring of teams", "7B", "awq", "original", [(r, 0) for r in counts]),
                ("AWQ, propagate = original: a ring of teams", "70B", "awq", "original", [(r, 0) for r in counts] + divided[1:])):
            print(f"\n{title}; {shape}\n")
            print("| GPUs | teams x ranks | time | work on tokens | all else | network | efficiency | sent by a rank | reading |")
            print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
            one = None
            for ranks, teams in layouts:
                p = plan(args, folder, shape, ranks, teams, method, propagate)
                s = p["seconds"]
                total = s["total"]
                one = one or total * ranks
                divides = s.get("forward", 0) + s.get("Hessians", 0) + s.get("AWQ's search", 0)
                network = s.get("network", 0) + s.get("waiting for hidden states", 0)
                busy = sum(v for k, v in s.items() if k != "total" and "background" not in k)
                sent = sum(p.get("sent_bytes", {}).values())
                print(f"| {ranks} | {p['teams']} x {ranks // p['teams']} | {total:.1f} s | {divides:.1f} s | {busy - divides - network:.1f} s | {network:.1f} s | "
                      f"{100 * one / ranks / total:.0f} % | {sent / 1e9:.1f} GB | {s['reading, in the background']:.1f} s |", flush=True)


if __name__ == "__main__":
    main()
