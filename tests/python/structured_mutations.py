#!/usr/bin/env python3
"""Inputs that are nearly right: structured_mutations.py QPIPE [--number N] [--seed S] [--only K].

Each mutation changes one to three places of config.json, the index, a shard's header, the tokens' header, the TOML, or a file of an unfinished
run's folder: a value becomes a notorious one or another of the same file, a key is lost, doubled or renamed, something is nested. Whatever
qpipe makes of it: no signal, no exit code of a defect (70) or that it does not document, an answer in time, and at most one line that begins
with "qpipe: error:". Each mutation is a random number generator of its own, so that --only K repeats the K-th alone. The same in memory, a
million times: build/*/tests/fuzz/fuzz_NAME --mutations 1000000."""
import argparse
import collections
import copy
import glob
import json
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time

from processes import environment
from tiny_model import make_model, make_tokens

CODES = {0, 64, 65, 66, 69, 71, 73, 74, 75, 78}
LIMIT = 30  # s
NUMBERS = [0, 1, -1, 2, 3, 7, 64, 127, 255, 256, 65536, 2**31 - 1, 2**31, -2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -2**63, 2**64 - 1, 2**64, 10**40, 0.5, -0.0,
           1e-300, 1e308]
OTHERS = [None, True, False, "", "x", "null", "..", "../x", "/", "\n", "\x1b[31m", "\ud800", "ä" * 3000, [], {}, [[]], [0], [-1], [1, 1], [2**62, 4], {"a": 0}, ["x"] * 50,
          "F32", "BF16", "I64", "auto", "llama", "gpt2"]
TOML_VALUES = ["0", "-1", "9223372036854775807", "9223372036854775808", "1e400", "nan", "true", '""', '"x"', "[]", "{}", "[[1]]", '"../x"', "1979-05-27", "0x1F", '"5GB"',
               '"\\u0000"', "'''a\nb'''", "[" * 300 + "]" * 300]


def places(value, found=None):
    """(container, key) of every value below."""
    found = [] if found is None else found
    for key in (value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()):
        found.append((value, key))
        places(value[key], found)
    return found


def change(value, rng):
    """The value with one place changed, and what that was."""
    value = copy.deepcopy(value)
    everywhere = places(value)
    if not everywhere:
        return rng.choice(OTHERS), "all of it"
    container, key = rng.choice(everywhere)
    what = rng.choice(("number", "number", "other", "other", "swap", "remove", "nest", "rename", "twice"))
    if what == "number":
        container[key] = rng.choice(NUMBERS)
    elif what == "other":
        container[key] = copy.deepcopy(rng.choice(OTHERS))
    elif what == "swap":
        other, at = rng.choice(everywhere)
        container[key] = copy.deepcopy(other[at])
    elif what == "remove":
        del container[key]
    elif what == "nest":
        for _ in range(rng.choice((1, 2, 100))):
            container[key] = [container[key]] if rng.random() < 0.5 else {"a": container[key]}
    elif what == "rename" and isinstance(container, dict):
        container[key[:-1] if rng.random() < 0.5 else key + "."] = container.pop(key)
    elif isinstance(container, list):
        container.insert(key, copy.deepcopy(container[key]))
    else:
        container[key + "_2"] = copy.deepcopy(container[key])
    return value, f"{what} at {key!r}"


def text_of(value):
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def header_and_data(path):
    with open(path, "rb") as f:
        header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        return header, f.read()


class Mutations:
    def __init__(self, qpipe, folder, memory):
        self.memory = memory
        self.qpipe, self.good, self.bad = qpipe, os.path.join(folder, "good"), os.path.join(folder, "bad")
        os.mkdir(self.bad)  # made here, because a run folder knows where its output is
        make_model(os.path.join(self.bad, "model"), layers=2, shards=2)
        make_tokens(os.path.join(self.bad, "tokens.safetensors"), samples=8, seqlen=16)
        self.toml = ('[model]\npath = "model"\n[calibration]\ndata = "tokens.safetensors"\nsamples = 8\nseqlen = 16\n[output]\npath = "out"\n'
                     '[quantize]\nmethod = "gptq"\nbits = 4\ngroup_size = 32\ndamp_percent = 0.01\n[[quantize.overrides]]\nmatch = "down_proj"\nbits = 8\n'
                     '[parallel]\nbackend = "cpu"\n[run]\nprogress = "plain"\n')
        with open(os.path.join(self.bad, "run.toml"), "w") as f:
            f.write(self.toml)
        self.stop_in_the_middle()
        self.run = {"config": self.of_json("model/config.json"), "index": self.of_json("model/model.safetensors.index.json"), "shard": self.of_header("model/*.safetensors"),
                    "tokens": self.of_header("tokens.safetensors"), "toml": self.of_toml, "record": self.of_sealed("out.run/layer-*.json"),
                    "identity": self.of_sealed("out.run/run.json"), "packed": self.of_packed}
        shutil.copytree(self.bad, self.good)

    def answer(self, *words):
        def limit():
            if self.memory:
                resource.setrlimit(resource.RLIMIT_AS, (self.memory, self.memory))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        return subprocess.run([self.qpipe, *words], cwd=self.bad, env=environment(OPENBLAS_NUM_THREADS="1"), capture_output=True, timeout=LIMIT, preexec_fn=limit)

    def stop_in_the_middle(self):
        """packed/ is a finished output, out and out.run those of a run that was stopped."""
        result = self.answer("run.toml", "--set", "output.path=packed")
        if result.returncode:
            raise RuntimeError(result.stderr.decode())
        for _ in range(20):
            process = subprocess.Popen([self.qpipe, "run.toml"], cwd=self.bad, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while not glob.glob(self.bad + "/out.run/layer-*.json") and process.poll() is None:
                time.sleep(0.0005)
            process.kill()
            if process.wait() != 0 and glob.glob(self.bad + "/out.run/layer-*.json"):
                return
            for path in ("out", "out.run"):
                shutil.rmtree(os.path.join(self.bad, path), ignore_errors=True)
        raise RuntimeError("the run was always too fast to be stopped")

    def mutated(self, value, rng):
        changes = []
        for _ in range(rng.randint(1, 3)):
            value, what = change(value, rng)
            changes.append(what)
        return value, changes

    def of_json(self, name):
        def mutate(rng):
            with open(os.path.join(self.good, name)) as f:
                value, changes = self.mutated(json.load(f), rng)
            with open(os.path.join(self.bad, name), "wb") as f:
                f.write(text_of(value))
            return changes, ["run.toml"] if rng.random() < 0.7 else ["plan", "run.toml", "--gpu-memory", "22GiB"]
        return mutate

    def of_header(self, pattern):
        def mutate(rng):
            path = rng.choice(sorted(glob.glob(os.path.join(self.good, pattern))))
            header, data = header_and_data(path)
            value, changes = self.mutated(header, rng)
            text = text_of(value)
            with open(os.path.join(self.bad, os.path.relpath(path, self.good)), "wb") as f:
                f.write(struct.pack("<Q", len(text)) + text + data)
            return changes, ["run.toml"]
        return mutate

    def of_toml(self, rng):
        lines = self.toml.splitlines()
        changes = []
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(lines))
            key, equals, _ = lines[at].partition(" = ")
            what = rng.choice(("value", "value", "value", "remove", "twice", "move", "key"))
            changes.append(f"{what} at {lines[at]}")
            if what == "value" and equals:
                lines[at] = f"{key} = {rng.choice(TOML_VALUES)}"
            elif what == "remove" and len(lines) > 1:
                del lines[at]
            elif what == "twice":
                lines.insert(at, lines[at])
            elif what == "move":
                lines.insert(rng.randrange(len(lines)), lines.pop(at))
            else:
                lines[at] = lines[at][:-1] if rng.random() < 0.5 else "x" + lines[at]
        with open(os.path.join(self.bad, "run.toml"), "w") as f:
            f.write("\n".join(lines))
        return changes, ["run.toml", "--dry-run"] if rng.random() < 0.3 else ["run.toml"]

    def of_sealed(self, pattern):
        """Half of them only look whole: their hash is not right any more."""
        def mutate(rng):
            path = rng.choice(sorted(glob.glob(os.path.join(self.good, pattern))))
            with open(path) as f:
                sealed = json.load(f)
            value, changes = self.mutated(sealed, rng)
            with open(os.path.join(self.bad, os.path.relpath(path, self.good)), "wb") as f:
                f.write(text_of(value))
            return changes, ["run.toml"]
        return mutate

    def of_packed(self, rng):
        if rng.random() < 0.5:
            changes, _ = self.of_json("packed/config.json")(rng)
        else:
            changes, _ = self.of_header("packed/*.safetensors")(rng)
        return changes, ["verify", "packed"]

    def one(self, number, seed, figures):
        rng = random.Random(f"{seed} {number}")
        name = rng.choice(sorted(self.run))
        shutil.rmtree(self.bad)
        shutil.copytree(self.good, self.bad)
        changes, words = self.run[name](rng)
        if words[0] == "run.toml" and name not in ("record", "identity"):
            for path in ("out", "out.run"):
                shutil.rmtree(os.path.join(self.bad, path), ignore_errors=True)
        try:
            result = self.answer(*words)
        except subprocess.TimeoutExpired:
            return f"{number}: {name}, {'; '.join(changes)}: no answer after {LIMIT} s"
        figures[f"{name} {result.returncode}"] += 1
        errors = [line for line in result.stderr.split(b"\n") if line.startswith(b"qpipe: error:")]
        if result.returncode not in CODES or len(errors) > 1 or (result.returncode and not errors and name != "packed"):
            return f"{number}: {name}, {'; '.join(changes)}: {' '.join(words)} ended with {result.returncode}: {result.stderr.decode(errors='replace')[-600:]}"
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("qpipe")
    parser.add_argument("--number", type=int, default=60)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--only", type=int)
    parser.add_argument("--memory", type=int, default=8, help="GiB that a run may have; 0: no limit")
    args = parser.parse_args()
    figures, faults, begin = collections.Counter(), 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        mutations = Mutations(os.path.abspath(args.qpipe), folder, args.memory << 30)
        for number in range(args.number) if args.only is None else [args.only]:
            if fault := mutations.one(number, args.seed, figures):
                print("FAULT " + fault, flush=True)
                faults += 1
    print(f"{sum(figures.values())} mutations, {faults} faults in {time.monotonic() - begin:.0f} s; " + json.dumps(dict(sorted(figures.items()))))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
