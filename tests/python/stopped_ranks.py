#!/usr/bin/env python3
"""Ranks that are killed, that stand still (SIGSTOP), and runs that are asked to stop (SIGUSR1): stopped_ranks.py QPIPE MPIEXEC
[--backend cpu|cuda] [--share-gpu] [--ranks 2] [--tries 3] [--methods gptq,awq] [--size small|large] [--timeout 5] [--seed 1] [--work FOLDER]

At a random moment one rank is killed, or stopped: the others end the run within the timeout + 10 s, with a line that names what they waited for.
A signal to one rank: exit code 75, or 0 when the work was nearly done. Every run goes on to the bytes of an undisturbed one."""
import argparse
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

from processes import digest, environment, processes_below

SIZES = {  # hidden, ffn, heads, layers, vocabulary, samples, tokens of each
    "small": (128, 256, 4, 6, 512, 16, 64),
    "large": (2048, 5632, 16, 16, 8192, 128, 1024),
}
LAUNCHER_VARIABLES = ("OMPI_COMM_", "PMIX_", "PMI_", "SLURM_")  # of a job around this one; OMPI_MCA_ are settings


def bf16_noise(count, rng):
    """Random values of magnitude 2^-8 to 2^-5, either sign."""
    high = bytes((0x3B, 0xBB, 0x3C, 0xBC)[i & 3] for i in range(256))
    data = bytearray(rng.randbytes(2 * count))
    data[1::2] = data[1::2].translate(high)
    return bytes(data)


def save(path, tensors):
    head, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            file.write(data)


def make_inputs(folder, size):
    hidden, ffn, heads, layers, vocab, samples, length = SIZES[size]
    rng = random.Random(7)
    os.makedirs(folder + "/model")
    with open(folder + "/model/config.json", "w") as file:
        json.dump(dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers,
                       num_attention_heads=heads, num_key_value_heads=heads, vocab_size=vocab, max_position_embeddings=2048, rms_norm_eps=1e-5,
                       rope_theta=10000.0, hidden_act="silu", tie_word_embeddings=False, torch_dtype="bfloat16"), file)

    def matrix(rows, cols): return "BF16", [rows, cols], bf16_noise(rows * cols, rng)
    def ones(n): return "BF16", [n], b"\x80\x3f" * n
    tensors = {"model.embed_tokens.weight": matrix(vocab, hidden), "lm_head.weight": matrix(vocab, hidden), "model.norm.weight": ones(hidden)}
    for layer in range(layers):
        p = f"model.layers.{layer}."
        tensors.update({p + f"self_attn.{n}_proj.weight": matrix(hidden, hidden) for n in "qkvo"})
        tensors.update({p + f"mlp.{n}_proj.weight": matrix(ffn, hidden) for n in ("gate", "up")})
        tensors[p + "mlp.down_proj.weight"] = matrix(hidden, ffn)
        tensors.update({p + n + ".weight": ones(hidden) for n in ("input_layernorm", "post_attention_layernorm")})
    save(folder + "/model/model.safetensors", tensors)
    ids = struct.pack(f"<{samples * length}i", *(rng.randrange(vocab) for _ in range(samples * length)))
    save(folder + "/tokens.safetensors", {"input_ids": ("I32", [samples, length], ids)})
    with open(folder + "/run.toml", "w") as file:
        file.write(f'[model]\npath = "{folder}/model"\n[calibration]\ndata = "{folder}/tokens.safetensors"\nsamples = {samples}\nseqlen = {length}\n'
                   f'[quantize]\nbits = 4\ngroup_size = 128\n[output]\npath = "{folder}/out"\n[run]\nprogress = "plain"\n')


def start(args, method, ranks, launcher=True):
    command = [args.qpipe, args.work + "/run.toml", "--set", "quantize.method=" + method, "--set", f"parallel.timeout={args.timeout}",
               "--set", "parallel.backend=" + args.backend]
    if args.share_gpu:
        command += ["--set", "parallel.share_gpu=true"]
    if launcher:
        command = [args.mpiexec, "--oversubscribe", "--bind-to", "none", "-np", str(ranks), *command]
    return subprocess.Popen(command, env=environment(LAUNCHER_VARIABLES), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)


def clear(args):
    for name in ("out", "out.run"):
        shutil.rmtree(f"{args.work}/{name}", ignore_errors=True)


def weights_and_configurations(args):
    return digest(args.work + "/out", lambda name: name.endswith((".safetensors", ".json")) and "report" not in name)


def finish(args, process, seconds):
    """(exit code, stderr, seconds); a run that does not end is killed, and None its code."""
    begin = time.monotonic()
    try:
        _, err = process.communicate(timeout=seconds)
        return process.returncode, err, time.monotonic() - begin
    except subprocess.TimeoutExpired:
        for pid in processes_below(process.pid, args.qpipe):
            os.kill(pid, signal.SIGKILL)
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[1], time.monotonic() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("qpipe", type=os.path.abspath)
    parser.add_argument("mpiexec")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--share-gpu", action="store_true")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--tries", type=int, default=3, help="of each kind and method")
    parser.add_argument("--methods", default="gptq,awq")
    parser.add_argument("--kinds", default="kill,stop,ask")
    parser.add_argument("--size", default="small", choices=SIZES)
    parser.add_argument("--timeout", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    own = None
    if not args.work:
        own = tempfile.TemporaryDirectory()
        args.work = own.name
    if not os.path.exists(args.work + "/run.toml"):
        make_inputs(args.work, args.size)

    faults, counts = [], {}
    for first, method in enumerate(args.methods.split(",")):
        clear(args)
        begin = time.monotonic()
        code, err, _ = finish(args, start(args, method, args.ranks), 600)
        whole = time.monotonic() - begin
        if code != 0:
            sys.exit(f"{method}: the undisturbed run ends with {code}: {err[-2000:]}")
        want = weights_and_configurations(args)
        print(f"{method}: undisturbed {whole:.1f} s", flush=True)
        for kind in args.kinds.split(","):
            for i in range(first, first + args.tries):  # few tries of each method are of different moments
                clear(args)
                alone = kind == "ask" and i % 2 == 1  # one rank without mpirun
                process = start(args, method, args.ranks, launcher=not alone)
                begin = time.monotonic()
                # A third of the tries from the start on, the others while layers are worked on.
                if i % 3 == 0:
                    while not processes_below(process.pid, args.qpipe) and process.poll() is None:
                        time.sleep(0.005)
                    time.sleep(rng.uniform(0, 0.5 * whole))
                else:
                    wanted = rng.randrange(1, SIZES[args.size][3] // 2)
                    for line in process.stderr:
                        if line.startswith(f"[{wanted}/"):
                            break
                    time.sleep(rng.uniform(0, 0.1 * whole))
                pids = processes_below(process.pid, args.qpipe)
                at = time.monotonic() - begin
                number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "ask": signal.SIGUSR1}[kind]
                if pids:
                    os.kill(rng.choice(pids), number)
                code, err, seconds = finish(args, process, args.timeout + 60)
                what = f"{method} {kind} {i} at {at:.2f} s: exit code {code} after {seconds:.1f} s"
                lines = [line for line in err.splitlines() if "qpipe: " in line]
                print(f"  {what}" + (f" | {lines[0][:200]}" if lines else ""), flush=True)
                # MPI and NCCL have 30 s to start, however short the timeout is.
                if code is None or seconds > max(args.timeout, 30) + 10 + whole:
                    faults.append(what + ": does not end in time")
                if kind == "ask" and code != 75 and not (code == 0 and (at > 0.8 * whole or seconds < 0.3)):
                    faults.append(what + ": not 75: " + err[-500:])
                if kind == "stop" and code != 0 and not re.search(f"not (finished|come to the end within) (after )?({args.timeout}|30) s", err):
                    faults.append(what + ": says not what was waited for: " + err[-500:])
                if kind != "ask" and code == 70:
                    faults.append(what + ": a rank that fails is no defect: " + err[-500:])
                counts[kind, code] = counts.get((kind, code), 0) + 1
                if code != 0:
                    code, err, _ = finish(args, start(args, method, args.ranks, launcher=rng.random() < 0.5), 600)
                    if code != 0:
                        faults.append(f"{what}: resuming ends with {code}: {err[-1000:]}")
                        continue
                if weights_and_configurations(args) != want:
                    faults.append(what + ": other bytes")
    print("kind and exit code: " + ", ".join(f"{k} {c}: {n}" for (k, c), n in sorted(counts.items(), key=str)))
    for fault in faults:
        print("FAULT " + fault)
    print(f"{len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
