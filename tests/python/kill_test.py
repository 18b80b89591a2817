#!/usr/bin/env python3
"""Runs that are killed at any moment go on to the same bytes.

    kill_test.py QPIPE SHIM MPIEXEC [--random N] [--every-write N] [--methods gptq,awq,...] [--seed S] [--only K]

--random: kill -9 at N random moments, of one rank, of all ranks, or of mpirun and all ranks (as a machine does that loses its power); then the
run goes on, every fourth time after a second kill, with another number of ranks. --every-write: kill -9 of one rank at a call that changes a
file (SHIM is the library of tests/launch/fail_at.c), N calls evenly over all of them. Each time the end is 0 with the bytes of an undisturbed
run, every layer whose records stood at the kill is taken as it is, and no more layers are done again than were under way: one for each team.
Each kill is a random number generator of its own, so that --only K repeats the K-th alone."""
import argparse
import collections
import glob
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from processes import digest, environment, processes_below
from tiny_model import make_model, make_tokens

GROUP = "quantize.group_size=32"
SETTINGS = {
    "gptq": [GROUP],
    "gptq-original": [GROUP, "quantize.propagate=original"],
    "gptq-v1-asym": [GROUP, "quantize.symmetric=false", "output.format=gptq", "quantize.desc_act=true"],
    "awq": ["quantize.method=awq", GROUP],
    "rtn": ["quantize.method=rtn", GROUP],
    "bnb-nf4": ["quantize.method=bnb-nf4"],
    "experts-gptq": [GROUP],
    "experts-awq": ["quantize.method=awq", GROUP],
}
RINGS = ("gptq-original", "awq", "rtn", "experts-awq")  # each team works on a layer of its own
LAYERS = 8
EXPERTS = 4  # of the model of "experts-…"
CODE_OF_KILL = (-signal.SIGKILL, 128 + signal.SIGKILL)


def kill(pids):
    """How many of them were still there."""
    there = 0
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            there += 1
        except ProcessLookupError:
            pass
    return there


class Fault(Exception):
    pass


class Runs:
    def __init__(self, args, folder):
        self.args, self.folder = args, folder
        self.qpipe = os.path.realpath(args.qpipe)
        self.output = os.path.join(folder, "out")
        self.run_folder = self.output + ".run"
        self.config = os.path.join(folder, "run.toml")
        for name, experts in (("model", 0), ("mixture", EXPERTS)):
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
            make_model(os.path.join(folder, name), layers=LAYERS, experts=experts)
        make_tokens(os.path.join(folder, "tokens.safetensors"))
        with open(self.config, "w") as f:
            f.write(f'[model]\npath = "{folder}/model"\n[calibration]\ndata = "{folder}/tokens.safetensors"\nsamples = 24\nseqlen = 48\n'
                    f'[memory]\nmicro_batch = 200\n[output]\npath = "{self.output}"\nmax_shard_size = "60KB"\n[parallel]\nbackend = "cpu"\n'
                    f'timeout = 60\n[run]\nprogress = "plain"\n')
        self.expected, self.seconds = {}, {}
        self.figures = collections.Counter()

    def start(self, method, ranks, **env):
        settings = SETTINGS[method] + [f"model.path={self.folder}/mixture"] * method.startswith("experts-")
        words = [self.args.qpipe, self.config, *[word for s in settings for word in ("--set", s)]]
        if ranks:
            words = [self.args.mpiexec, "--oversubscribe", "--bind-to", "none", "-np", str(ranks), *words]
        return subprocess.Popen(words, env=environment(**env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                start_new_session=True)

    def finish(self, process, limit=120):
        """The exit code and the output. mpirun may stay behind when a rank was killed while it started: that is Open MPI's."""
        try:
            text = process.communicate(timeout=limit)[0]
        except subprocess.TimeoutExpired:
            left = processes_below(process.pid, self.qpipe)
            os.killpg(process.pid, signal.SIGKILL)
            text = process.communicate()[0]
            if left:
                raise Fault(f"{len(left)} processes of qpipe still ran after {limit} s\n{text}") from None
            self.figures["mpirun alone stayed behind"] += 1
        return process.returncode, text

    def run(self, method, ranks, **env):
        return self.finish(self.start(method, ranks, **env))

    def clear(self):
        for path in (self.output, self.run_folder):
            shutil.rmtree(path, ignore_errors=True)
        if os.path.exists(self.output + ".report.json"):
            os.unlink(self.output + ".report.json")

    def undisturbed(self, method, ranks=0):
        """Bytes of the method's output, and how long a run with that many ranks takes."""
        if (method, ranks) not in self.seconds:
            begin = time.monotonic()
            code, text = self.run(method, ranks)
            self.seconds[method, ranks] = time.monotonic() - begin
            if code != 0:
                raise Fault(f"an undisturbed run ended with {code}\n{text}")
            if digest(self.output) != self.expected.setdefault(method, digest(self.output)):
                raise Fault(f"{ranks} ranks gave other bytes than one, undisturbed")
            self.clear()
        return self.seconds[method, ranks]

    def layers_with_all_records(self):
        parts = collections.defaultdict(set)
        for path in glob.glob(self.run_folder + "/layer-*.json"):
            layer, part, of = re.match(r"layer-(\d+)\.(\d+)-of-(\d+)\.json", os.path.basename(path)).groups()
            parts[int(layer), int(of)].add(part)
        return {layer for (layer, of), found in parts.items() if len(found) == of}

    @staticmethod
    def layers_in(text):
        """Layers that a run says it quantized."""
        return {int(layer) for layer in re.findall(r"(?m)^\[\d+/\d+\] layer (\d+)(?!  finished by an earlier run)\b", text)}

    def resume(self, method, ranks, under_way, history, second_kill=None):
        """Goes on until the end, and compares. under_way: layers that may have been in work at the kill."""
        recorded = self.layers_with_all_records()
        had_run = os.path.exists(self.run_folder + "/run.json")
        reported = set().union(*[self.layers_in(text) for text in history])
        process = self.start(method, ranks)
        if second_kill is not None:
            time.sleep(second_kill)
            self.figures["second kills"] += bool(kill(processes_below(process.pid, self.qpipe)))
        code, text = self.finish(process)
        if second_kill is not None and code != 0:
            return self.resume(method, ranks, under_way + max(1, ranks), [*history, text])
        if code == 73 and not had_run and os.path.exists(self.output + ".report.json"):
            self.figures["killed after the end"] += 1  # all is there: the output folder is not empty, says the next run
        elif code == 0 and "is complete; nothing is left to do" in text:
            self.figures["killed while the run folder was cleared"] += 1
        elif code != 0:
            raise Fault(f"going on with {ranks} ranks ended with {code}:\n{text}")
        else:
            done = self.layers_in(text)
            said = re.search(r"(\d+) of \d+ layers are finished", text)
            taken = int(said.group(1)) if said else 0
            self.figures["layers taken"] += taken
            if had_run and taken < len(recorded):
                raise Fault(f"layers {sorted(recorded)} had their records, {taken} were taken:\n{text}")
            redone = len(reported & done)
            self.figures[f"{redone} layers done again"] += 1
            if redone > under_way:
                raise Fault(f"{redone} layers were done again, {under_way} were under way:\n{text}")
        if digest(self.output) != self.expected[method]:
            raise Fault(f"other bytes with {ranks} ranks:\n{text}")
        if os.path.exists(self.run_folder + "/run.json"):
            raise Fault(f"the run folder is still there:\n{text}")

    def at_once(self, method, ranks):
        """Layers that may be reported, but not recorded: casts report several at a time."""
        return LAYERS if method == "bnb-nf4" else max(1, ranks) if method in RINGS else 1

    def kill_at_random(self, rng, method):
        ranks = rng.randint(1, 4)
        whole = self.undisturbed(method, ranks)
        whom = rng.choice(("one rank", "all ranks", "mpirun and all ranks"))
        # Half of the moments are fractions of a run's time, much of which is its start; the others lie a little after some record.
        moment, resumed_with = whole * rng.uniform(0.05, 1.0), rng.randint(1, 4)
        records = rng.choice((0, rng.randint(1, LAYERS)))
        if records:
            moment = 0.1 * whole * rng.random() ** 2
        second = whole * rng.uniform(0.1, 0.9) if rng.random() < 0.25 else None
        what = f"{method}, {whom} of {ranks} killed {moment:.3f} s after {records} records, of {whole:.2f} s, then {resumed_with} ranks"
        process = self.start(method, ranks)
        while records and len(glob.glob(self.run_folder + "/layer-*.json")) < records and process.poll() is None:
            time.sleep(0.002)
        time.sleep(moment)
        victims = processes_below(process.pid, self.qpipe)
        if whom == "one rank":
            victims = [rng.choice(victims)] if victims else []
        if whom == "mpirun and all ranks" and process.poll() is None:
            victims = [process.pid, *victims]
        self.figures["killed" if kill(victims) else "ended before the kill"] += 1
        return what, method, ranks, resumed_with, self.finish(process), second

    def kill_at_write(self, rng, method, share):
        ranks, victim = rng.choice(((0, 0), (2, 0), (2, 1), (3, 1)))
        self.undisturbed(method, 0)
        shim = {"LD_PRELOAD": self.args.shim, "FAIL_BELOW": self.output, "FAIL_RANK": str(victim)}
        if (method, ranks, victim) not in self.seconds:
            count = os.path.join(self.folder, "count")
            code, text = self.run(method, ranks, FAIL_COUNT=count, **shim)
            if code != 0:
                raise Fault(f"an undisturbed run ended with {code}\n{text}")
            with open(count) as f:
                self.seconds[method, ranks, victim] = int(f.read())
            self.clear()
        calls = self.seconds[method, ranks, victim]
        call = 1 + int(share * calls)
        what = f"{method}, rank {victim} of {max(1, ranks)} killed at call {call} of {calls}"
        code, text = self.run(method, ranks, FAIL_AT=str(call), **shim)
        self.figures["ended before the kill" if code == 0 else "killed"] += 1
        return what, method, ranks, rng.randint(1, 4), (code, text), None

    def one(self, number, method_names, seed, form):
        rng = random.Random(f"{seed} {form} {number}")
        name = method_names[(number if form == "random" else -1 - number) % len(method_names)]
        self.clear()
        what = "?"
        try:
            if form == "random":
                what, method, ranks, then, (code, text), second = self.kill_at_random(rng, name)
            else:
                what, method, ranks, then, (code, text), second = self.kill_at_write(rng, name, (number + rng.random()) / self.args.every_write)
            if code == 0:  # the kill came too late, or hit nothing
                if digest(self.output) != self.expected[method]:
                    raise Fault(f"other bytes\n{text}")
            else:
                self.resume(method, then, self.at_once(method, ranks), [text], second)
        except Fault as fault:
            print(f"FAULT ({form} {number}): {what}: {fault}", flush=True)
            if self.args.keep:
                for ending in ("", ".run", ".report.json"):
                    if os.path.exists(self.output + ending):
                        os.rename(self.output + ending, f"{self.output}-{form}-{number}{ending}")
            return 1
        return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("qpipe", "shim", "mpiexec"):
        parser.add_argument(name)
    parser.add_argument("--random", type=int, default=5)
    parser.add_argument("--every-write", type=int, default=3)
    parser.add_argument("--methods", default="gptq,awq,bnb-nf4,experts-gptq,experts-awq")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--only", type=int, help="this kill alone, of each form")
    parser.add_argument("--keep", metavar="FOLDER", help="work here, and leave what a fault left")
    args = parser.parse_args()
    methods = args.methods.split(",")
    if unknown := [m for m in methods if m not in SETTINGS]:
        parser.error(f"unknown methods {unknown}; known are {', '.join(SETTINGS)}")
    begin, faults = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(args, args.keep or folder)
        for form, count in (("random", args.random), ("write", args.every_write)):
            runs.figures.clear()
            numbers = range(count) if args.only is None else [args.only] if args.only < count else []
            failed = sum(runs.one(number, methods, args.seed, form) for number in numbers)
            faults += failed
            print(f"{form}: {len(numbers)} kills, {failed} faults; " + json.dumps(dict(sorted(runs.figures.items()))), flush=True)
            if len(numbers) > 3 and runs.figures["killed"] <= len(numbers) // 2:
                print(f"FAULT: only {runs.figures['killed']} of {len(numbers)} runs were hit")
                faults += 1
    print(f"{faults} faults in {time.monotonic() - begin:.0f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
