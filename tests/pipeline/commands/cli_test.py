#!/usr/bin/env python3
"""The command line from outside: cli_test.py QPIPE [MPIEXEC]. Exit codes, one line on stderr, in time, from one rank."""
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../python"))
from processes import environment

QPIPE = ""
MPIEXEC = ""


def run(*arguments, ranks=0, env=()):
    command = [QPIPE, *arguments]
    if ranks:
        command = [MPIEXEC, "--oversubscribe", "--bind-to", "none", "-np", str(ranks), *command]
    return subprocess.run(command, env=dict(environment(), **dict(env)), capture_output=True, text=True, timeout=120)


class CommandLine(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.path = self.folder.name
        os.mkdir(os.path.join(self.path, "model"))
        open(os.path.join(self.path, "calib.h5"), "w").close()

    def tearDown(self):
        self.folder.cleanup()

    def write(self, quantize="bits = 4\n", model="model"):
        """[quantize] is line 7."""
        name = os.path.join(self.path, "run.toml")
        with open(name, "w") as f:
            f.write(f'[model]\npath = "{self.path}/{model}"\n[calibration]\ndata = "{self.path}/calib.h5"\n'
                    f'[output]\npath = "{self.path}/out"\n[quantize]\n{quantize}')
        return name

    def expect_fault(self, result, code, *parts):
        self.assertEqual(result.returncode, code, result.stderr)
        lines = result.stderr.splitlines()
        self.assertEqual(len(lines), 1, result.stderr)
        self.assertTrue(lines[0].startswith("qpipe: error: "), lines[0])
        for part in parts:
            self.assertIn(part, lines[0])
        self.assertEqual(result.stdout, "")
        self.assertFalse(os.path.exists(os.path.join(self.path, "out")))

    def test_help_and_version(self):
        version = run("--version")
        self.assertEqual(version.returncode, 0)
        self.assertRegex(version.stdout, r"^qpipe \d+\.\d+\.\d+ \(backends: cpu(, cuda)?\)\n$")
        for flag in ("--help", "-h"):
            text = run(flag)
            self.assertEqual((text.returncode, text.stderr), (0, ""))
            for section in ("model", "calibration", "quantize", "parallel", "memory", "output", "run", "evaluate"):
                self.assertIn(f"\n[{section}]\n", text.stdout)
            self.assertRegex(text.stdout, r"\n  group_size +integer +128 +inputs +\S")
            self.assertRegex(text.stdout, r"\n  timeout +integer +600 +s +\S")
        for command, option in (("eval", "--logits"), ("tokenize", "--out")):
            text = run(command, "--help")
            self.assertEqual((text.returncode, text.stderr), (0, ""))
            self.assertIn(option, text.stdout)
            self.assertIn("2048", text.stdout)

    def write_model(self, **config):
        """A folder before the download: config.json of Llama-2-70B."""
        values = dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="silu", rms_norm_eps=1e-5, tie_word_embeddings=False, hidden_size=8192,
                      intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8, vocab_size=32000,
                      max_position_embeddings=4096, torch_dtype="bfloat16")
        values.update(config)
        with open(os.path.join(self.path, "model", "config.json"), "w") as f:
            json.dump(values, f)

    def test_plan(self):
        text = run("plan", "--help")
        self.assertEqual((text.returncode, text.stderr), (0, ""))
        self.assertIn("--gpu-memory", text.stdout)
        config = self.write()
        self.expect_fault(run("plan", config), 66, "model", "is empty")
        self.write_model()
        answer = os.path.join(self.path, "plan.json")
        for method in ("gptq", "awq"):
            plan = run("plan", config, "--gpu-memory", "22GiB", "--json", answer, "--set", "quantize.method=" + method)
            self.assertEqual((plan.returncode, plan.stderr), (0, ""))
            for part in ("has no safetensors yet", "BF16", "step inputs", "64-bit sum of the Hessian",
                         "places: step inputs on the host", "forward", "Largest memory.micro_batch", "fits: "):
                self.assertIn(part, plan.stdout)
            with open(answer) as f:
                figures = json.load(f)
            self.assertTrue(figures["fits"])
            self.assertLessEqual(figures["peak_bytes"]["gpu"], 22 * 2**30)
            self.assertEqual(figures["places"]["input"], "host")
            peak = next(phase for phase in figures["phases"] if phase["name"] == figures["peak_phase"])
            self.assertEqual(sum(use["gpu"] for use in peak["uses"]), figures["peak_bytes"]["gpu"])
        undecided = run("plan", config)
        self.assertEqual((undecided.returncode, undecided.stderr), (0, ""))
        self.assertRegex(undecided.stdout, r"needs \d+\.\d\d GiB of GPU memory on each rank, .* give --gpu-memory")
        faster = run("plan", config, "--ranks", "8", "--ranks-per-node", "4", "--rate", "network=50", "--tflops", "312")
        self.assertIn("8 rank(s): 1 team(s) of 8, 2 machine(s)", faster.stdout)

        refused = run("plan", config, "--gpu-memory", "1GiB", "--json", answer)
        self.assertEqual(refused.returncode, 78)
        self.assertRegex(refused.stderr, r"^qpipe: error: the run needs \d+\.\d\d GiB of GPU memory .* memory.gpu is 1.00 GiB: .*\n$")
        with open(answer) as f:
            self.assertFalse(json.load(f)["fits"])
        self.assertEqual(run("plan", config, "--set", "memory.gpu=1GiB").returncode, 78)
        self.expect_fault(run("plan", config, "--gpu-memory", "much"), 78, "much", "500MB")
        self.expect_fault(run("plan", config, "--rate", "speed=3"), 64, "speed=3", "network=120")
        self.expect_fault(run("plan", config, "--ranks", "3", "--teams", "2"), 78, "teams = 2 does not divide the 3 ranks")
        self.expect_fault(run("plan", config, "--set", "memory.gpu=much"), 78, "memory.gpu", "auto, or a size")

    def test_verify(self):
        text = run("verify", "--help")
        self.assertEqual((text.returncode, text.stderr), (0, ""))
        self.assertIn("--original", text.stdout)
        self.expect_fault(run("verify"), 64, "folder")
        self.expect_fault(run("verify", os.path.join(self.path, "absent")), 66, "absent", "no such folder")
        self.expect_fault(run("verify", self.path, "--original", os.path.join(self.path, "absent")), 66, "--original")
        empty = run("verify", os.path.join(self.path, "model"))
        self.assertEqual(empty.returncode, 65)
        self.assertEqual(len(empty.stderr.splitlines()), 1)
        self.assertIn("model: is empty", empty.stderr)
        self.assertTrue(empty.stdout.endswith("1 fault(s)\n"), empty.stdout)

    def test_compare(self):
        text = run("compare", "--help")
        self.assertEqual((text.returncode, text.stderr), (0, ""))
        self.assertIn("--methods", text.stdout)
        self.expect_fault(run("compare", self.write()), 64, "--methods is required")
        self.expect_fault(run("compare", "--methods", "rtn"), 64, "config is required")
        self.expect_fault(run("compare", self.write(), "--methods", "rtn,gtpq"), 64, "unknown method gtpq", "did you mean gptq?")
        self.expect_fault(run("compare", self.write(), "--methods", "rtn:mze=2"), 64, "unknown setting mze", "did you mean mse?")
        self.expect_fault(run("compare", self.write(), "--methods", "rtn"), 78, "run.toml: evaluate.data is not set", "[evaluate]")
        self.expect_fault(run("--dry-run", "compare", self.write(), "--methods", "rtn"), 64, "behind `compare`")

    def test_usage(self):
        self.expect_fault(run(), 64, "configuration file", "qpipe --help")
        self.expect_fault(run("--st", "a=b"), 64, "--st")
        self.expect_fault(run("a.toml", "b.toml"), 64, "b.toml")
        self.expect_fault(run(self.write(), "--set"), 64, "--set")
        self.expect_fault(run(self.write(), "--set", "quantize.bits"), 64, "section.key=value")
        self.expect_fault(run("eval", "--model", self.path), 64, "--data is required")
        self.expect_fault(run("eval", "--model", self.path, "--data", "x", "--backend", "gpu"), 64, "--backend", "cpu")
        self.expect_fault(run("eval", "--model", self.path, "--data", "x", "--seqlen", "1"), 64, "--seqlen")
        self.expect_fault(run("eval", "--model", self.path, "--data", "x", "--samples", "many"), 64, "--samples")
        self.expect_fault(run("tokenize", "--model", self.path, "--data", self.write(), "--out", "x.txt"), 64, "--out", ".h5")
        self.expect_fault(run("tokenize", "--model", self.path, "--data", "x", "--out", "x.h5", "--mode", "random"), 64, "--mode")

    def test_missing_inputs(self):
        missing = os.path.join(self.path, "missing")
        self.expect_fault(run(missing + ".toml"), 66, missing + ".toml: no such file")
        self.expect_fault(run(self.path), 66, "is a folder")
        self.expect_fault(run(self.write(model="modle")), 66, "run.toml:2: model.path", "no such folder")
        self.expect_fault(run("eval", "--model", missing, "--data", self.write()), 66, "--model", "no such folder")
        self.expect_fault(run("eval", "--model", self.path, "--data", missing), 66, "--data", "no such file")
        self.expect_fault(run("tokenize", "--model", missing, "--data", self.write(), "--out", "x.h5"), 66, "--model", "no such folder")

    def test_configuration_faults(self):
        self.expect_fault(run(self.write("bits = 5\n")), 78, "run.toml:8: quantize.bits = 5", "one of 2, 3, 4, 8")
        self.expect_fault(run(self.write("bits = \"4\"\n")), 78, "run.toml:8: quantize.bits", "expected an integer")
        self.expect_fault(run(self.write("\ngroup_size = 48\n")), 78, "run.toml:9: quantize.group_size = 48")
        self.expect_fault(run(self.write("[quantise]\nbits = 4\n")), 78, "run.toml:8: unknown section [quantise]", "[quantize]?")
        self.expect_fault(run(self.write("bits 4\n")), 78, "run.toml:8: ")
        self.expect_fault(run(self.write(), "--set", "quantize.bit=4"), 78, "unknown key quantize.bit", "quantize.bits?")
        self.expect_fault(run(self.write(), "--set", f"output.path={self.path}/model/"), 78, "output.path", "model.path")

    def test_each_set_takes_one_value(self):
        # A file after --set is the configuration, and the last --set of a key wins.
        config = self.write()
        self.expect_fault(run("--set", "quantize.bits=3", config, "--set", "quantize.bits=8", "--set", "quantize.bits=7"), 78,
                          "quantize.bits = 7")
        self.expect_fault(run("--set=quantize.group_size=-2", config), 78, "quantize.group_size = -2")

    def test_within_a_second(self):
        config = self.write("bits = 5\n")
        seconds = []
        for _ in range(3):  # the machine may be busy with other tests
            start = time.monotonic()
            run(config)
            seconds.append(time.monotonic() - start)
        self.assertLess(min(seconds), 1.0)

    def test_a_folder_without_a_model(self):
        result = run(self.write(), "--set", "parallel.backend=cpu")
        self.assertIn(result.returncode, (65, 66))
        self.expect_fault(result, result.returncode, "model")
        result = run(self.write(), "--set", "parallel.backend=cpu", "--dry-run")
        self.assertIn(result.returncode, (65, 66))
        self.assertIn('path = "' + self.path + '/model"', result.stdout)
        self.assertIn("\n[quantize]\nmethod = \"gptq\"\nbits = 4\n", result.stdout)
        self.assertFalse(os.path.exists(os.path.join(self.path, "out")))

    def test_variables_that_a_shell_kept_silence_nobody(self):
        # Without an mpirun around. Singletons of Open MPI do not read these.
        config = self.write("bits = 5\n")
        for variable in ("PMI_RANK", "SLURM_PROCID"):
            for rank in "01":
                result = run(config, env=[(variable, rank)])
                self.assertEqual((result.returncode, len(result.stderr.splitlines())), (78, 1), variable)
                result = run("--version", env=[(variable, rank)])
                self.assertEqual((result.returncode, len(result.stdout.splitlines())), (0, 1), variable)

    def test_work_of_one_process_is_done_below_a_launcher(self):
        # mpirun -np 2 bash -c 'qpipe ...': each shell is on its own.
        if not MPIEXEC:
            self.skipTest("no mpiexec")
        command = [MPIEXEC, "--oversubscribe", "--bind-to", "none", "-np", "2", "bash", "-c", f"{QPIPE} --version; true"]
        result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
        self.assertEqual(len(result.stdout.splitlines()), 2, result.stderr)

    def test_a_terminal_that_is_gone_ends_nothing(self):
        config = self.write("bits = 5\n")
        for stderr in (open("/dev/full", "w"), None):
            process = subprocess.run([QPIPE, config], env=environment(), stdout=subprocess.DEVNULL, stderr=stderr, timeout=60,
                                     preexec_fn=None if stderr else lambda: os.close(2))
            self.assertEqual(process.returncode, 78)

    def test_a_result_that_cannot_be_printed_is_74(self):
        for stdout in (open("/dev/full", "w"), None):
            process = subprocess.run([QPIPE, "--help"], env=environment(), stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60,
                                     preexec_fn=None if stdout else lambda: os.close(1))
            self.assertEqual(process.returncode, 74)
            self.assertIn("qpipe: error: stdout", process.stderr)
            self.assertEqual(len(process.stderr.splitlines()), 1)
        # A reader that goes away: `qpipe --help | head -1`.
        read, write = os.pipe()
        os.close(read)
        process = subprocess.run([QPIPE, "--help"], env=environment(), stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
        self.assertEqual(process.returncode, 74)
        self.assertEqual(len(process.stderr.splitlines()), 1)

    def test_signals_at_the_start(self):
        # Work that has nothing to go on with ends by them, also when they come while the program is being loaded.
        for delay in (0.02, 0.05):
            process = subprocess.Popen([QPIPE, "plan", self.write("", model="nowhere")], env=environment(), stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL)
            time.sleep(delay)
            process.send_signal(signal.SIGUSR1)
            self.assertIn(process.wait(timeout=60), (-signal.SIGUSR1, 66))

    def test_a_rank_that_waits_in_mpi_init_is_spoken_of(self):
        if not MPIEXEC:
            self.skipTest("no mpiexec")
        config = self.write()
        # The second rank never calls MPI_Init.
        command = [MPIEXEC, "--oversubscribe", "--bind-to", "none", "-np", "1", QPIPE, config, "--set", "parallel.backend=cpu", "--set",
                   "parallel.timeout=3", ":", "-np", "1", "sleep", "60"]
        begin = time.monotonic()
        result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
        self.assertLess(time.monotonic() - begin, 60)
        self.assertEqual(result.returncode, 71, result.stderr)
        self.assertIn("in MPI_Init for the other ranks", result.stderr)
        self.assertIn("MPI_Init was not finished after 30 s", result.stderr)

    def ours(self, result):
        return [line for line in result.stderr.splitlines() if "qpipe: error" in line]

    def test_ranks_tell_a_common_fault_once(self):
        if not MPIEXEC:
            self.skipTest("no mpiexec")
        for _ in range(3):  # the message must not get lost when another rank is faster
            result = run(self.write("bits = 5\n"), ranks=3)
            self.assertEqual(result.returncode, 78, result.stderr)
            self.assertEqual(len(self.ours(result)), 1, result.stderr)
            self.assertIn("quantize.bits = 5", self.ours(result)[0])
        result = run(self.write(), "--set", "parallel.backend=cpu", ranks=3)  # found after MPI_Init, in the model's folder
        self.assertIn(result.returncode, (65, 66), result.stderr)
        self.assertEqual(len(self.ours(result)), 1, result.stderr)
        result = run("--version", ranks=3)
        self.assertEqual((result.returncode, len(result.stdout.splitlines())), (0, 1))
        self.assertNotIn("MPI_ABORT", result.stderr)
        result = run("tokenize", "--model", self.path, "--data", self.write(), "--out", "x.h5", ranks=2)  # one rank's work
        self.assertIn(result.returncode, (65, 66), result.stderr)
        self.assertEqual(len(self.ours(result)), 1, result.stderr)


if __name__ == "__main__":
    QPIPE = os.path.abspath(sys.argv.pop(1))
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        MPIEXEC = sys.argv.pop(1)
    unittest.main()
