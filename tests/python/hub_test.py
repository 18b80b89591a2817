#!/usr/bin/env python3
"""qpipe with the Hugging Face hub, which is here tests/python/hub_server.py: hub_test.py QPIPE MPIEXEC. Models and data by name, fetched once and taken up
where they broke off, push, and what goes wrong with either: one line that says what to do. Without a Python that has huggingface_hub: 77."""
import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

from hub_server import TOKEN, Hub, Repository
from processes import environment
from tiny_model import make_model, make_tokens

QPIPE, MPIEXEC = "", ""
WORDS = [f"word{i}" for i in range(90)]


def read(path):
    with open(path, "rb") as f:
        return f.read()


def tokenizer_json():
    """A word is a token."""
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    return json.dumps({"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"},
                       "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}}).encode()


class HubTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.model = os.path.join(cls.temporary.name, "model")
        make_model(cls.model, layers=2, shards=2)
        cls.files = {name: read(os.path.join(cls.model, name)) for name in os.listdir(cls.model)}
        cls.files |= {"tokenizer.json": tokenizer_json(), "chat_template.jinja": b"{% for m in messages %}{{ m.content }} {% endfor %}",
                      "README.md": b"---\nlicense: mit\n---\nA model.\n"}
        cls.weights = sorted(name for name in cls.files if name.endswith(".safetensors"))

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def setUp(self):
        self.folder = tempfile.mkdtemp(dir=self.temporary.name)
        self.hub = Hub()
        self.hub.__enter__()
        self.addCleanup(self.hub.__exit__)
        others = {"pytorch_model.bin": b"x" * 5000, "consolidated.safetensors": b"x" * 5000, "original/params.json": b"{}"}
        self.hub.models["org/tiny"] = Repository(self.files | others)
        self.tokens = self.path("tokens.safetensors")
        make_tokens(self.tokens)

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def environment(self, **variables):
        kept = {name: value for name, value in environment().items() if not name.startswith(("HF_", "HUGGING"))}
        kept |= {"HF_HOME": self.path("hf"), "HOME": self.folder, "HF_ENDPOINT": self.hub.address, "HF_HUB_DISABLE_XET": "1", "XDG_CACHE_HOME": self.path("cache")}
        return kept | variables

    def run_qpipe(self, *words, ranks=0, **variables):
        launch = [MPIEXEC, "--oversubscribe", "--bind-to", "none", "-np", str(ranks)] if ranks else []
        return subprocess.run([*launch, QPIPE, *words], cwd=self.folder, env=self.environment(**variables), capture_output=True, text=True, timeout=300)

    def expect_done(self, result):
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertNotIn(TOKEN, result.stdout + result.stderr)
        return result

    def expect_fault(self, result, code, *parts):
        self.assertEqual(result.returncode, code, result.stderr)
        self.assertNotIn(TOKEN, result.stdout + result.stderr)
        lines = [line for line in result.stderr.splitlines() if line.startswith("qpipe: error: ")]
        self.assertEqual(len(lines), 1, result.stderr)
        self.assertEqual(result.stderr.splitlines()[-1], lines[0])
        for part in parts:
            self.assertIn(part, lines[0])

    def quantize(self, model="org/tiny", *words, **more):
        return self.run_qpipe("quantize", model, "-o", "out", "--bits", "4", "--group-size", "32", "--samples", "4", "--seqlen", "32", "--data", self.tokens,
                              "--set", "parallel.backend=cpu", *words, **more)

    def evaluate(self, model="org/tiny", data=None, **more):
        return self.run_qpipe("eval", "--model", model, "--data", data or self.tokens, "--seqlen", "32", "--samples", "4", "--backend", "cpu", **more)


class Fetch(HubTest):
    def test_once_and_what_is_needed(self):
        self.expect_done(self.quantize())
        self.assertEqual(self.hub.count(r"GET .*/resolve/"), len(self.files))
        self.assertEqual(self.hub.count("pytorch_model|consolidated|original"), 0)
        card = read(self.path("out", "README.md")).decode()
        self.assertIn('base_model: "org/tiny"\n', card)
        self.assertIn("license: \"mit\"\n", card)
        self.assertIn('[model]\npath = "org/tiny"\n\n[calibration]\ndata = "tokens.safetensors"\nsamples = 4\nseqlen = 32\n\n[quantize]\ngroup_size = 32\n```', card)
        report = json.loads(read(self.path("out.report.json")))
        self.assertEqual(report["model"], "org/tiny")
        # The same bytes as from a folder.
        shutil.move(self.path("out"), self.path("from_hub"))
        local = shutil.copytree(self.model, self.path("local"))
        for name in ("tokenizer.json", "chat_template.jinja"):
            with open(os.path.join(local, name), "wb") as f:
                f.write(self.files[name])
        self.expect_done(self.quantize(local))
        self.assertEqual(read(self.path("out", "model.safetensors")), read(self.path("from_hub", "model.safetensors")))
        # Again, and offline: nothing is fetched.
        self.hub.requests.clear()
        perplexity = self.expect_done(self.evaluate()).stdout.split("(")[0]
        self.assertEqual(self.hub.count(r"GET .*/resolve/"), 0)
        offline = self.expect_done(self.evaluate(HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9"))
        self.assertEqual(offline.stdout.split("(")[0], perplexity)
        unreachable = self.expect_done(self.evaluate(HF_ENDPOINT="http://127.0.0.1:9"))
        self.assertEqual(unreachable.stdout.split("(")[0], perplexity)
        self.assertIn("note: http://127.0.0.1:9 does not give org/tiny now (ConnectError); what the cache has of it is whole and is used\n", unreachable.stderr)
        # The snapshot as a folder has the model's name.
        snapshot, = glob.glob(self.path("hf/hub/models--org--tiny/snapshots/*"))
        self.expect_done(self.quantize(snapshot, "--overwrite"))
        self.assertIn('base_model: "org/tiny"\n', read(self.path("out", "README.md")).decode())

    def test_ranks_of_a_machine_fetch_once(self):
        result = self.expect_done(self.quantize(ranks=3))
        self.assertEqual(self.hub.count(r"GET .*/resolve/"), len(self.files))
        self.assertEqual(result.stderr.count("fetching org/tiny: 0.0 MiB of"), 1, result.stderr)

    def test_revision_and_plan(self):
        repository = self.hub.models["org/tiny"]
        repository.branches["v2"] = repository.branches["main"] | {"chat_template.jinja": b"x"}
        self.expect_done(self.evaluate("org/tiny@v2"))
        with open(self.path("plan.toml"), "w") as f:
            f.write('[model]\npath = "org/tiny"\n[output]\npath = "out"\n[quantize]\ngroup_size = 32\n')
        self.hub.requests.clear()
        shutil.rmtree(self.path("hf"))
        result = self.expect_done(self.run_qpipe("plan", "plan.toml", "--gpu-memory", "8GiB", "--host-memory", "8GiB"))
        self.assertIn("fits", result.stdout)
        self.assertEqual(self.hub.count(r"GET .*/resolve/.*(safetensors|jinja)$"), 0)
        self.assertEqual(self.hub.count(r"GET .*/resolve/.*config.json$"), 1)

    def test_a_folder_of_the_name_comes_first(self):
        shutil.copytree(self.model, self.path("org", "tiny"))
        self.expect_done(self.evaluate())
        self.assertEqual(self.hub.requests, [])

    def test_private_with_the_token(self):
        self.hub.models["org/tiny"].private = True
        self.expect_fault(self.evaluate(), 66, "org/tiny: is no folder here and no repository of", "for a private one set HF_TOKEN")
        self.expect_fault(self.evaluate(HF_TOKEN="hf_wrong"), 78, "org/tiny", "does not accept the token")
        self.expect_done(self.evaluate(HF_TOKEN=TOKEN))

    def test_what_is_not_there(self):
        address = self.hub.address
        self.expect_fault(self.evaluate("org/tinny"), 66, f"org/tinny: is no folder here and no repository of {address} that you may see")
        self.expect_fault(self.evaluate("org/tiny@v3"), 66, "org/tiny@v3: has no such revision", f"{address}/org/tiny/tree/main")
        self.hub.models["org/tiny"].gated = True
        self.expect_fault(self.evaluate(), 66, "org/tiny: is gated; accept its conditions at " + address + "/org/tiny", "HF_TOKEN", "hf auth login")
        self.expect_fault(self.evaluate("org/other", HF_ENDPOINT="http://127.0.0.1:9"), 74, "http://127.0.0.1:9 cannot be reached", "HF_ENDPOINT")
        self.expect_fault(self.evaluate("org/other", HF_HUB_OFFLINE="1"), 66, "org/other: is not whole in the cache", "HF_HUB_OFFLINE is set")
        self.hub.models["org/empty"] = Repository({"README.md": b"x"})
        self.expect_fault(self.evaluate("org/empty"), 65, "org/empty: has no config.json")

    def test_too_large_for_the_disk(self):
        self.hub.sizes[self.weights[0]] = 10**16
        self.expect_fault(self.evaluate(), 74, "org/tiny: takes 10000000.0 GB, and the disk of", "set HF_HOME")

    def test_an_interrupted_download_is_not_taken_for_whole_and_goes_on(self):
        name, half = self.weights[1], len(self.files[self.weights[1]]) // 2
        self.hub.broken[name] = (half, 1000)
        self.expect_fault(self.evaluate(), 74, "the connection broke", "the same command goes on")
        self.expect_fault(self.evaluate(HF_HUB_OFFLINE="1"), 66, "org/tiny: is not whole in the cache")
        self.expect_fault(self.evaluate(HF_ENDPOINT="http://127.0.0.1:9"), 74, "cannot be reached")
        self.hub.broken.clear()
        self.hub.requests.clear()
        self.expect_done(self.evaluate())
        self.assertLessEqual(self.hub.count(r"GET .*/resolve/"), 1 + self.hub.count(r"GET .*/resolve/.*" + name))
        self.expect_done(self.evaluate(HF_HUB_OFFLINE="1"))


    def test_a_signal_ends_a_download_and_the_same_command_goes_on(self):
        name = self.weights[1]
        self.hub.held[name] = threading.Event()
        words = [QPIPE, "eval", "--model", "org/tiny", "--data", self.tokens, "--seqlen", "32", "--samples", "4", "--backend", "cpu"]
        with subprocess.Popen(words, cwd=self.folder, env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            while not self.hub.count("GET .*" + name):
                self.assertIsNone(process.poll())
                time.sleep(0.05)
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=60)
        self.hub.held.pop(name).set()
        self.assertEqual(process.returncode, 75, said)
        self.assertEqual(said.splitlines()[-1], "qpipe: error: stopped by a signal while the data were read; the same command starts again")
        self.expect_fault(self.evaluate(HF_HUB_OFFLINE="1"), 66, "org/tiny: is not whole in the cache")
        self.expect_done(self.evaluate())


class Data(HubTest):
    def setUp(self):
        super().setUp()
        text = "".join(json.dumps({"text": " ".join(WORDS[i:i + 30])}) + "\n" for i in range(60))
        chats = "".join(json.dumps({"messages": [{"role": "user", "content": " ".join(WORDS[i:])}]}) + "\n" for i in range(60))
        self.hub.datasets["org/texts"] = Repository({"README.md": b"x", "data/train-00000-of-00002.jsonl": text.encode(),
                                                     "data/train-00001-of-00002.jsonl": b"x", "data/test.jsonl": chats.encode(), "data/train_sft-00000.jsonl": b"x",
                                                     "data/chats_val.jsonl": text.encode()})
        self.hub.datasets["org/several"] = Repository({"en/c4-train.00000-of-01024.json": text.encode(), "de/c4-train.00000-of-01024.json": chats.encode()})
        converted = Repository({"data.csv": b"a,b"})
        converted.branches["refs/convert/parquet"] = {"default/train/0000.jsonl": text.encode()}
        self.hub.datasets["org/converted"] = converted

    def test_splits(self):
        plain = self.expect_done(self.evaluate(data="hf:org/texts:train")).stdout
        chats = self.expect_done(self.evaluate(data="hf:org/texts:test")).stdout
        self.assertNotEqual(plain.split("(")[0], chats.split("(")[0])
        self.assertEqual(self.hub.count("GET .*train-00001"), 0)
        self.assertEqual(self.hub.count("GET .*train_sft"), 0)
        for data in ("hf:org/texts:val", "hf:org/several/en:train", "hf:org/converted:train"):
            self.assertEqual(self.expect_done(self.evaluate(data=data)).stdout.split("(")[0], plain.split("(")[0])
        self.expect_done(self.evaluate(data="hf:org/texts:train", HF_HUB_OFFLINE="1"))
        unreachable = self.expect_done(self.evaluate(data="hf:org/texts:train", HF_ENDPOINT="http://127.0.0.1:9"))
        self.assertEqual(unreachable.stdout.split("(")[0], plain.split("(")[0])
        self.assertIn("note: http://127.0.0.1:9 does not give org/texts:train now (ConnectError); what the cache has of it is used\n", unreachable.stderr)

    def test_mix(self):
        with open(self.path("run.toml"), "w") as f:
            f.write('[model]\npath = "org/tiny"\n[output]\npath = "out"\n[quantize]\ngroup_size = 32\n[calibration]\nsamples = 8\nseqlen = 16\n'
                    '[[calibration.mix]]\ndata = "hf:org/texts:train"\nshare = 3\n[[calibration.mix]]\ndata = "hf:org/texts:test"\n')
        self.expect_done(self.run_qpipe("run.toml"))
        card = read(self.path("out", "README.md")).decode()
        self.assertIn('[model]\npath = "org/tiny"\n', card)
        self.assertIn('[[calibration.mix]]\ndata = "hf:org/texts:test"\n', card)
        source = json.loads(read(self.path("out.report.json")))["calibration"]["source"]
        self.assertEqual(source, "train-00000-of-00002.jsonl: 6 random windows of 16 tokens (seed 0) of 1859; "
                                 "test.jsonl: 2 random windows of 16 tokens (seed 0) of 3689")

    def test_faults(self):
        self.expect_fault(self.evaluate(data="hf:org/texts:validation"), 66, "org/texts:validation: has no file of this split", "data/test.jsonl")
        self.expect_fault(self.evaluate(data="hf:org/texts:train_sft"), 65, "train_sft-00000.jsonl:1: ")
        self.expect_fault(self.evaluate(data="hf:org/several:train"), 78, "several configurations (de, en); write hf:org/several/de:train")
        self.expect_fault(self.evaluate(data="hf:org/nothing:train"), 66, "datasets/org/nothing: is no folder here and no repository")
        self.expect_fault(self.evaluate(data="hf:org/other:train", HF_ENDPOINT="http://127.0.0.1:9"), 74, "cannot be reached")
        self.expect_fault(self.evaluate(data="hf:org/texts"), 78, "--data hf:org/texts: write data of the hub as")


class Push(HubTest):
    def setUp(self):
        super().setUp()
        self.expect_done(self.quantize())
        self.names = set(os.listdir(self.path("out")))
        self.hub.requests.clear()

    def push(self, *words, token=TOKEN, **variables):
        return self.run_qpipe("push", "out", *words, **({"HF_TOKEN": token} if token else {}), **variables)

    def pushed(self, name="tester/out", branch="main"):
        return self.hub.models[name].branches[branch]

    def test_whole_and_loads_back(self):
        result = self.expect_done(self.push("tester/out"))
        self.assertEqual(result.stdout, f"{self.hub.address}/tester/out\n")
        self.assertEqual(set(self.pushed()), self.names)
        for name in self.names - {"README.md"}:
            self.assertTrue(self.pushed()[name] == read(self.path("out", name)), name)
        card = read(self.path("out", "README.md"))
        self.assertEqual(self.pushed()["README.md"].decode(), card.replace(b"THIS_FOLDER", b"tester/out").decode())
        self.assertIn("vllm serve tester/out\n", self.pushed()["README.md"].decode())
        self.assertEqual(self.hub.cards, [self.pushed()["README.md"].decode()])
        self.assertFalse(self.hub.models["tester/out"].private)
        self.assertEqual(self.hub.models["tester/out"].commits, 1)
        here = self.expect_done(self.evaluate(self.path("out"))).stdout.split("(")[0]
        self.assertEqual(self.expect_done(self.evaluate("tester/out")).stdout.split("(")[0], here)

    def test_private_branch_and_pull_request(self):
        self.hub.models["tester/open"] = Repository()
        self.expect_fault(self.push("tester/open", "--private"), 73, "tester/open: is there already, and public")
        self.assertEqual(set(self.pushed("tester/open")), set())
        self.expect_done(self.push("tester/out", "--private"))
        self.expect_done(self.push("tester/out", "--private"))
        self.assertTrue(self.hub.models["tester/out"].private)
        result = self.expect_done(self.push("tester/out", "--revision", "w4"))
        self.assertEqual(result.stdout, f"{self.hub.address}/tester/out/tree/w4\n")
        self.assertEqual(set(self.pushed(branch="w4")), self.names)
        result = self.expect_done(self.push("tester/out", "--create-pr"))
        self.assertEqual(result.stdout, f"{self.hub.address}/tester/out/discussions/1\n")
        self.assertEqual(set(self.pushed(branch="refs/pr/1")), self.names)

    def test_interrupted_and_repeated(self):
        self.hub.broken_uploads = 1000
        self.expect_fault(self.push("tester/out"), 74, "tester/out", "the same command goes on")
        self.assertEqual(self.pushed(), {})
        # A large file came through before the connection broke for good: it is not sent again.
        self.hub.broken_uploads = 0
        self.hub.full = False
        self.expect_done(self.push("tester/out"))
        sent = self.hub.count("PUT /upload/")
        self.assertEqual(set(self.pushed()), self.names)
        self.expect_done(self.push("tester/out", "--revision", "again"))
        self.assertEqual(self.hub.count("PUT /upload/"), sent)

    def test_what_an_earlier_push_brought_goes(self):
        self.expect_done(self.push("tester/out"))
        os.unlink(self.path("out.report.json"))
        shutil.rmtree(self.path("out"))
        self.expect_done(self.quantize("org/tiny", "--set", "output.max_shard_size=20KB"))
        self.expect_done(self.push("tester/out"))
        self.assertEqual(set(self.pushed()), set(os.listdir(self.path("out"))))
        self.assertNotIn("model.safetensors", set(self.pushed()))

    def test_refused(self):
        self.expect_fault(self.push("tester/out", token=None), 78, "tester/out: there is no token to push with; set HF_TOKEN", "hf auth login")
        self.expect_fault(self.push("tester/out", token="hf_wrong"), 78, "does not accept the token")
        self.expect_fault(self.push("strangers/out"), 73, "strangers/out: the token does not allow it", "namespace strangers")
        self.expect_fault(self.push("tester/out", HF_ENDPOINT="http://127.0.0.1:9"), 74, "cannot be reached")
        self.expect_fault(self.push("out"), 64, "push out: a repository is ORG/NAME")
        self.hub.card_fault = '"base_model" with value "x" is not valid'
        self.expect_fault(self.push("tester/out"), 65, "refuses it (", self.hub.card_fault, "the card is README.md")
        self.hub.card_fault = None
        self.hub.full = True
        self.expect_fault(self.push("tester/out"), 73, "has no room for it (", "exceeded your storage quota")
        self.assertEqual(self.pushed(), {})
        self.hub.models["tester/other"] = Repository({"model-00001-of-00001.safetensors": b"x"})
        self.expect_fault(self.push("tester/other"), 73, "has weights that this qpipe folder does not have (model-00001-of-00001.safetensors)")

    def test_only_what_verify_finds_sound(self):
        path = self.path("out", "config.json")
        config = json.loads(read(path))
        before = read(path)
        with open(path, "w") as f:
            json.dump(config | {"x": 1}, f)
        self.expect_fault(self.push("tester/out"), 65, "out/config.json: is not as qpipe wrote it")
        with open(path, "wb") as f:
            f.write(before)
        with open(self.path("out", "model-00001-of-00002.safetensors"), "wb") as f:
            f.write(b"x")
        self.expect_fault(self.push("tester/out"), 65, "out: is not pushed: verify finds")
        os.unlink(self.path("out", "model-00001-of-00002.safetensors"))
        with open(self.path("out", "README.md"), "a") as f:
            f.write("\nMine.\n")
        with open(self.path("out", "notes.txt"), "w") as f:
            f.write("private")
        result = self.expect_done(self.push("tester/out"))
        self.assertIn("note: notes.txt is not qpipe's and stays here", result.stderr)
        self.assertTrue(self.pushed()["README.md"].endswith(b"\nMine.\n"))
        self.assertNotIn("notes.txt", set(self.pushed()))
        os.unlink(self.path("out", "qpipe_files.json"))
        self.expect_fault(self.push("tester/out"), 65, "has no qpipe_files.json")


def python_of_qpipe():
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
    venv = os.path.join(source, ".venv/bin/python")
    return os.environ.get("QPIPE_PYTHON") or (venv if os.access(venv, os.X_OK) else "python3")


if __name__ == "__main__":
    QPIPE, MPIEXEC = os.path.abspath(sys.argv[1]), sys.argv[2]
    if subprocess.run([python_of_qpipe(), "-I", "-c", "import huggingface_hub"], stderr=subprocess.DEVNULL).returncode:
        print("left out: no Python with the package huggingface_hub; run scripts/install-dependencies, or set QPIPE_PYTHON")
        sys.exit(77)
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
