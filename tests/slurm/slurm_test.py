#!/usr/bin/env python3
"""The scripts in slurm/ under a real Slurm: slurm_test.py [TEST ...]. Environment: QPIPE, the program. Ends with 77 where Slurm is not there.

The stand-in shows what the scripts do with each exit code; qpipe itself is then interrupted, and its output compared with an uninterrupted run.
Jobs mostly wait, for Slurm and for each other's signals: several tests run at a time.
"""
import concurrent.futures
import filecmp
import json
import glob
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
import time
import unittest

import cluster as slurm

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
STAND_IN = os.path.join(HERE, "qpipe_stand_in")
QPIPE = os.environ.get("QPIPE", "")
CLUSTER = None


def setUpModule():
    global CLUSTER
    folder = tempfile.TemporaryDirectory(prefix="qpipe-slurm-")
    unittest.addModuleCleanup(folder.cleanup)
    CLUSTER = slurm.Cluster(folder.name, nodes=2)
    CLUSTER.start()
    unittest.addModuleCleanup(CLUSTER.stop)


class Jobs(unittest.TestCase):
    """A folder to submit from, and what can be asked of a job."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="qpipe-jobs-")
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def path(self, name):
        return os.path.join(self.folder, name)

    def read(self, name):
        with open(self.path(name), errors="replace") as f:
            return f.read()

    def config(self, text='[output]\npath = "out"\n'):
        with open(self.path("run.toml"), "w") as f:
            f.write(text)

    def submit(self, script, *arguments, options=(), **environment):
        """-> job id. Two ranks on each node."""
        environment = dict({"QPIPE": STAND_IN, "QPIPE_ROOT": ROOT}, **environment)
        fewer = ["--cpus-per-task=1"] + ([] if "array" in script else ["--ntasks-per-node=2", "--gpus-per-node=2"])
        result = subprocess.run(["sbatch", "--parsable", *fewer, *options, os.path.join(ROOT, "slurm", script), *arguments], cwd=self.folder,
                                env=dict(CLUSTER.env, **environment), capture_output=True, text=True, timeout=60)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout.strip()

    def job(self, job):
        """What `scontrol show job` tells, by key."""
        return dict(re.findall(r"(\S+?)=(\S*)", CLUSTER.output("scontrol", "--oneliner", "show", "job", job)))

    def logs(self):
        return "\n".join(self.read(name) for name in sorted(os.listdir(self.folder)) if name.endswith(".out"))

    def until(self, condition, what, seconds=150):
        end = time.monotonic() + seconds
        while not condition():
            self.assertLess(time.monotonic(), end, f"no {what} after {seconds} s\n{self.logs()}\n{CLUSTER.logs()}")
            time.sleep(0.2)

    def end(self, job):
        """Waits for the job's end -> (state, exit code, restarts)."""
        self.until(lambda: self.job(job)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"), f"end of job {job}")
        facts = self.job(job)
        return facts["JobState"], int(facts["ExitCode"].split(":")[0]), int(facts["Restarts"])

    def commit(self, run="out.run"):
        """Waits for the first commit in a run folder."""
        self.until(lambda: glob.glob(self.path(f"{run}/layer-*.json")), "commit")

    def interrupt(self, job):
        """What --signal=B:USR1@300 does 300 s before the time is up."""
        CLUSTER.output("scancel", "--batch", "--signal=USR1", job)


class StandIn(Jobs):
    def setUp(self):
        super().setUp()
        self.config()

    def expect(self, job, state, code, restarts):
        self.assertEqual(self.end(job), (state, code, restarts), self.logs())

    def expect_model(self, layers, output="out"):
        self.assertEqual(self.read(f"{output}/model"), "".join(f"layer {i}\n" for i in range(layers)))

    def interrupted(self, script, ranks, **options):
        job = self.submit(script, "run.toml", LAYERS="6", LAYER_SECONDS="0.5", **options)
        self.commit()
        self.interrupt(job)
        self.expect(job, "COMPLETED", 0, 1)
        self.expect_model(6)
        self.assertEqual(self.logs().count("layer 0 of 6"), 1)  # the second start went on
        self.assertEqual(sorted(self.read("out.run/ranks").split()), sorted(2 * [str(i) for i in range(1, ranks)]))
        self.assertEqual([name for name in os.listdir(self.folder) if name.endswith(".starts")], [])

    def test_srun(self):
        self.interrupted("quantize.sbatch", 2)

    def test_mpirun(self):
        self.interrupted("quantize.sbatch", 2, QPIPE_LAUNCHER="mpirun --bind-to none")

    def test_two_nodes(self):
        self.interrupted("quantize-multinode.sbatch", 4, options=["--nodes=2"])

    def test_time_limit(self):
        """Slurm's own signal. It looks at the clock every half minute."""
        job = self.submit("quantize.sbatch", "run.toml", options=["--time=1", "--signal=B:USR1@50"], LAYERS="50", LAYER_SECONDS="1")
        self.until(lambda: "requeued" in self.logs(), "requeueing")
        self.assertLess(int(self.job(job)["Restarts"]), 2)
        self.assertTrue(glob.glob(self.path("out.run/layer-*.json")))
        CLUSTER.output("scancel", job)
        self.assertEqual(self.end(job)[0], "CANCELLED")
        self.assertFalse(os.path.exists(self.path("out/model")))  # the time was too short for all layers

    def test_failure_ends_the_job(self):
        self.expect(self.submit("quantize.sbatch", "run.toml", CODE="65"), "FAILED", 65, 0)

    def test_wrong_configuration(self):
        self.config("")
        self.expect(self.submit("quantize.sbatch", "run.toml"), "FAILED", 78, 0)
        self.assertNotIn("slurm: job", self.logs())

    def test_no_program(self):
        self.expect(self.submit("quantize.sbatch", "run.toml", QPIPE="/nowhere/qpipe"), "FAILED", 66, 0)
        self.assertIn("slurm: error: no program /nowhere/qpipe", self.logs())

    def test_stops_after_two_restarts_without_a_commit(self):
        self.expect(self.submit("quantize.sbatch", "run.toml", LEAVE="before"), "FAILED", 1, 2)
        self.assertIn("slurm: error: two restarts without a new commit in out.run", self.logs())

    def test_goes_on_while_there_are_commits(self):
        self.expect(self.submit("quantize.sbatch", "run.toml", LEAVE="layer", LAYERS="4"), "COMPLETED", 0, 4)
        self.expect_model(4)

    def test_cancelled_stays_cancelled(self):
        job = self.submit("quantize.sbatch", "run.toml", LAYERS="100", LAYER_SECONDS="0.5")
        self.commit()
        CLUSTER.output("scancel", job)
        self.assertEqual(self.end(job)[::2], ("CANCELLED", 0))
        time.sleep(8)  # longer than a requeued job waits
        self.assertEqual(self.end(job)[::2], ("CANCELLED", 0))

    def test_array(self):
        with open(self.path("list"), "w") as f:
            f.write("".join(f"run.toml --set output.path=out{i}\n" for i in (1, 2)))
        job = self.submit("quantize-array.sbatch", "list", options=["--array=1-2"], LAYERS="6", LAYER_SECONDS="0.5")
        self.commit(run="out2.run")
        self.interrupt(f"{job}_2")  # has the array's own id: requeueing that would restart both
        self.expect(f"{job}_1", "COMPLETED", 0, 0)
        self.expect(f"{job}_2", "COMPLETED", 0, 1)
        self.expect_model(6, "out1")
        self.expect_model(6, "out2")

    def test_array_beyond_the_list(self):
        with open(self.path("list"), "w") as f:
            f.write("run.toml\n")
        self.expect(self.submit("quantize-array.sbatch", "list", options=["--array=2"]) + "_2", "FAILED", 64, 0)
        self.assertIn("list has no line 2", self.logs())


@unittest.skipUnless(QPIPE, "QPIPE names no program")
class Qpipe(Jobs):
    SAMPLES, SEQLEN = 2048, 64  # a second or two for each of the three layers

    def setUp(self):
        super().setUp()
        draw = random.Random(0)
        tokens = struct.pack(f"<{self.SAMPLES * self.SEQLEN}i", *(draw.randrange(320) for _ in range(self.SAMPLES * self.SEQLEN)))
        header = json.dumps({"input_ids": {"dtype": "I32", "shape": [self.SAMPLES, self.SEQLEN], "data_offsets": [0, len(tokens)]}}).encode()
        with open(self.path("calibration.safetensors"), "wb") as f:
            f.write(struct.pack("<Q", len(header)) + header + tokens)
        self.config(f'[model]\npath = "{ROOT}/tests/golden/models/llama-mha"\n[calibration]\ndata = "calibration.safetensors"\n'
                    f'samples = {self.SAMPLES}\nseqlen = {self.SEQLEN}\n[quantize]\ngroup_size = 32\n'
                    '[parallel]\nbackend = "cpu"\n[output]\npath = "out"\n')

    def quantize(self, output, **options):
        return self.submit("quantize.sbatch", "run.toml", "--set", f"output.path={output}", QPIPE=QPIPE, **options)

    def expect_same(self, first, second):
        names = sorted(os.listdir(self.path(first)))
        self.assertIn("model.safetensors", names)
        self.assertEqual(names, sorted(os.listdir(self.path(second))))
        _, different, unreadable = filecmp.cmpfiles(self.path(first), self.path(second), names, shallow=False)
        self.assertEqual((different, unreadable), ([], []))

    def test_same_bytes_from_srun_and_mpirun(self):
        jobs = [self.quantize("a"), self.quantize("b", QPIPE_LAUNCHER="mpirun --bind-to none")]
        for job in jobs:
            self.assertEqual(self.end(job), ("COMPLETED", 0, 0), self.logs())
        self.assertEqual(self.logs().count(", 2 ranks on CPU"), 2)
        self.expect_same("a", "b")

    def test_interrupted_run_gives_the_same_bytes(self):
        for name, launcher in (("srun", {}), ("mpirun", {"QPIPE_LAUNCHER": "mpirun --bind-to none"})):
            with self.subTest(name):
                job = self.quantize(name, **launcher)
                self.commit(run=f"{name}.run")
                self.interrupt(job)
                self.assertEqual(self.end(job), ("COMPLETED", 0, 1), self.logs())
        whole = self.quantize("whole")
        self.assertEqual(self.end(whole), ("COMPLETED", 0, 0), self.logs())
        self.expect_same("whole", "srun")
        self.expect_same("whole", "mpirun")


def tests_in(suite):
    return [one for part in suite for one in tests_in(part)] if isinstance(suite, unittest.TestSuite) else [suite]


def run(test):
    """Whether it is right."""
    begin, result = time.monotonic(), unittest.TestResult()
    test.run(result)
    faults = "".join(text for _, text in result.failures + result.errors)
    outcome = "FAILED" if faults else "skipped" if result.skipped else "ok"
    print(f"{test.id()}: {outcome}, {time.monotonic() - begin:.0f} s\n{faults}", end="", flush=True)
    return not faults


def main(names):
    loader = unittest.TestLoader()
    tests = tests_in(loader.loadTestsFromNames(names, sys.modules[__name__]) if names else loader.loadTestsFromModule(sys.modules[__name__]))
    tests.sort(key=lambda test: "time_limit" not in test.id())  # the longest
    try:
        setUpModule()
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            right = list(pool.map(run, tests))
    finally:
        unittest.doModuleCleanups()
    print(f"{len(right)} tests, {right.count(False)} failures")
    return 0 if right and all(right) else 1


if __name__ == "__main__":
    if reason := slurm.missing():
        print(f"skipped: {reason}")
        sys.exit(77)
    sys.exit(main(sys.argv[1:]))
