#!/usr/bin/env python3
"""Perplexities of a small model after each method, with their chance part: each is the mean of runs that differ in `memory.micro_batch` alone.

    python3 tests/bench/perplexity.py --qpipe build/release/qpipe --model models/SmolLM2-135M-Instruct --tokens TOKENS [--runs NAME ...] [--exact]
                                      [--micro-batches 512,1024,...] [--work DIR] [--original] [--set k=v ...]

The size of a block changes the order in which matrix products are added up, so only last bits; a model of this size makes one or two percent of perplexity of
them. TOKENS is a safetensors file with `calib` (128 x 512 tokens) and `eval` (tests/bench/make_tokens.py). Prints a Markdown table: mean, standard deviation,
smallest and largest. Once through the methods on Gemma 3 270M (scripts/fetch_gemma3.py):

    python3 tests/bench/perplexity.py --model models/gemma-3-270m --tokens models/gemma-3-270m.tokens.safetensors --original --micro-batches 16384 \\
        --runs "GPTQ 4-bit (default)" "AWQ 4-bit" "RTN 4-bit symmetric" "NF4" --exact"""
import argparse
import json
import os
import statistics
import subprocess
import sys

PLAIN, ASYMMETRIC, AWARE, TARGET = "quantize.mse=0", "quantize.symmetric=false", "quantize.act_group_aware=true", "quantize.target=original"
RUNS = {  # settings; whether calibration, with its last bits, has a part in it
    "GPTQ 4-bit, `mse = 0`": ([PLAIN], True),
    "GPTQ 4-bit (default)": ([], True),
    "GPTQ 4-bit, `act_group_aware`, `mse = 0`": ([AWARE, PLAIN], True),
    "GPTQ 4-bit, `act_group_aware`": ([AWARE], True),
    "GPTQ 4-bit, `desc_act` and `static_groups`, `mse = 0`": (["quantize.desc_act=true", "quantize.static_groups=true", PLAIN], True),
    "GPTQ 4-bit asymmetric, `mse = 0`": ([ASYMMETRIC, PLAIN], True),
    "GPTQ 4-bit asymmetric": ([ASYMMETRIC], True),
    "GPTQ 4-bit asymmetric, `act_group_aware`": ([ASYMMETRIC, AWARE], True),
    "GPTQ 3-bit asymmetric, `mse = 0`": (["quantize.bits=3", ASYMMETRIC, PLAIN], True),
    "GPTQ 3-bit asymmetric": (["quantize.bits=3", ASYMMETRIC], True),
    "GPTQ 4-bit, `act_group_aware`, `target`": ([AWARE, TARGET], True),
    "GPTQ 4-bit asymmetric, `act_group_aware`, `target`": ([ASYMMETRIC, AWARE, TARGET], True),
    "GPTQ 3-bit asymmetric, `act_group_aware`": (["quantize.bits=3", ASYMMETRIC, AWARE], True),
    "GPTQ 3-bit asymmetric, `act_group_aware`, `target`": (["quantize.bits=3", ASYMMETRIC, AWARE, TARGET], True),
    "GPTQ 2-bit asymmetric, `act_group_aware`": (["quantize.bits=2", ASYMMETRIC, AWARE], True),
    "GPTQ 2-bit asymmetric, `act_group_aware`, `target`": (["quantize.bits=2", ASYMMETRIC, AWARE, TARGET], True),
    "GPTQ 3-bit": (["quantize.bits=3"], True),
    "AWQ 3-bit": (["quantize.method=awq", "quantize.bits=3"], True),
    "RTN 3-bit symmetric": (["quantize.method=rtn", "quantize.bits=3"], False),
    "RTN 3-bit asymmetric": (["quantize.method=rtn", "quantize.bits=3", ASYMMETRIC], False),
    "AWQ 4-bit": (["quantize.method=awq"], True),
    "AWQ 4-bit, `search = \"gram\"`": (["quantize.method=awq", "awq.search=gram"], True),
    "AWQ 4-bit, `rounding = \"gptq\"`": (["quantize.method=awq", "awq.rounding=gptq"], True),
    "RTN 4-bit symmetric": (["quantize.method=rtn"], False),
    "RTN 4-bit asymmetric": (["quantize.method=rtn", ASYMMETRIC], False),
    "NF4": (["quantize.method=bnb-nf4"], False),
    "NF4 double": (["quantize.method=bnb-nf4", "bnb.double_quant=true"], False),
    "FP4": (["quantize.method=bnb-fp4"], False),
    "INT8 (weights)": (["quantize.method=bnb-int8"], False),
}


def perplexity(args, config, settings, when="after"):
    command = [args.qpipe, config]
    for setting in settings + args.set:
        command += ["--set", setting]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}")
    with open(os.path.join(args.work, "out.report.json")) as f:
        return json.load(f)["perplexity"][when]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qpipe", default="build/release/qpipe")
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--runs", nargs="*", default=[], help="parts of the names")
    parser.add_argument("--exact", action="store_true", help="--runs are whole names")
    parser.add_argument("--original", action="store_true", help="the original's perplexity as well")
    parser.add_argument("--micro-batches", default="512,1024,2048,4096,8192,16384,32768,65536")
    parser.add_argument("--work", default="/tmp/qpipe-perplexity")
    parser.add_argument("--set", action="append", default=[], help="further options of qpipe, section.key=value")
    args = parser.parse_args()
    os.makedirs(args.work, exist_ok=True)
    config = os.path.join(args.work, "perplexity.toml")
    with open(config, "w") as f:
        f.write(f"""[model]
path = "{args.model}"
[calibration]
data = "{args.tokens}"
dataset = "calib"
samples = 128
seqlen = 512
[quantize]
group_size = 64
[output]
path = "{args.work}/out"
overwrite = true
[run]
progress = "none"
resume = "never"
[evaluate]
data = "{args.tokens}"
dataset = "eval"
seqlen = 512
before = false
""")
    batches = [int(b) for b in args.micro_batches.split(",")]
    print("| method | perplexity | standard deviation | smallest to largest |\n| --- | ---: | ---: | ---: |")
    if args.original:  # by the way of the fastest method
        before = perplexity(args, config, ["quantize.method=rtn", "evaluate.before=true", "evaluate.after=false"], "before")
        print(f"| the original | {before:.2f} | | |", flush=True)
    for name, (settings, calibrated) in RUNS.items():
        chosen = name in args.runs if args.exact else any(part in name for part in args.runs)
        if args.runs and not chosen:
            continue
        found = [perplexity(args, config, settings + [f"memory.micro_batch={b}"]) for b in (batches if calibrated else batches[:1])]
        mean = sum(found) / len(found)
        spread = f"{statistics.stdev(found):.2f} | {min(found):.2f} to {max(found):.2f}" if len(found) > 1 else " | "
        print(f"| {name} | {mean:.2f} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
