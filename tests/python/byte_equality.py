#!/usr/bin/env python3
"""Any number of ranks, in any layout of teams, writes the same bytes:

    byte_equality.py QPIPE SHARED MPIEXEC [--share-gpu] [--ranks 1,2,4] [--families] [--all]

Quantizes a tiny model with several settings and compares every file of the output folders with those of one rank. A deeper one, which goes around the ring
more than once, is quantized in the layouts of --layouts, teams x ranks of a team. --families in place of all this: one variant for each kind of step.
Numbers of ranks and layouts are dealt to the settings in turn, and to the families settings, too; --all takes each with each."""
import argparse
import hashlib
import itertools
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time

from variants import VARIANTS

SETTINGS = {
    "sym4": ["quantize.group_size=32"],
    "asym3": ["quantize.bits=3", "quantize.symmetric=false", "quantize.group_size=32", "quantize.mse=2.4"],
    "desc-act": ["quantize.desc_act=true", "quantize.group_size=32"],
    "static-groups": ["quantize.desc_act=true", "quantize.static_groups=true", "quantize.group_size=64"],
    "group-aware-8bit-channel": ["quantize.bits=8", "quantize.group_size=-1", "quantize.act_group_aware=true"],
    "at-once": ["quantize.true_sequential=false", "quantize.group_size=32", "output.format=gptq_v2"],
    "original": ["quantize.propagate=original", "quantize.group_size=32", "quantize.act_group_aware=true"],
    "target": ["quantize.target=original", "quantize.group_size=32", "quantize.act_group_aware=true"],
    "target-static": ["quantize.target=original", "quantize.bits=3", "quantize.symmetric=false", "quantize.group_size=32", "quantize.desc_act=true",
                      "quantize.static_groups=true"],
    "v1-asym": ["quantize.symmetric=false", "quantize.group_size=32", "output.format=gptq"],
    "awq": ["quantize.method=awq", "quantize.group_size=32"],
    "awq-gram-quantized": ["quantize.method=awq", "quantize.group_size=32", "awq.search=gram", "quantize.propagate=quantized", "awq.zero_point=false"],
    "awq-gram-sampled": ["quantize.method=awq", "quantize.group_size=32", "awq.search=gram", "awq.search_tokens=1000", "awq.search_rows=20"],
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

# What differs in how layers depend on each other and in what travels between the ranks.
LAYOUT_SETTINGS = {
    "gptq": ["quantize.group_size=32"],
    "gptq-original": ["quantize.group_size=32", "quantize.propagate=original", "quantize.act_group_aware=true"],
    "target": ["quantize.group_size=32", "quantize.target=original"],
    "awq": ["quantize.method=awq", "quantize.group_size=32"],
    "awq-gram": ["quantize.method=awq", "quantize.group_size=32", "awq.search=gram", "awq.search_tokens=1000", "awq.search_rows=20"],
    "awq-quantized": ["quantize.method=awq", "quantize.group_size=32", "quantize.propagate=quantized", "awq.rounding=gptq"],
    "rtn": ["quantize.method=rtn", "quantize.group_size=32"],
}

# One for each kind of step: norms, head layouts, MLPs and blocks that Llama, Falcon and Qwen do not have.
FAMILIES = [
    "gemma2",  # four norms, soft caps
    "gemma3",  # two RoPE bases
    "olmo2",  # norms after the blocks, q and k norm over the whole width
    "cohere-qk-norm",  # parallel, interleaved RoPE
    "gpt2",  # weights stored [in, out]
    "opt-350m-style",  # project_in and project_out, no final norm
    "gemma4-small",  # keys and values of other layers, per-layer embeddings
    "stablelm-2",  # parallel, layer norm per head
    "phi",  # layer norm, partial RoPE
    "phi3-longrope",  # fused qkv and gate, up
    "apertus",  # xIELU
    "mpt",  # ALiBi
    "deci",  # another number of kv heads in each layer
    "nemotron-nas",  # layers without attention or MLP, or with one linear in their place
    "deepseek-v3",  # latent attention, experts in groups
    "deepseek-v2-lite",  # latent attention without a latent of q
    "glm-moe-dsa",  # an indexer
    "hunyuan-dense",  # q and k norm after RoPE
    "qwen2-moe",  # experts, shared ones behind a gate
    "qwen3-next",  # delta nets with fused projections
    "qwen3_5",  # delta nets, gates beside q, what no decoder runs passes through
    "kimi-linear",  # decays by channel, projections of low rank
    "mamba2",  # state spaces alone
    "nemotron-h",  # layers of one thing alone; plain experts
    "falcon-h1",  # attention beside a state space: a last step with two panels
    "jamba",  # a mixer of three steps
    "lfm2",  # short convolutions
    "mistral3-ministral3",  # inside a vision-language model, queries scaled by position
]
FAMILY_SETTINGS = ("sym4", "awq", "bnb-nf4", "target")


def make_deep(source, target, deep_layers):
    """The model of `source` with its layers repeated."""
    os.makedirs(target)
    config = json.load(open(os.path.join(source, "config.json")))
    layers, config["num_hidden_layers"] = config["num_hidden_layers"], deep_layers
    json.dump(config, open(os.path.join(target, "config.json"), "w"))
    tensors, blob = {}, b""
    for file in sorted(f for f in os.listdir(source) if f.startswith("model") and f.endswith(".safetensors")):
        with open(os.path.join(source, file), "rb") as f:
            header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
            data = f.read()
        header.pop("__metadata__", None)
        for name, info in header.items():
            parts = name.split(".")
            copies = [name]
            if "layers" in parts:
                at = parts.index("layers") + 1
                copies = [".".join(parts[:at] + [str(i)] + parts[at + 1 :]) for i in range(int(parts[at]), deep_layers, layers)]
            content = data[slice(*info["data_offsets"])]
            for copy in copies:
                tensors[copy] = dict(info, data_offsets=[len(blob), len(blob) + len(content)])
                blob += content
    text = json.dumps(tensors).encode()
    with open(os.path.join(target, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + blob)


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
    parser.add_argument("--layouts", default="1x1,1x2,2x1,1x3,3x1,1x4,2x2,4x1,1x8,2x4,4x2,8x1", help="teams x ranks of a team, the first is the reference")
    parser.add_argument("--deep-layers", type=int, default=9)
    parser.add_argument("--families", action="store_true", help="one variant for each kind of step, in place of the rest")
    parser.add_argument("--all", action="store_true", help="every setting with every number of ranks and layout, in place of some in turn")
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

        def runs_equal(what, model, settings, layouts):
            """Whether every (name, ranks, further settings) of `layouts` gives the first one's bytes."""
            expected, seconds = None, []
            for name, ranks, more in layouts:
                output = os.path.join(work, f"out-{ranks}")  # the folder's name must not show in the files
                shutil.rmtree(output, ignore_errors=True)
                command = [args.mpiexec, "--oversubscribe", "--bind-to", "none", "-np", str(ranks), args.qpipe, config]
                for s in settings + backend + more + [f"model.path={model}", f"output.path={output}"]:
                    command += ["--set", s]
                begin = time.time()
                run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                if run.returncode != 0:
                    print(f"{what}, {name}: exit {run.returncode}\n{run.stdout}")
                    return False
                seconds.append(f"{name} in {time.time() - begin:.1f} s")
                got = digest(output)
                if expected is None:
                    expected = got
                    if not any(f.endswith(".safetensors") for f in got):
                        print(f"{what}: no weights written: {sorted(got)}")
                        return False
                elif got != expected:
                    different = sorted(f for f in set(got) | set(expected) if got.get(f) != expected.get(f))
                    print(f"{what}: {name} differs from {layouts[0][0]} in {different}")
                    return False
            print(f"{what}: {', '.join(seconds)}: byte-equal, {len(expected)} files", flush=True)
            return True

        def dealer(items, count):
            """A function: the next `count` of the items each time, from the first again behind the last; with --all all of them."""
            deck = itertools.cycle(items)
            return (lambda: items) if args.all or count >= len(items) else (lambda: list(itertools.islice(deck, count)))

        ranks = [(f"{r} ranks", int(r), []) for r in args.ranks.split(",") if r]
        models = f"{args.shared}/oracles/models"
        if args.families:
            some_settings, some_ranks = dealer(FAMILY_SETTINGS, 1), dealer(ranks[1:], 2)
            for model, name in ((m, n) for m in FAMILIES for n in some_settings()):
                if args.settings in name:
                    settings = SETTINGS[name] + VARIANTS[model].options + ["calibration.samples=30"]
                    failures += not runs_equal(f"{model} {name}", f"{models}/{model}", settings, ranks[:1] + some_ranks())
            print(f"{failures} failures")
            return 1 if failures else 0
        some_ranks, some_settings = dealer(ranks[1:], 1), dealer(["sym4", "awq", "static-groups", "v1-asym"], 2)
        for model in args.models.split(","):
            chosen = SETTINGS if model == "llama" else some_settings()
            for name in chosen:
                if ranks and args.settings in name:
                    failures += not runs_equal(f"{model} {name}", f"{models}/{model}", SETTINGS[name], ranks[:1] + some_ranks())
        layouts = []
        for layout in filter(None, args.layouts.split(",")):
            teams, of_team = (int(n) for n in layout.split("x"))
            layouts.append((layout, teams * of_team, [f"parallel.teams={teams}"]))
        # The same with memory for little: inputs, hidden states and weights lie elsewhere.
        for ranks, teams, gpu, host in ((1, 1, "1.4MB", "auto"), (2, 2, "1.4MB", "auto"), (2, 1, "1.4MB", "514.4MiB")):
            if layouts and not args.share_gpu:
                layouts.append((f"{teams}x{ranks // teams} in {gpu} and {host}", ranks, [f"parallel.teams={teams}", f"memory.gpu={gpu}", f"memory.host={host}"]))
        some_layouts = dealer(layouts[1:], 3)
        deep = os.path.join(work, "deep")
        make_deep(f"{models}/llama", deep, args.deep_layers)
        for name, settings in LAYOUT_SETTINGS.items():
            if layouts and args.settings in name:
                second_stream = [] if name != "target" else ["memory.host=515.4MiB"]  # the original model's hidden states and inputs
                mine = [(n, r, more + second_stream if "514.4MiB" in n else more) for n, r, more in layouts[:1] + some_layouts()]
                failures += not runs_equal(f"{args.deep_layers} layers {name}", deep, settings, mine)
    print(f"{failures} failures")
    return 1 if failures else 0


sys.exit(main())
