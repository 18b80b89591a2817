#!/usr/bin/env python3
"""Runs that are killed go on to the same bytes: resume_test.py QPIPE SHIM MPIEXEC SHARED [--kills N] [--every-call] [unittest arguments].

SHIM is the library of tests/launch/fail_at.c. Without --every-call, calls are tried in steps (the first step differs for each mode), and each damage
to what lies on the disk with one format."""
import argparse
import errno
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
import unittest

from processes import digest, environment, processes_below

ARGS = None
SETTINGS = {
    "gptq": ["quantize.group_size=32"],
    "gptq-v1-asym": ["quantize.symmetric=false", "quantize.group_size=32", "output.format=gptq", "quantize.desc_act=true"],
    "at-once-8bit": ["quantize.true_sequential=false", "quantize.bits=8", "quantize.group_size=-1", "quantize.act_group_aware=true"],
    "original": ["quantize.propagate=original", "quantize.group_size=32"],
    "target": ["quantize.target=original", "quantize.group_size=32"],
    "compressed-tensors": ["quantize.group_size=32", "output.format=compressed-tensors", "quantize.symmetric=false"],
    "awq": ["quantize.method=awq", "quantize.group_size=32"],
    "awq-quantized": ["quantize.method=awq", "quantize.group_size=32", "quantize.propagate=quantized"],
    "rtn": ["quantize.method=rtn", "quantize.group_size=32"],
    "nf4": ["quantize.method=bnb-nf4"],
}
RINGS = ("original", "awq", "rtn")  # each rank works on a layer of its own


def descendants(pid):
    return processes_below(pid, ARGS.qpipe)


def first_line(process):
    """A byte at a time: communicate() would lose what a buffer had read beyond it."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(process.stdout.fileno(), 1)):
        line += byte
    return line.decode()


def flip(path, byte, bits):
    with open(path, "r+b") as f:
        f.seek(byte)
        value = f.read(1)[0]
        f.seek(byte)
        f.write(bytes([value ^ bits]))


class Resume(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.expected = {}

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.output = os.path.join(self.folder.name, "out")
        self.config = os.path.join(self.folder.name, "run.toml")
        with open(self.config, "w") as f:
            f.write(f'[model]\npath = "{ARGS.shared}/oracles/models/llama"\n[calibration]\n'
                    f'data = "{ARGS.shared}/oracles/calib_tiny.safetensors"\ndataset = "calib"\nsamples = 24\nseqlen = 48\n'
                    f'[memory]\nmicro_batch = 200\n[output]\npath = "{self.output}"\nmax_shard_size = "90KB"\n[parallel]\n'
                    f'backend = "cpu"\n[run]\nprogress = "plain"\n')

    def tearDown(self):
        self.folder.cleanup()

    def command(self, ranks, settings, *more):
        words = [ARGS.qpipe, self.config, *more]
        for s in settings:
            words += ["--set", s]
        return words if ranks == 0 else [ARGS.mpiexec, "--oversubscribe", "--bind-to", "none", "-np", str(ranks), *words]

    def start(self, ranks, settings, *more, env=()):
        return subprocess.Popen(self.command(ranks, settings, *more), env=environment(**dict(env)), stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True)

    def run_to_end(self, ranks, settings, *more, env=()):
        result = subprocess.run(self.command(ranks, settings, *more), env=environment(**dict(env)), stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True, timeout=300)
        return result.returncode, result.stdout

    def clear(self):
        for path in (self.output, self.output + ".run", self.output + ".report.json", self.output + ".run.finished"):
            shutil.rmtree(path) if os.path.isdir(path) else os.path.exists(path) and os.unlink(path)

    def uninterrupted(self, name):
        if name not in self.expected:
            code, text = self.run_to_end(0, SETTINGS[name])
            self.assertEqual(code, 0, text)
            self.expected[name] = (digest(self.output), self.modules())
            self.clear()
        return self.expected[name]

    def modules(self):
        with open(self.output + ".report.json") as f:
            report = json.load(f)
        return report["modules"], report.get("scales")

    def expect_complete(self, name, text):
        expected, modules = self.uninterrupted_of_class(name)
        self.assertEqual(digest(self.output), expected, text)
        self.assertEqual(self.modules(), modules)
        self.assertFalse(os.path.exists(self.output + ".run"), text)

    def uninterrupted_of_class(self, name):
        return self.expected[name]

    @staticmethod
    def layers(text, what):
        """Layers that a run says it quantized, or took from an earlier run."""
        quantized, taken = set(), set()
        for line in text.splitlines():
            match = re.match(r"\[\d+/\d+\] layer (\d+)(  finished by an earlier run)?", line)
            if match:
                (taken if match.group(2) else quantized).add(int(match.group(1)))
        return quantized if what == "quantized" else taken

    def test_killed_at_random_moments(self):
        rng = random.Random(20250101)
        names = list(SETTINGS)
        started = {}
        interrupted = 0
        launcher_hangs = 0
        for kill in range(ARGS.kills):
            name = names[kill % len(names)]
            self.uninterrupted(name)
            ranks = rng.choice([1, 2, 3])
            begin = time.monotonic()
            if (name, ranks) not in started:  # how long a whole run takes
                code, text = self.run_to_end(ranks, SETTINGS[name])
                self.assertEqual(code, 0, text)
                self.expect_complete(name, text)
                started[name, ranks] = time.monotonic() - begin
                self.clear()
            process = self.start(ranks, SETTINGS[name])
            time.sleep(started[name, ranks] * rng.uniform(0.3, 1.0))
            victims = descendants(process.pid)
            if victims:
                victim = rng.choice(victims)
                try:
                    os.kill(victim, signal.SIGKILL)
                    interrupted += 1
                except ProcessLookupError:
                    pass
            try:
                first = process.communicate(timeout=60)[0]
            except subprocess.TimeoutExpired:  # Open MPI's launcher may miss the end of a process that is killed while it starts
                self.assertEqual(descendants(process.pid), [], "a rank still runs 60 s after another was killed")
                process.kill()
                first = process.communicate()[0]
                launcher_hangs += 1
            if os.path.exists(self.output + ".run/run.json"):
                done = self.layers(first, "quantized")
                other = rng.choice([r for r in (1, 2, 3) if r != ranks])
                code, text = self.run_to_end(other, SETTINGS[name])
                self.assertEqual(code, 0, f"{name}, killed with {ranks} ranks:\n{first}\nwith {other}:\n{text}")
                redone = done & self.layers(text, "quantized")
                if name != "nf4":  # casts report as they go, several layers at a time
                    self.assertLessEqual(len(redone), ranks if name in RINGS else 1, f"{name}: {first}\n{text}")
            elif process.returncode != 0:  # before there was anything to go on with, or while it removed the run folder
                code, text = self.run_to_end(1, SETTINGS[name])
                if os.path.exists(self.output + ".report.json") and code == 73:  # all was done but for telling so
                    self.assertIn("is not empty", text)
                else:
                    self.assertEqual(code, 0, text)
            else:
                text = first
            self.expect_complete(name, f"{name}\n{first}\n{text}")
            self.clear()
        print(f"{interrupted} of {ARGS.kills} runs were killed; mpirun alone stayed behind {launcher_hangs} times", file=sys.stderr)
        self.assertLessEqual(launcher_hangs, 1 + ARGS.kills // 50)
        self.assertGreater(interrupted, ARGS.kills // 2)

    def test_chain_of_rank_counts(self):
        """4 → 1 → 3 → 2 ranks: each run is told to stop (SIGUSR1 to one rank) and ends after the layer, with 75."""
        for name in ("gptq", "awq-quantized", "gptq-v1-asym", "compressed-tensors"):
            self.uninterrupted(name)
            total = set()
            for ranks in (4, 1, 3):
                process = self.start(ranks, SETTINGS[name])
                text = first_line(process)  # all ranks count signals by now
                victims = descendants(process.pid)
                os.kill(random.Random(ranks).choice(victims), signal.SIGUSR1)
                text += process.communicate(timeout=60)[0]
                self.assertEqual(process.returncode, 75, text)
                self.assertEqual(len([line for line in text.splitlines() if "stopped by a signal" in line]), 1, text)
                quantized = self.layers(text, "quantized")
                self.assertEqual(quantized, {len(total)}, text)
                self.assertEqual(self.layers(text, "taken"), total, text)
                total |= quantized
            code, text = self.run_to_end(2, SETTINGS[name], "--resume")
            self.assertEqual((self.layers(text, "quantized"), self.layers(text, "taken")), (set(), total), text)
            self.assertEqual(code, 0, text)
            self.expect_complete(name, text)
            self.clear()

    def test_chain_of_layouts(self):
        """A ring of 2 teams is killed, and goes on in other layouts, each killed in turn."""
        for name in ("awq", "original", "gptq"):
            self.uninterrupted(name)
            for ranks, teams in ((2, 2), (4, 2), (3, 3)):
                process = self.start(ranks, [*SETTINGS[name], f"parallel.teams={teams}"])
                first_line(process)
                before = set(glob.glob(self.output + ".run/layer-*.json"))
                while not set(glob.glob(self.output + ".run/layer-*.json")) - before and process.poll() is None:
                    time.sleep(0.002)
                for victim in descendants(process.pid):
                    os.kill(victim, signal.SIGKILL)
                process.communicate(timeout=60)
                if process.returncode == 0:
                    break
            code, text = (0, "") if process.returncode == 0 else self.run_to_end(4, [*SETTINGS[name], "parallel.teams=4"])
            self.assertEqual(code, 0, text)
            self.expect_complete(name, text)
            self.clear()

    def calls(self, name):
        count = os.path.join(self.folder.name, "count")
        self.uninterrupted(name)
        code, text = self.run_to_end(0, SETTINGS[name], env=self.shim(FAIL_COUNT=count).items())
        self.assertEqual(code, 0, text)
        self.expect_complete(name, text)
        self.clear()
        with open(count) as f:
            n = int(f.read())
        self.assertGreater(n, 50)
        return n

    def shim(self, **more):
        return {"LD_PRELOAD": ARGS.shim, "FAIL_BELOW": self.output, **{k: str(v) for k, v in more.items()}}

    def step(self, first, n, tries):
        return range(1, n + 1) if ARGS.every_call else range(first, n + 1, max(1, n // tries))

    def test_killed_at_every_call(self):
        for name, first in (("gptq-v1-asym", 1), ("nf4", 2)):
            n = self.calls(name)
            for call in self.step(first, n, 10):
                code, first_text = self.run_to_end(0, SETTINGS[name], env=self.shim(FAIL_AT=call).items())
                self.assertIn(code, (-signal.SIGKILL, 0), f"call {call}: {first_text}")
                text = first_text
                if code != 0:
                    recorded = {int(path.rsplit("layer-", 1)[1][:5]) for path in glob.glob(self.output + ".run/layer-*.json")}
                    code, text = self.run_to_end(0, SETTINGS[name])
                    self.assertEqual(code, 0, f"{name}, killed at call {call} of {n}:\n{first_text}\n{text}")
                    again = self.layers(text, "quantized")
                    # Casts work on several layers at a time, and tell of them before their records are there.
                    redone = recorded & again if name == "nf4" else self.layers(first_text, "quantized") & again
                    self.assertLessEqual(len(redone), 0 if name == "nf4" else 1, f"call {call}: {first_text}\n{text}")
                self.expect_complete(name, f"call {call} of {n}:\n{first_text}\n{text}")
                self.assertFalse(os.path.exists(self.output + ".run.finished"), text)
                self.clear()
            print(f"{name}: killed at {len(self.step(first, n, 10))} of {n} calls", file=sys.stderr)

    def test_disk_errors(self):
        """The disk fails at a call and at all later ones: one line that names the path, exit code 73 or 74, and the run goes on after it."""
        name = "gptq-v1-asym"
        n = self.calls(name)
        for error, first in ((errno.ENOSPC, 3), (errno.EIO, 5), (errno.EROFS, 7), (errno.EDQUOT, 9)):
            for call in self.step(first, n, 5):
                begin = time.monotonic()
                code, first_text = self.run_to_end(0, SETTINGS[name], env=self.shim(FAIL_AT=call, FAIL_WITH=error).items())
                self.assertLess(time.monotonic() - begin, 30)
                if code != 0:
                    self.assertIn(code, (73, 74), f"call {call}: {first_text}")
                    lines = [line for line in first_text.splitlines() if "qpipe: error" in line]
                    self.assertEqual(len(lines), 1, first_text)
                    self.assertIn(self.output, lines[0])
                    self.assertTrue(os.strerror(error) in lines[0], lines[0])
                    code, text = self.run_to_end(0, SETTINGS[name])
                    self.assertEqual(code, 0, f"{errno.errorcode[error]} at call {call} of {n}:\n{first_text}\n{text}")
                found = digest(self.output)
                found.pop(".qpipe.lock", None)  # which such a disk may not let go
                self.assertEqual(found, self.expected[name][0], f"call {call} of {n}:\n{first_text}")
                self.clear()

    def test_disk_error_of_one_rank(self):
        """Only one of three ranks sees the fault, in the middle; all end with its line and its code."""
        name = "gptq"
        self.uninterrupted(name)
        for rank in (0, 2):
            script = (f'if [ "$OMPI_COMM_WORLD_RANK" = {rank} ]; then export LD_PRELOAD={ARGS.shim}; fi; exec "$@"')
            command = self.command(3, SETTINGS[name])
            at = command.index(ARGS.qpipe)
            command[at:at] = ["sh", "-c", script, "sh"]
            begin = time.monotonic()
            result = subprocess.run(command, env=environment(FAIL_AT="25", FAIL_WITH=str(errno.ENOSPC), FAIL_BELOW=self.output),
                                    capture_output=True, text=True, timeout=100)
            self.assertLess(time.monotonic() - begin, 30)
            self.assertEqual(result.returncode, 74, result.stderr)
            lines = [line for line in result.stderr.splitlines() if "qpipe: error" in line]
            self.assertEqual(len(lines), 1, result.stderr)
            self.assertIn("No space left on device", lines[0])
            code, text = self.run_to_end(2, SETTINGS[name])
            self.assertEqual(code, 0, text)
            self.expect_complete(name, text)
            self.clear()

    def stop_after_a_layer(self, name, ranks=1):
        """A run that is unfinished, with at least one layer done."""
        self.uninterrupted(name)
        process = self.start(ranks, SETTINGS[name])
        while not glob.glob(self.output + ".run/layer-*.json") and process.poll() is None:
            time.sleep(0.002)
        for victim in descendants(process.pid):
            os.kill(victim, signal.SIGKILL)
        text = process.communicate(timeout=60)[0]
        if not glob.glob(self.output + ".run/layer-*.json"):
            self.skipTest("the run was too fast to be stopped: " + text)

    def test_changed_settings_are_refused(self):
        self.stop_after_a_layer("gptq")
        for sets, parts in (
            (["quantize.damp_percent=0.02"], ["quantize.damp_percent: was 0.01, is 0.02"]),
            (["calibration.samples=23", "memory.micro_batch=100"], ["calibration.samples: was 24, is 23", "calibration tokens: was",
                                                                    "memory.micro_batch: was 200, is 100"]),
            ([f"output.path={self.output}2", f"run.folder={self.output}.run"], [f'output.path: was "{self.output}", is "{self.output}2"']),
            ([f"model.path={ARGS.shared}/oracles/models/llama-mha"], ["model config.json: was"]),
        ):
            code, text = self.run_to_end(1, SETTINGS["gptq"] + sets)
            self.assertEqual(code, 78, text)
            for part in parts + [self.output + ".run", "run.resume"]:
                self.assertIn(part, text)
            lines = [line for line in text.splitlines() if "qpipe: error" in line]
            self.assertEqual(len(lines), 1, text)
            self.assertTrue(all(part in lines[0] for part in parts), text)
        # Other things may change.
        code, text = self.run_to_end(2, SETTINGS["gptq"] + ["parallel.timeout=77", "parallel.threads=2", "output.overwrite=true"], "--resume")
        self.assertEqual(code, 0, text)
        self.assertTrue(self.layers(text, "taken"), text)
        self.expect_complete("gptq", text)
        code, text = self.run_to_end(1, SETTINGS["gptq"])  # complete: as before
        self.assertEqual(code, 73, text)
        self.assertIn("is not empty", text)
        code, text = self.run_to_end(1, SETTINGS["gptq"], "--resume")
        self.assertEqual(code, 66, text)
        self.assertIn("no unfinished run", text)

    def test_another_build(self):
        """The same source with a byte more behind the program: another build."""
        self.stop_after_a_layer("gptq")
        other = os.path.join(self.folder.name, "qpipe")
        shutil.copy(ARGS.qpipe, other)
        with open(other, "ab") as f:
            f.write(b"\0")
        original, ARGS.qpipe = ARGS.qpipe, other
        try:
            code, text = self.run_to_end(0, SETTINGS["gptq"])
            self.assertEqual(code, 78, text)
            self.assertRegex(text.splitlines()[-1], "differs: build program: was .*, is .*run.allow_other_build = true")
            code, text = self.run_to_end(2, SETTINGS["gptq"] + ["run.allow_other_build=true"], "--resume")
        finally:
            ARGS.qpipe = original
        self.assertEqual(code, 0, text)
        self.assertTrue(self.layers(text, "taken"), text)
        with open(self.output + ".report.json") as f:
            builds = json.load(f)["builds"]
        self.assertEqual(len({build["program"] for build in builds}), 2, builds)
        with open(self.output + "/README.md") as f:
            self.assertIn("more than one build", f.read())

    def test_starting_over(self):
        self.stop_after_a_layer("gptq")
        self.uninterrupted_of_class("gptq")
        code, text = self.run_to_end(1, SETTINGS["gptq"] + ["run.resume=never"])
        self.assertEqual(code, 0, text)
        self.assertEqual(self.layers(text, "taken"), set(), text)
        self.expect_complete("gptq", text)

    def test_damage_is_found(self):
        """Bytes lost in a shard, a record cut off, a shard deleted: those layers are done again."""
        formats = ("gptq", "gptq-v1-asym")
        for i, name in enumerate(formats):
            damages = ("shards", "held", "deleted", "record", "no output", "flipped record", "flipped run.json")
            for damage in damages if ARGS.every_call else damages[i::2]:
                self.stop_after_a_layer(name)
                if damage == "shards":
                    for path in glob.glob(self.output + "/*.tmp"):
                        with open(path, "r+b") as f:
                            f.seek(os.path.getsize(path) // 2)
                            f.write(bytes(os.path.getsize(path) // 2))
                elif damage == "flipped record":
                    for path in glob.glob(self.output + ".run/layer-*.json"):
                        flip(path, 40, 0x80)
                elif damage == "flipped run.json":
                    flip(self.output + ".run/run.json", 60, 0x01)
                elif damage == "no output":
                    shutil.rmtree(self.output)
                elif damage == "deleted":
                    for path in glob.glob(self.output + "/*.tmp"):
                        os.unlink(path)
                else:
                    ending = "json" if damage == "record" else "safetensors"
                    for path in glob.glob(f"{self.output}.run/layer-*.{ending}"):
                        os.truncate(path, os.path.getsize(path) // 2)
                code, text = self.run_to_end(1, SETTINGS[name])
                self.assertEqual(code, 0, text)
                if damage != "held" or name == "gptq-v1-asym":
                    self.assertIn(0, self.layers(text, "quantized"), damage + text)
                self.expect_complete(name, text)
                self.clear()

    def test_two_runs_at_once(self):
        process = self.start(1, SETTINGS["gptq"])
        while not os.path.exists(self.output + ".run/run.json") and process.poll() is None:
            time.sleep(0.002)
        os.kill(descendants(process.pid)[0], signal.SIGSTOP)
        try:
            for more in ([], [f"run.folder={self.output}.other"]):  # the run folder is locked, and the output
                code, text = self.run_to_end(2, SETTINGS["gptq"] + more)
                self.assertEqual(code, 73, text)
                self.assertIn("another run works here (process ", text)
                self.assertEqual(len([line for line in text.splitlines() if "qpipe: error" in line]), 1, text)
            self.assertFalse(os.path.exists(self.output + ".other"))
        finally:
            os.kill(descendants(process.pid)[0], signal.SIGCONT)
            text = process.communicate(timeout=60)[0]
        self.assertEqual(process.returncode, 0, text)

    def test_a_lock_of_another_host(self):
        os.mkdir(self.output + ".run")
        with open(self.output + ".run/lock", "w") as f:
            f.write("elsewhere 17 0000000003\n")
        begin = time.monotonic()
        code, text = self.run_to_end(0, SETTINGS["gptq"])  # stands still: that run is dead
        self.assertEqual(code, 0, text)
        self.assertGreater(time.monotonic() - begin, 4)
        self.clear()

    def test_a_rank_that_dies_or_stands_still(self):
        for how, limit in ((signal.SIGKILL, 10), (signal.SIGSTOP, 5 + 10)):
            process = self.start(3, SETTINGS["gptq"] + ["parallel.timeout=5", "calibration.samples=60"])
            while not os.path.exists(self.output + ".run/run.json") and process.poll() is None:
                time.sleep(0.002)
            os.kill(descendants(process.pid)[-1], how)
            begin = time.monotonic()
            text = process.communicate(timeout=60)[0]
            seconds = time.monotonic() - begin
            print(f"{how.name}: the job ended after {seconds:.1f} s", file=sys.stderr)
            self.assertNotEqual(process.returncode, 0, text)
            self.assertLess(seconds, limit, text)
            self.clear()

    def test_too_many_fallbacks(self):
        """5 tokens give no Hessian of 64 columns; the second damping is above 1."""
        sets = SETTINGS["gptq"] + ["quantize.damp_percent=1e-9", "quantize.damp_auto_increment=0.9999999999", "calibration.samples=1",
                                   "calibration.seqlen=5"]
        code, text = self.run_to_end(2, sets)
        self.assertEqual(code, 65, text)
        lines = [line for line in text.splitlines() if "qpipe: error" in line]
        self.assertEqual(len(lines), 1, text)
        self.assertIn("the Hessians of 7 of 21 modules", lines[0])
        code, text = self.run_to_end(1, sets)  # what is done does not make it better
        self.assertEqual(code, 65, text)
        code, text = self.run_to_end(1, sets + ["quantize.allow_fallback=true"], "--resume")
        self.assertEqual(code, 0, text)
        self.assertEqual(self.layers(text, "taken"), {0}, text)
        with open(self.output + ".report.json") as f:
            report = json.load(f)
        self.assertEqual(report["fell_back_to_rtn"], 21)
        self.assertEqual(sum(m.get("fell_back_to_rtn", False) for m in report["modules"]), 21)

    def test_two_signals_stop_inside_a_layer(self):
        process = self.start(2, SETTINGS["gptq"] + ["calibration.samples=60"])
        while not os.path.exists(self.output + ".run/run.json") and process.poll() is None:
            time.sleep(0.002)
        for victim in descendants(process.pid):
            os.kill(victim, signal.SIGTERM)
            os.kill(victim, signal.SIGINT)
        text = process.communicate(timeout=60)[0]
        self.assertEqual(process.returncode, 75, text)
        self.assertIn("stopped by a signal inside layer", text)
        code, text = self.run_to_end(1, SETTINGS["gptq"] + ["calibration.samples=60"], "--resume")
        self.assertEqual(code, 0, text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("qpipe")
    parser.add_argument("shim")
    parser.add_argument("mpiexec")
    parser.add_argument("shared")
    parser.add_argument("--kills", type=int, default=18)
    parser.add_argument("--every-call", action="store_true")
    ARGS, rest = parser.parse_known_args()
    ARGS.qpipe = os.path.abspath(ARGS.qpipe)
    if not os.path.isdir(os.path.join(ARGS.shared, "oracles")):
        print("no oracles: skipped")
        sys.exit(77)
    unittest.main(argv=sys.argv[:1] + rest)
