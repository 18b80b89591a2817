#!/usr/bin/env python3
"""1, 2, 3 and 4 ranks write the same bytes: usage byte_equality.py QPIPE SHARED MPIEXEC [--share-gpu] [--ranks 1,2,4].

Quantizes a tiny model with several settings and compares every file of the output folders with those of one rank."""
import argparse
import hashlib
import os
import subprocess
import sys
import tempfile

SETTINGS = {
    "sym4": ["quantize.group_size=32"],
    "asym3": ["quantize.bits=3", "quantize.symmetric=false", "quantize.group_size=32", "quantize.mse=2.4"],
    "desc-act": ["quantize.desc_act=true", "quantize.group_size=32"],
    "static-groups": ["quantize.desc_act=true", "quantize.static_groups=true", "quantize.group_size=64"],
    "group-aware-8bit-channel": ["quantize.bits=8", "quantize.group_size=-1", "quantize.act_group_aware=true"],
    "at-once": ["quantize.true_sequential=false", "quantize.group_size=32", "output.format=gptq_v2"],
    "original": ["quantize.propagate=original", "quantize.group_size=32", "quantize.act_group_aware=true"],
    "v1-asym": ["quantize.symmetric=false", "quantize.group_size=32", "output.format=gptq"],
    "awq": ["quantize.method=awq", "quantize.group_size=32"],
    "awq-gram-quantized": ["quantize.method=awq", "quantize.group_size=32", "awq.search=gram", "quantize.propagate=quantized", "awq.zero_point=false"],
    "awq-gptq": ["quantize.method=awq", "quantize.group_size=32", "awq.rounding=gptq", "quantize.act_group_aware=true"],
    "rtn": ["quantize.method=rtn", "quantize.group_size=32"],
    "compressed-tensors": ["output.target=vllm", "quantize.symmetric=false", "quantize.group_size=32"],
    "bnb-nf4": ["quantize.method=bnb-nf4"],
    "bnb-fp4-double": ["quantize.method=bnb-fp4", "bnb.double_quant=true", "bnb.storage=bfloat16"],
    "bnb-int8": ["quantize.method=bnb-int8"],
    "fp8": ["quantize.method=fp8"],
    "fp8-block": ["quantize.method=fp8-block"],
    "nvfp4": ["quantize.method=nvfp4"],
    "mxfp4": ["quantize.method=mxfp4"],
}


def digest(folder):
    return {name: hashlib.sha256(open(os.path.join(folder, name), "rb").read()).hexdigest() for name in sorted(os.listdir(folder))}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("qpipe")
    parser.add_argument("shared")
    parser.add_argument("mpiexec")
    parser.add_argument("--share-gpu", action="store_true")
    parser.add_argument("--ranks", default="1,2,3,4")
    parser.add_argument("--models", default="llama,falcon-7b-style,qwen3")
    parser.add_argument("--settings", default="", help="only those whose name contains this")
    args = parser.parse_args()
    if not os.path.isdir(os.path.join(args.shared, "oracles")):
        print("no oracles: skipped")
        return 77
    backend = ["parallel.backend=cuda", "parallel.share_gpu=true"] if args.share_gpu else ["parallel.backend=cpu"]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    if os.geteuid() == 0:
        environment.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    failures = 0
    with tempfile.TemporaryDirectory() as work:
        config = os.path.join(work, "config.toml")
        open(config, "w").write(f"""
[calibration]
data = "{args.shared}/oracles/calib_tiny.safetensors"
dataset = "calib"
samples = 62
seqlen = 48
[memory]
micro_batch = 200
[output]
max_shard_size = "60KB"
overwrite = true
[run]
progress = "none"
[evaluate]
data = "{args.shared}/oracles/calib_tiny.safetensors"
dataset = "calib"
seqlen = 48
samples = 5
""")
        for model in args.models.split(","):
            for name, settings in SETTINGS.items():
                if model != "llama" and name not in ("sym4", "static-groups", "v1-asym", "awq"):
                    continue
                if args.settings not in name:
                    continue
                expected = None
                for ranks in [int(r) for r in args.ranks.split(",")]:
                    output = os.path.join(work, f"out-{ranks}")  # the folder's name must not show in the files
                    sets = settings + backend + [f"model.path={args.shared}/oracles/models/{model}", f"output.path={output}"]
                    command = [args.mpiexec, "--oversubscribe", "--bind-to", "none", "-np", str(ranks), args.qpipe, config]
                    command += [word for s in sets for word in ("--set", s)]
                    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                    if run.returncode != 0:
                        print(f"{model} {name} with {ranks} ranks: exit {run.returncode}\n{run.stdout}")
                        failures += 1
                        break
                    got = digest(output)
                    if expected is None:
                        expected = got
                        if not any(f.endswith(".safetensors") for f in got):
                            print(f"{model} {name}: no weights written: {sorted(got)}")
                            failures += 1
                    elif got != expected:
                        different = sorted(f for f in set(got) | set(expected) if got.get(f) != expected.get(f))
                        print(f"{model} {name}: {ranks} ranks differ from the first in {different}")
                        failures += 1
                else:
                    print(f"{model} {name}: {args.ranks} ranks byte-equal, {len(expected)} files", flush=True)
    print(f"{failures} failures")
    return 1 if failures else 0


sys.exit(main())
