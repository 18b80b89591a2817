#!/usr/bin/env python3
"""Quantizes decoder layers of Llama-2-7B's shape, the work that peers were measured on, or of larger models'.

    python3 tests/bench/llama7b.py --qpipe build/release/qpipe [--shape 7b|70b|405b] [--method gptq] [--layers 8] [--samples 128] [--seqlen 2048] [--repeat 1]
                                   [--work DIR] [--launcher "mpirun -np 2"] [--set k=v ...]

Makes random bf16 weights (7b: hidden 4096, ffn 11008, 32 heads; 70b: hidden 8192, ffn 28672, 64 heads, 8 key and value heads; 405b: 16384, 53248, 128,
8; vocabulary 32000) and random tokens in DIR once, quantizes them to 4 bits, group 128, and
prints time per phase, percent of the phase's stated bound, total and peak GPU memory, beside the peers' figures for the same work: gptq with 8 layers,
awq with 4. Methods without calibration (bnb-nf4, fp8, ...; --layers 32 is the whole model) are measured against the bandwidth of reading the
checkpoint from the page cache by one reader, and against that of writing as many bytes as the output has to the disk that it is on. The output of
the run before is removed first, outside of the time (a disk takes a second for 4 GB). Needs torch."""
import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time

VOCAB, HEAD_DIM = 32000, 128
SHAPES = {"7b": (4096, 11008, 32, 32), "70b": (8192, 28672, 64, 8), "405b": (16384, 53248, 128, 8)}  # hidden, ffn, heads, key and value heads
HIDDEN, FFN, HEADS, KV_HEADS = SHAPES["7b"]
# Measured on one H100 with the same shapes, tokens and settings (seconds, save included; GiB).
PEERS = {
    ("gptq", 8): [("llm-compressor 0.14.0.1", 54.8, 2.6), ("GPTQModel 7.3.6", 132.0, 5.8)],
    ("awq", 4): [("llm-compressor 0.14.0.1", 67.8, 50.4)],
}
DENSE_BF16 = 989e12  # FLOP/s, H100/H200 SXM datasheet
REACHED_BF16 = 700e12  # what large matrix products reach there


def model_config(hidden, ffn, heads, kv_heads, layers):
    return dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers,
                num_attention_heads=heads, num_key_value_heads=kv_heads, vocab_size=VOCAB, max_position_embeddings=4096, rms_norm_eps=1e-5,
                rope_theta=10000.0, hidden_act="silu", tie_word_embeddings=False, torch_dtype="bfloat16")


def make_model(folder, layers):
    import torch
    from safetensors.torch import save_file

    os.makedirs(folder, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device=device).manual_seed(1)

    def weight(rows, cols):
        return (torch.randn(rows, cols, generator=generator, device=device) / cols**0.5).to(torch.bfloat16).cpu()

    files, index = {}, {}
    for layer in range(layers):
        p = f"model.layers.{layer}."
        tensors = {p + f"self_attn.{n}_proj.weight": weight(HIDDEN, HIDDEN) for n in "qo"}
        tensors.update({p + f"self_attn.{n}_proj.weight": weight(KV_HEADS * HEAD_DIM, HIDDEN) for n in "kv"})
        tensors[p + "mlp.gate_proj.weight"] = weight(FFN, HIDDEN)
        tensors[p + "mlp.up_proj.weight"] = weight(FFN, HIDDEN)
        tensors[p + "mlp.down_proj.weight"] = weight(HIDDEN, FFN)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[p + norm + ".weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
        files[f"model-{layer + 1:05d}-of-{layers + 1:05d}.safetensors"] = tensors
    files[f"model-{layers + 1:05d}-of-{layers + 1:05d}.safetensors"] = {
        "model.embed_tokens.weight": weight(VOCAB, HIDDEN) * HIDDEN**0.5 * 0.02,
        "lm_head.weight": weight(VOCAB, HIDDEN),
        "model.norm.weight": torch.ones(HIDDEN, dtype=torch.bfloat16),
    }
    total = 0
    for name, tensors in files.items():
        save_file(tensors, os.path.join(folder, name), metadata={"format": "pt"})
        index.update({k: name for k in tensors})
        total += sum(t.numel() * 2 for t in tensors.values())
    with open(os.path.join(folder, "model.safetensors.index.json"), "w") as f:
        json.dump({"metadata": {"total_size": total}, "weight_map": index}, f)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(model_config(HIDDEN, FFN, HEADS, KV_HEADS, layers), f)


def make_tokens(path, samples, seqlen):
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(2)
    save_file({"input_ids": torch.randint(0, VOCAB, (samples, seqlen), generator=generator, dtype=torch.int32)}, path)


def tokens_in(folder, samples, seqlen):
    """The file, made where it is not there yet."""
    path = os.path.join(folder, f"tokens-{samples}x{seqlen}.safetensors")
    if not os.path.exists(path):
        make_tokens(path, samples, seqlen)
    return path


def add_arguments(parser, shapes, shape, layers):
    parser.add_argument("--qpipe", default="build/release/qpipe", help="the program, with leading arguments if it has any")
    parser.add_argument("--shape", default=shape, choices=shapes)
    parser.add_argument("--method", default="gptq")
    parser.add_argument("--work", default="/tmp/qpipe-bench")
    parser.add_argument("--layers", type=int, default=layers)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=2048)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--launcher", default="", help='for example "mpirun -np 2 --allow-run-as-root"')
    parser.add_argument("--set", action="append", default=[], help="further options of qpipe, section.key=value")


def phase_flops(method, layers, tokens, seqlen):
    kv = KV_HEADS * HEAD_DIM
    linears = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * kv + 3 * HIDDEN * FFN
    forward = 2.0 * tokens * linears + 2.0 * tokens * seqlen * HIDDEN  # attention: q·k and p·v over half of the square
    flops = {"forward": layers * forward, "hessian": layers * 1.0 * tokens * (3 * HIDDEN**2 + FFN**2)}  # half by symmetry
    if method == "gptq":  # d³/3 a factor, rows·d² a sweep, each product in three parts (split precision)
        factors = 3 * HIDDEN**3 + FFN**3
        sweeps = HIDDEN**2 * (2 * HIDDEN + 2 * kv + 2 * FFN) + FFN**2 * HIDDEN
        flops["solve"] = layers * (1.0 * factors + 3.0 * sweeps)
    return flops


def read_bandwidth(folder):
    """Bytes of the weights, and bytes/s of one sequential reader, the files being in the page cache."""
    names = [os.path.join(folder, n) for n in os.listdir(folder) if n.endswith(".safetensors")]
    buffer = bytearray(1 << 24)
    for _ in range(2):  # the first pass fills the cache
        total, start = 0, time.time()
        for name in names:
            with open(name, "rb", buffering=0) as f:
                while count := f.readinto(buffer):
                    total += count
    return total, total / (time.time() - start)


def write_seconds(path, size):
    """Until `size` new bytes are on the disk, which starts to write at once."""
    data = memoryview(os.urandom(1 << 24))
    done = threading.Event()
    start = time.time()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)

    def keep_the_disk_busy():
        while not done.is_set():
            os.fdatasync(file)

    thread = threading.Thread(target=keep_the_disk_busy)
    thread.start()
    for begin in range(0, size, len(data)):
        os.write(file, data[: size - begin])
    done.set()
    thread.join()
    os.fsync(file)
    seconds = time.time() - start
    os.close(file)
    os.unlink(path)
    return seconds


def write_config(path, model, tokens, output, method, samples, seqlen):
    with open(path, "w") as f:
        f.write(f"""[model]
path = "{model}"
[calibration]
data = "{tokens}"
samples = {samples}
seqlen = {seqlen}
[quantize]
method = "{method}"
bits = 4
group_size = 128
mse = 0      # the peers' figures are without a search of the scales
[output]
path = "{output}"
overwrite = true
""")


def timed_run(command, output):
    """The report, and the seconds of the process."""
    shutil.rmtree(output, ignore_errors=True)
    start = time.time()
    if subprocess.run(command).returncode != 0:
        sys.exit("qpipe failed")
    wall = time.time() - start
    with open(output + ".report.json") as f:
        return json.load(f), wall


def print_phases(report, wall, flops):
    """flops: of some phases, on the way to a floor; of all ranks."""
    print(f"{report['device']}, {report['ranks']} rank(s), peak GPU memory {report['device_peak_bytes'] / 2**30:.1f} GiB")
    for phase, seconds in report["seconds"].items():
        note = ""
        if phase in flops and seconds > 0:
            note = f"  {flops[phase] / seconds / 1e12:6.0f} TFLOP/s, {100 * flops[phase] / seconds / DENSE_BF16:3.0f}% of {DENSE_BF16 / 1e12:.0f}"
        print(f"  {phase:8s} {seconds:8.2f} s{note}")
    print(f"  process  {wall:8.2f} s")
    if flops:
        floor = sum(flops.values()) / REACHED_BF16
        total = report["seconds"]["total"]
        print(f"  floor    {floor:8.2f} s  ({', '.join(flops)} at {REACHED_BF16 / 1e12:.0f} TFLOP/s): {100 * floor / total:.0f}% of the total, {100 * floor / wall:.0f}% of the process")


def main():
    global HIDDEN, FFN, HEADS, KV_HEADS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, SHAPES, "7b", 8)
    args = parser.parse_args()
    HIDDEN, FFN, HEADS, KV_HEADS = SHAPES[args.shape]

    model = os.path.join(args.work, f"llama{args.shape}-{args.layers}")
    if not os.path.exists(os.path.join(model, "config.json")):
        make_model(model, args.layers)
    tokens = tokens_in(args.work, args.samples, args.seqlen)
    output = os.path.join(args.work, "out")
    config = os.path.join(args.work, "bench.toml")
    write_config(config, model, tokens, output, args.method, args.samples, args.seqlen)
    command = args.launcher.split() + args.qpipe.split() + [config] + [w for s in args.set for w in ("--set", s)]
    flops = phase_flops(args.method, args.layers, args.samples * args.seqlen, args.seqlen) if args.method in ("gptq", "awq") else {}
    totals = []
    for run in range(args.repeat):
        report, wall = timed_run(command, output)
        totals.append(wall)
        print(f"\nrun {run + 1}: ", end="")
        print_phases(report, wall, flops)
    median = sorted(totals)[len(totals) // 2]
    print(f"\nqpipe: {median:.2f} s (median of {len(totals)}, start of the process to its end)")
    if args.method not in ("gptq", "awq"):
        size, bandwidth = read_bandwidth(model)
        print(f"{size / 1e9:.2f} GB of weights: {size / median / 1e9:.2f} GB/s, {100 * size / median / bandwidth:.0f}% of reading alone ({bandwidth / 1e9:.2f} GB/s)")
        seconds = write_seconds(os.path.join(args.work, "written"), report["bytes"])
        print(f"{report['bytes'] / 1e9:.2f} GB of output: writing as much to this disk, fsync included, takes {seconds:.2f} s, {100 * seconds / median:.0f}% of the process")
    if args.shape == "7b" and (args.samples, args.seqlen) == (128, 2048):
        for name, seconds, memory in PEERS.get((args.method, args.layers), []):
            print(f"{name}: {seconds:.1f} s, {memory} GiB on an H100 → {seconds / median:.1f} times as long")


if __name__ == "__main__":
    main()
