#!/usr/bin/env python3
"""How the work scales over the GPUs of one host, one rank each.

    python3 tests/bench/scaling.py --qpipe build/release/qpipe [--ranks 1,2,4,8] [--runs gptq-7b,awq-7b,gptq-70b,awq-70b] [--repeat 2] [--share-gpu]
                                   [--work DIR] [--json FILE] [--set k=v ...]

gptq: propagate = quantized, one team that shares the samples and the rows; awq: propagate = original, a ring of teams of one rank. 8 layers of
Llama-2-7B's shape and as many of Llama-2-70B's as --layers-70b says (2; a ring of P ranks needs a multiple of P to be full), random weights, 128 x 2048
random tokens. Checks that all rank counts write the same bytes; prints for each the time of every phase on rank 0 (least total of --repeat runs), bytes
exchanged and their rate, the share of the time that each rank waits, and the speed-up over the layers against one rank. --share-gpu: all ranks on one GPU, to try the
script where there is only one. Needs torch."""
import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys

import llama7b

PHASES = ("start", "read", "forward", "hessian", "search", "solve", "write", "wait")


def digest(folder):
    whole = hashlib.sha256()
    for name in sorted(os.listdir(folder)):
        whole.update(name.encode())
        with open(os.path.join(folder, name), "rb") as f:
            while piece := f.read(1 << 24):
                whole.update(piece)
    return whole.hexdigest()


def use_shape(shape):
    llama7b.HIDDEN, llama7b.FFN, llama7b.HEADS, llama7b.KV_HEADS = llama7b.SHAPES[shape]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qpipe", default="build/release/qpipe")
    parser.add_argument("--ranks", default="1,2,4,8")
    parser.add_argument("--runs", default="gptq-7b,awq-7b,gptq-70b,awq-70b")
    parser.add_argument("--layers-7b", type=int, default=8)
    parser.add_argument("--layers-70b", type=int, default=2)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=2048)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--work", default="/tmp/qpipe-bench")
    parser.add_argument("--share-gpu", action="store_true")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--set", action="append", default=[], help="further options of qpipe, section.key=value")
    args = parser.parse_args()

    os.makedirs(args.work, exist_ok=True)
    tokens = llama7b.tokens_in(args.work, args.samples, args.seqlen)
    output = os.path.join(args.work, "scaling-out")
    environment = dict(os.environ, NCCL_NVLS_ENABLE="0")  # NVLink multicast is not to be had on every host
    figures, failures = [], 0
    for run in args.runs.split(","):
        method, shape = run.split("-")
        layers = args.layers_7b if shape == "7b" else args.layers_70b
        use_shape(shape)
        model = os.path.join(args.work, f"llama{shape}-{layers}")
        if not os.path.exists(os.path.join(model, "config.json")):
            llama7b.make_model(model, layers)
        settings = [f"model.path={model}", f"calibration.data={tokens}", f"calibration.samples={args.samples}", f"calibration.seqlen={args.seqlen}",
                    f"quantize.method={method}", "quantize.mse=0", f"output.path={output}", "output.overwrite=true", "run.progress=none",
                    "run.resume=never", "parallel.timeout=120", *args.set]
        if args.share_gpu:
            settings.append("parallel.share_gpu=true")
        config = os.path.join(args.work, "scaling.toml")
        open(config, "w").close()
        reference = None
        for ranks in [int(r) for r in args.ranks.split(",")]:
            best = None
            for _ in range(args.repeat):
                shutil.rmtree(output, ignore_errors=True)
                command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-np", str(ranks), args.qpipe, config]
                for s in settings:
                    command += ["--set", s]
                result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                if result.returncode != 0:
                    sys.exit(f"{run} with {ranks} ranks: exit {result.returncode}\n{result.stdout}")
                with open(output + ".report.json") as f:
                    report = json.load(f)
                if best is None or report["seconds"]["total"] < best["seconds"]["total"]:
                    best = report
            content = digest(output)
            s = best["seconds"]
            loop = s["total"] - s["start"]
            figure = {"run": run, "layers": layers, "ranks": ranks, "device": best["device"], "seconds": s, "layers_seconds": loop, "sha256": content,
                      "communication": best["communication"], "device_peak_bytes": best["device_peak_bytes"],
                      "wait_share": [r["wait"] / (r["total"] - r["start"]) for r in best["seconds_of_ranks"]]}
            reference = reference or figure
            equal = content == reference["sha256"]
            failures += not equal
            figure["speed_up"] = reference["layers_seconds"] / loop * reference["ranks"]
            figures.append(figure)
            c = best["communication"]
            print(f"\n{run}, {layers} layers, {ranks} rank(s), {best['device']}: {s['total']:.2f} s, {loop:.2f} s of them after the start; peak {best['device_peak_bytes'] / 2**30:.1f} GiB")
            print("  " + ", ".join(f"{p} {s[p]:.2f}" for p in PHASES) + f"; of write, waiting for commits: {s['commit']:.2f}")
            rate = f" at {c['team_bytes'] / c['team_seconds'] / 1e9:.0f} GB/s, late ranks included" if c["team_seconds"] > 0 else ""
            print(f"  exchanged: {c['team_bytes'] / 1e9:.2f} GB in the team{rate}; {c['hidden_bytes'] / 1e9:.2f} GB of hidden states")
            print("  waiting: " + ", ".join(f"{100 * w:.1f}%" for w in figure["wait_share"]))
            print(f"  speed-up {figure['speed_up']:.2f} over the layers, efficiency {100 * figure['speed_up'] / ranks:.0f}%; bytes {'equal' if equal else 'DIFFER'}", flush=True)
    if args.json:
        with open(args.json, "w") as f:
            json.dump(figures, f, indent=1)
    sys.exit(f"{failures} outputs differ" if failures else 0)


if __name__ == "__main__":
    main()
