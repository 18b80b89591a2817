#!/usr/bin/env python3
"""What runs do to files that are theirs, and to those that are not: files_test.py QPIPE."""
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True
from tiny_model import write_model, write_safetensors, write_tokens

QPIPE = ""
NOBODY = 65534


def environment(**more):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "PMI_", "SLURM_"))}
    return {**env, "OMP_NUM_THREADS": "1", **more}


class Files(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.path = self.folder.name
        self.before = os.getcwd()
        os.chdir(self.path)
        write_model("model")
        write_tokens("tokens.safetensors")
        self.configure()

    def tearDown(self):
        os.chdir(self.before)
        self.folder.cleanup()

    def configure(self, out="out", data="tokens.safetensors"):
        with open("run.toml", "w") as f:
            f.write(f'[model]\npath = "model"\n[calibration]\ndata = "{data}"\nsamples = 8\nseqlen = 16\n[quantize]\ngroup_size = 32\n'
                    f'[output]\npath = "{out}"\n[parallel]\nbackend = "cpu"\n[run]\nprogress = "plain"\n')

    def run_qpipe(self, *arguments, sets=(), user=None, before=None, **env):
        def prepare():
            if before:
                before()
            if user:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
        if before:  # a build that counts its lines would leave half of the counts, where files are limited
            env["LLVM_PROFILE_FILE"] = "/dev/null"
        words = [QPIPE, *(arguments or ["run.toml"])]
        for one in sets:
            words += ["--set", one]
        result = subprocess.run(words, env=environment(**env), preexec_fn=prepare, capture_output=True, timeout=60)
        result.out, result.err = result.stdout.decode(errors="replace"), result.stderr.decode(errors="replace")
        return result

    def expect_done(self, result):
        self.assertEqual(result.returncode, 0, result.err)
        return result

    def expect_fault(self, result, code, *parts):
        self.assertEqual(result.returncode, code, result.err)
        lines = [line for line in result.err.splitlines() if "qpipe: error" in line]
        self.assertEqual(len(lines), 1, result.err)
        for part in parts:
            self.assertIn(part, lines[0])
        self.assertNotIn("[1/2]", result.err)  # before the first layer

    def listed(self, folder="out"):
        return set(os.listdir(folder))

    def digest(self, folder="out"):
        hashes = {}
        for name in os.listdir(folder):
            with open(os.path.join(folder, name), "rb") as f:
                hashes[name] = hashlib.sha256(f.read()).hexdigest()
        return hashes

    def both(self, code, *parts, **more):
        """The dry run and the run find the same fault, and nothing is left of either."""
        before = {name: self.listed(name) for name in os.listdir(".") if os.path.isdir(name)}
        for extra in (["--dry-run"], []):
            self.expect_fault(self.run_qpipe("run.toml", *extra, **more), code, *parts)
        self.assertEqual({name: self.listed(name) for name in os.listdir(".") if os.path.isdir(name)}, before)

    def test_a_run_leaves_its_output_and_its_report(self):
        self.expect_done(self.run_qpipe())
        self.assertEqual(self.listed(), {"config.json", "model.safetensors", "README.md", "quantize_config.json", "qpipe_files.json",
                                         "tokenizer_config.json", "generation_config.json"})
        self.assertEqual(self.listed("."), {"model", "tokens.safetensors", "run.toml", "out", "out.report.json"})
        with open("out/qpipe_files.json") as f:
            self.assertEqual(set(json.load(f)["files"]), self.listed() - {"qpipe_files.json"})

    def test_overwrite_removes_what_a_run_wrote_alone(self):
        self.expect_done(self.run_qpipe(sets=["output.max_shard_size=20KB"]))
        others = {"mine.gguf", "tokens.h5", "notes.bin", "old.tmp"}
        for name in others:
            with open("out/" + name, "w") as f:
                f.write("days of work")
        self.both(73, "out: is not empty", "output.overwrite = true")
        self.expect_done(self.run_qpipe(sets=["output.overwrite=true"]))
        self.assertTrue(others < self.listed())
        self.assertIn("model.safetensors", self.listed())
        self.assertFalse(any("-of-" in name for name in self.listed()), self.listed())

    def test_calibration_data_in_the_output_folder_survive(self):
        os.mkdir("out")
        shutil.copy("tokens.safetensors", "out/tokens.safetensors")
        self.configure(data="out/tokens.safetensors")
        before = self.digest()
        self.both(73, "out/tokens.safetensors", "loaders would take it", sets=["output.overwrite=true"])
        self.assertEqual(self.digest(), before)

    def test_foreign_weights_are_refused(self):
        os.mkdir("out")
        write_safetensors("out/model.safetensors", {})
        before = self.digest()
        self.both(73, "out/model.safetensors", "was not written by qpipe", sets=["output.overwrite=true"])
        self.assertEqual(self.digest(), before)

    def test_a_checkpoint_in_place_of_an_unfinished_output_stays(self):
        stopped = self.run_qpipe(before=self.limit_files(9_000))
        self.assertEqual(stopped.returncode, 74, stopped.err)
        shutil.rmtree("out")
        os.mkdir("out")
        write_safetensors("out/model.safetensors", {})
        before = self.digest()
        self.expect_fault(self.run_qpipe(), 73, "out/model.safetensors", "was not written by this run")
        self.assertEqual(self.digest(), before)

    @staticmethod
    def limit_files(limit):
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    def test_the_limit_of_a_file_is_a_fault(self):
        self.expect_fault(self.run_qpipe(before=self.limit_files(9_000)), 74, "out/model.safetensors", "File too large", "ulimit -f")
        self.expect_done(self.run_qpipe())
        verify = self.run_qpipe("verify", "out", "--json", "report.json", before=self.limit_files(10))
        self.assertEqual(verify.returncode, 74, verify.err)
        self.assertFalse(os.path.exists("report.json"))

    @staticmethod
    def limit_addresses(mebibytes):
        return lambda: resource.setrlimit(resource.RLIMIT_AS, (mebibytes << 20, mebibytes << 20))

    def least_addresses(self):
        """MiB with which the program starts, about: CUDA's libraries take one thousand and more."""
        for mebibytes in range(256, 8192, 128):
            try:
                started = subprocess.run([QPIPE, "--version"], env=environment(OPENBLAS_NUM_THREADS="1"), capture_output=True, timeout=10,
                                         preexec_fn=self.limit_addresses(mebibytes))
            except subprocess.TimeoutExpired:  # OpenBLAS waits for memory that does not come
                continue
            if started.returncode == 0:
                return mebibytes
        self.skipTest("a sanitizer's shadow takes terabytes of addresses")

    def test_the_limit_of_address_space_is_a_fault(self):
        limit = self.limit_addresses(self.least_addresses() + 384)
        self.expect_fault(self.run_qpipe(before=limit, OMP_NUM_THREADS="2"), 78, "ulimit -v", "GiB", "2 thread(s)")

    def test_read_only_sources(self):
        """Copies are new files: not the sources' rights, but what the umask leaves."""
        for name in os.listdir("model"):
            os.chmod("model/" + name, 0o444)
        for sets in ((), ["output.overwrite=true"]):
            self.expect_done(self.run_qpipe(sets=sets, before=lambda: os.umask(0o027)))
            for name in self.listed():
                self.assertEqual(os.stat("out/" + name).st_mode & 0o777, 0o640, name)

    @unittest.skipIf(os.geteuid() != 0, "only root can become another user")
    def test_rights_are_looked_at_before_the_first_layer(self):
        os.chmod(self.path, 0o777)
        with open("model/notes.txt", "w") as f:
            f.write("x")
        os.chmod("model/notes.txt", 0o600)
        done = self.expect_done(self.run_qpipe(user=NOBODY, HOME=self.path))
        self.assertIn("model/notes.txt", done.err)
        self.assertNotIn("notes.txt", self.listed())
        shutil.rmtree("out")
        os.mkdir("closed", 0o755)
        closed = dict(user=NOBODY, HOME=self.path)
        self.both(73, "closed: is not writable", "output.path", sets=["output.path=closed/a/b"], **closed)
        self.both(73, "closed: is not writable", "run.report", sets=["run.report=closed/report.json"], **closed)
        self.both(73, "closed: is not writable", "run.folder", sets=["run.folder=closed/run"], **closed)
        os.chmod("model/tokenizer_config.json", 0o600)
        self.both(66, "model/tokenizer_config.json", "Permission denied", **closed)

    def test_paths_as_people_write_them(self):
        os.mkdir("home")
        for out in ("~/out", "~//a/out/.", "~/b/out/"):
            self.configure(out=out)
            self.expect_done(self.run_qpipe(HOME=os.path.join(self.path, "home")))
        for name in ("out", "a/out", "b/out"):
            self.assertTrue(os.path.exists(f"home/{name}/model.safetensors"), name)
            self.assertTrue(os.path.exists(f"home/{name}.report.json"), name)
        self.assertFalse(os.path.exists("~"))
        self.expect_fault(self.run_qpipe(sets=["output.path=~bob/out"]), 78, "output.path", "~bob/out")
        self.expect_done(self.run_qpipe("verify", "~/out/.", "--json=~/verify.json", HOME=os.path.join(self.path, "home")))
        self.assertTrue(os.path.exists("home/verify.json"))
        self.both(78, "run.folder lies in output.path", sets=["output.path=out", "run.folder=out/run"])

    def test_a_folder_whose_name_is_not_utf8(self):
        name = b"caf\xe9"
        os.mkdir(name)
        for one in ("model", "tokens.safetensors", "run.toml"):
            shutil.move(one.encode(), os.path.join(name, one.encode()))
        os.chdir(name)
        with open(b"model/caf\xe9.txt", "w") as f:
            f.write("x")
        self.expect_done(self.run_qpipe())
        self.expect_done(self.run_qpipe(sets=["output.overwrite=true"]))
        self.expect_done(self.run_qpipe("verify", self.path.encode() + b"/caf\xe9/out", "--json", "v.json"))
        self.expect_done(self.run_qpipe("families", self.path.encode() + b"/caf\xe9/model", "--json"))
        os.chdir(self.path)

    def test_fifos_and_folders_in_the_model(self):
        """None is waited for: run_qpipe ends after a minute."""
        os.mkfifo("model/README.md")
        os.mkfifo("model/vocab.json")
        os.mkdir("model/merges.txt")
        self.expect_done(self.run_qpipe())
        self.assertFalse({"vocab.json", "merges.txt"} & self.listed())
        for name in ("config.json", "model.safetensors"):
            os.rename("model/" + name, "kept")
            os.mkfifo("model/" + name)
            self.both(66, name, "is a FIFO", sets=["output.path=other"])
            os.unlink("model/" + name)
            os.rename("kept", "model/" + name)

    def test_fifos_in_the_output_and_beside_it(self):
        os.mkdir("out")
        for name in ("config.json", "model.safetensors", "model.safetensors.tmp", "qpipe_files.json"):
            os.mkfifo("out/" + name)
            self.both(73, "out/" + name, sets=["output.overwrite=true"])
            os.unlink("out/" + name)
        os.mkfifo("out/.qpipe.lock")
        self.expect_fault(self.run_qpipe(), 73, "is not the lock of a run")
        os.unlink("out/.qpipe.lock")
        os.mkdir("out.report.json")
        self.both(73, "out.report.json", "is a folder")

    def test_links_out_of_the_model(self):
        with open("secret", "w") as f:
            f.write("SECRET")
        os.symlink(os.path.join(self.path, "secret"), "model/notes.json")
        self.expect_done(self.run_qpipe())
        self.assertNotIn("notes.json", self.listed())

    def test_the_card_quotes_what_is_not_ours(self):
        for name in ("a/b\nlicense: evil", "a/b\n---\n\n# evil", "a/b: [evil", "../../etc", None, 3):
            shutil.rmtree("model")
            shutil.rmtree("out", ignore_errors=True)
            write_model("model", _name_or_path=name)
            with open("model/README.md", "w") as f:
                f.write("---\nlicense: x\\ny: [z\n---\n")
            self.expect_done(self.run_qpipe())
            with open("out/README.md") as f:
                card = f.read()
            self.assertNotIn("base_model", card)
            self.assertIn("# model in 4-bit", card)
            self.assertNotIn("license", card)
            self.assertNotIn("evil", card)
        write_model("mod: `|#")
        self.expect_done(self.run_qpipe(sets=["output.path=other", "model.path=mod: `|#"]))
        with open("other/README.md") as f:
            card = f.read()
        self.assertNotIn("base_model", card)
        self.assertIn("# mod: \\`\\|\\# in 4-bit", card)

    def test_no_absolute_path_is_published(self):
        shutil.rmtree("model")
        write_model("model", _name_or_path=self.path + "/model")
        data = self.path + "/tokens.safetensors"
        self.expect_done(self.run_qpipe(sets=["calibration.data=" + data, f"model.path={self.path}/model", f"output.path={self.path}/out",
                                              "evaluate.data=" + data, "evaluate.seqlen=16"]))
        for name in [*("out/" + name for name in self.listed()), "out.report.json"]:
            with open(name, "rb") as f:
                self.assertNotIn(self.path.encode(), f.read(), name)

    def test_results_go_where_the_user_says(self):
        self.expect_done(self.run_qpipe())
        done = self.expect_done(self.run_qpipe("verify", "out", "--json", "/dev/stdout"))
        report, end = json.JSONDecoder().raw_decode(done.out)  # whole; the text follows
        self.assertEqual(report["faults"], [])
        self.assertGreater(len(done.out), end + 10)
        os.mkfifo("fifo")
        reader = subprocess.Popen(["cat", "fifo"], stdout=subprocess.PIPE)
        self.expect_done(self.run_qpipe("verify", "out", "--json", "fifo"))
        json.loads(reader.communicate(timeout=20)[0])
        self.expect_fault(self.run_qpipe("verify", "out", "--json", "fifo"), 73, "fifo", "nobody reads")
        logits = ["eval", "--model", "model", "--data", "tokens.safetensors", "--seqlen", "16", "--logits"]
        self.expect_fault(self.run_qpipe(*logits, "fifo"), 73, "fifo", "give the name of a file")
        self.expect_done(self.run_qpipe(*logits, "logits.safetensors"))
        with self.subTest("a device of its own"):
            try:
                os.mknod("full", 0o666 | 0o020000, os.makedev(1, 7))
                open("full", "w").close()
            except OSError as error:
                self.skipTest(f"mknod is not permitted here: {error}")
            self.expect_fault(self.run_qpipe("verify", "out", "--json", "full"), 74, "full", "No space left")
            self.expect_fault(self.run_qpipe(*logits, "full"), 73, "full")
            self.expect_done(self.run_qpipe(sets=["output.path=other", "run.report=/dev/null"]))
            self.assertEqual(os.stat("full").st_rdev, os.makedev(1, 7))
            self.assertEqual(os.stat("/dev/null").st_rdev, os.makedev(1, 3))

    def test_two_runs_of_one_output(self):
        """The first one is stopped while it holds the locks."""
        shutil.rmtree("model")
        write_model("model", layers=8)
        first = subprocess.Popen([QPIPE, "run.toml"], env=environment(), stderr=subprocess.PIPE, text=True)
        for line in first.stderr:
            if line.startswith("[1/"):
                first.send_signal(signal.SIGSTOP)
                break
        try:
            for sets in ([], ["run.folder=elsewhere"], ["run.folder=elsewhere", "output.path=./out/."]):
                self.expect_fault(self.run_qpipe(sets=sets), 73, "another run works here")
            self.assertFalse(os.path.exists("elsewhere"))
        finally:
            first.send_signal(signal.SIGCONT)
            first.communicate(timeout=60)
        self.assertEqual(first.returncode, 0)
        self.assertNotIn(".qpipe.lock", self.listed())


if __name__ == "__main__":
    QPIPE = os.path.abspath(sys.argv.pop(1))
    unittest.main()
