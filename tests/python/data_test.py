#!/usr/bin/env python3
"""Texts, rows and chats in every kind of file: data_test.py QPIPE, by a Python with what the helper needs. Each kind gives the token ids of the plain one, and
what goes wrong is one line that says where and what to do."""
import glob
import gzip
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import unittest

from processes import environment
from tiny_model import make_model

QPIPE = ""
GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden")
HELPER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "scripts", "helper")
TEXTS = [f"the man and the book {i} of caf\u00e9 \u65e5\u672c" for i in range(300)]
CHATS = [[{"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}] for text in TEXTS]


def parquet(columns, **options):
    import pyarrow
    from pyarrow import parquet as files

    out = io.BytesIO()
    files.write_table(pyarrow.table(columns), out, **options)
    return out.getvalue()


def zstd(data, **options):
    import zstandard

    return zstandard.ZstdCompressor(**options).compress(data)


def json_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


class WithModel(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.model = os.path.join(cls.temporary.name, "model")
        make_model(cls.model, layers=1, vocabulary=320)
        with open(os.path.join(GOLDEN, "tokenizer", "tokenizer.json")) as f, open(os.path.join(cls.model, "tokenizer.json"), "w") as g:
            g.write(f.read())
        with open(os.path.join(cls.model, "chat_template.jinja"), "w") as f:
            f.write("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.extra is defined %}{{ m.extra }}{% endif %}</s>{% endfor %}")

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def setUp(self):
        self.folder = tempfile.mkdtemp(dir=self.temporary.name)

    def write(self, name, data):
        with open(os.path.join(self.folder, name), "wb") as f:
            f.write(data)
        return os.path.join(self.folder, name)

    def expect_part(self, result, code, *parts):
        self.assertEqual(result.returncode, code, result.stderr)
        self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
        for part in parts:
            self.assertIn(part, result.stderr)


class Kinds(WithModel):
    def tokenize(self, name, data, *words):
        self.write(name, data)
        shutil.rmtree(os.path.join(self.folder, "cache"), ignore_errors=True)
        env = environment(XDG_CACHE_HOME=os.path.join(self.folder, "cache"))
        return subprocess.run([QPIPE, "tokenize", "--model", self.model, "--data", name, "--out", "out.h5", "--seqlen", "16", "--samples", "0", "--mode", "sequential",
                               *words], cwd=self.folder, env=env, capture_output=True, text=True, timeout=300)

    def ids(self, name, data, *words):
        """The hash of the counts and ids, which is how the cache's entry begins."""
        result = self.tokenize(name, data, *words)
        self.assertEqual(result.returncode, 0, result.stderr)
        entry, = glob.glob(os.path.join(self.folder, "cache", "qpipe", "*.tokens"))
        with open(entry, "rb") as f:
            return f.read(32)

    def expect_fault(self, result, code, text):
        self.assertEqual((result.returncode, result.stderr), (code, f"qpipe: error: {text}\n"))

    def test_kinds_and_packings(self):
        text = "\n".join(TEXTS).encode()
        rows = {
            "text": ({"text": TEXTS, "n": list(range(300))}, [{"text": t} for t in TEXTS]),
            "messages": ({"messages": CHATS}, [{"messages": c} for c in CHATS]),
            "conversations": ({"conversations": [[{"from": "human", "value": c[0]["content"]}, {"from": "gpt", "value": c[1]["content"]}] for c in CHATS]},
                              [{"messages": c} for c in CHATS]),
            "prompt": ({"prompt": TEXTS, "completion": [" yes"] * 300}, [{"text": t + " yes"} for t in TEXTS]),
        }
        packings = {"": bytes, ".gz": gzip.compress, ".zst": zstd}
        plain = self.ids("a.txt", text)
        for ending, pack in packings.items():
            self.assertEqual(self.ids("a.txt" + ending, pack(text)), plain, ending)
        for kind, (columns, lines) in rows.items():
            expected = self.ids("b.jsonl", json_lines(lines))
            self.assertNotEqual(expected, plain)
            for ending, pack in packings.items():
                self.assertEqual(self.ids("b.jsonl" + ending, pack(json_lines(lines))), expected, kind + ending)
                self.assertEqual(self.ids("b.parquet" + ending, pack(parquet(columns))), expected, kind + ending)
        frames = zstd(text[:100]) + zstd(text[100:])
        self.assertEqual(self.ids("two.txt.zst", frames), plain)
        self.assertEqual(self.ids("groups.parquet", parquet({"text": TEXTS}, row_group_size=7, compression="zstd")), self.ids("b.jsonl", json_lines(rows["text"][1])))
        self.assertEqual(self.ids("body.parquet", parquet({"body": TEXTS}), "--text-field", "body"), self.ids("b.jsonl", json_lines(rows["text"][1])))

    def test_fields_that_only_some_messages_have(self):
        """Parquet gives all the fields of each, as null, which a template must not see."""
        chats = [CHATS[0] + [{"role": "user", "content": "x", "extra": "y"}]] + CHATS[1:]
        self.assertEqual(self.ids("a.parquet", parquet({"messages": chats})), self.ids("a.jsonl", json_lines({"messages": c} for c in chats)))

    def test_damaged(self):
        packed = zstd(os.urandom(5000))
        for name, data, why in (
            ("a.txt.zst", b"not zstd", "is named .zst but is not a zstd file; copy or download the file again"),
            ("a.txt.zst", packed[:-9], "damaged zstd data: it ends in the middle; copy or download the file again"),
            ("a.parquet", b"PAR1 no", None),
            ("a.parquet", parquet({"text": TEXTS})[:-100], None),
            ("a.parquet", b"", None),
        ):
            result = self.tokenize(name, data)
            if why:
                self.expect_fault(result, 65, f"{name}: {why}")
            else:
                self.expect_part(result, 65, f"{name}: is not a Parquet file that the package pyarrow can read (", "; copy or download the file again")
        self.expect_part(self.tokenize("a.txt.zst", packed[:2000] + b"x" + packed[2001:]), 65, "a.txt.zst: ")

    def test_rows_without_the_fields(self):
        self.expect_fault(self.tokenize("a.parquet", parquet({"n": [1], "body": ["x"], "title": ["y"]})), 65,
                          'a.parquet: has no column "text", messages, conversations, or prompt with completion; set text_field to one of: body, title')
        self.expect_fault(self.tokenize("a.parquet", parquet({"text": ["x", None, "y", None], "messages": [None] * 4})), 65,
                          'a.parquet: row 2: has no field "text", nor messages, conversations, or prompt with completion (as 2 of 4 rows: also 4); no other field '
                          "holds a string: remove such rows")

    def test_chats_at_fault(self):
        rows = [{"messages": c} for c in CHATS[:4]]
        rows[2] = {"messages": [{"role": "narrator", "content": "x"}]}
        why = ('message 1 has the role "narrator", which the model\'s chat template does not know; use one of system, developer, user, assistant, tool, function, '
               "or remove the row")
        self.expect_fault(self.tokenize("a.jsonl", json_lines(rows)), 65, f"a.jsonl:3: {why}")
        self.expect_fault(self.tokenize("a.parquet.gz", gzip.compress(parquet({"messages": [row["messages"] for row in rows]}))), 65, f"a.parquet.gz: row 3: {why}")

    def test_what_unpacks_to_too_much(self):
        bomb = zstd(bytes(1100 << 20), level=1)
        self.assertLess(len(bomb), 1 << 20)
        self.expect_part(self.tokenize("a.txt.zst", bomb), 65, "a.txt.zst: unpacks to more than 1073741824 bytes of text, from", "cut it (head -c)")
        many = parquet({"text": ["x" * 100_000] * 12_000}, compression="zstd")
        self.assertLess(len(many), 1 << 20)
        self.expect_part(self.tokenize("a.parquet", many), 65, "a.parquet: unpacks to more than 1073741824 bytes of text, from", "cut it (head -c)")


class WithoutAConfiguration(WithModel):
    def quantize(self, *words, model=None):
        env = environment(XDG_CACHE_HOME=os.path.join(self.folder, "cache"))
        return subprocess.run([QPIPE, "quantize", model or self.model, "-o", "out", *words, "--set", "parallel.backend=cpu"], cwd=self.folder, env=env,
                              capture_output=True, text=True, timeout=300)

    def source(self):
        with open(os.path.join(self.folder, "out.report.json")) as f:
            return json.load(f)["calibration"]["source"]

    def test_the_mix_that_is_shipped(self):
        result = self.quantize("--method", "gptq", "--bits", "4", "--group-size", "32", "--seqlen", "64", "--samples", "8")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("note: calibration.data is not set: prose, code and chats that qpipe ships are taken\n", result.stderr)
        parts = self.source().split("; ")
        self.assertEqual([part.split(" of ")[0] for part in parts],
                         ["emma.txt.gz: 4 random windows", "code.txt.gz: 2 random windows", "chats.jsonl: 2 random windows"])
        with open(os.path.join(self.folder, "out", "README.md")) as f:
            self.assertIn('[model]\npath = "model"\n\n[calibration]\nsamples = 8\nseqlen = 64\n\n[quantize]\ngroup_size = 32\n```', f.read())
        # Without a chat template, without the chats.
        plain = shutil.copytree(self.model, os.path.join(self.folder, "plain"))
        os.unlink(os.path.join(plain, "chat_template.jinja"))
        result = self.quantize("--group-size", "32", "--seqlen", "64", "--samples", "8", "--overwrite", model=plain)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual([part.split(" of ")[0] for part in self.source().split("; ")], ["emma.txt.gz: 5 random windows", "code.txt.gz: 3 random windows"])

    def test_the_words_of_gptqs_own_script(self):
        text = self.write("a.txt", b"the man and the book " * 100)
        result = self.quantize("--dataset", text, "--wbits", "8", "--groupsize", "64", "--act-order", "--percdamp", "0.05", "--nsamples", "4", "--seqlen", "16",
                               "--seed", "3", "--asym", "--eval", text, "--set", "evaluate.seqlen=16", "--set", "quantize.group_size=32", "--dry-run")
        self.assertEqual(result.returncode, 0, result.stderr)
        for line in (f'path = "{self.model}"', f'data = "{text}"', "bits = 8", "group_size = 32", "desc_act = true", "damp_percent = 0.05", "samples = 4", "seqlen = 16",
                     "seed = 3", "symmetric = false", 'path = "out"'):
            self.assertIn(line + "\n", result.stdout)
        self.assertFalse(os.path.exists(os.path.join(self.folder, "out")))

    def test_faults(self):
        for words, code, part in ((("--bits", "5x"), 78, "--set quantize.bits"), (("--method", "gptk"), 78, 'did you mean "gptq"?'),
                                  (("--data", "c5"), 66, "calibration.data = \"c5\": no such file"), (("--dat",), 64, "--dat")):
            self.expect_part(self.quantize(*words), code, part)


class Protocol(unittest.TestCase):
    """The helper on input that qpipe would not give it: it ends with a code of its own and one line, and no traceback."""

    def run_helper(self, words, data):
        return subprocess.run([sys.executable, "-I", "-B", HELPER, *words], cwd="/", input=data, capture_output=True, timeout=120)

    def expect_orderly(self, result):
        self.assertIn(result.returncode, (0, 64, 65, 69, 74), result.stderr)
        self.assertNotIn(b"Traceback", result.stderr)
        if result.returncode == 65:
            self.assertEqual(result.stderr.count(b"\n"), 1, result.stderr)

    def test_words(self):
        for words in ([], ["nothing"], ["ids"], ["ids", "a", "b", "c"], ["rows"], ["unzstd", "x"], ["model"], ["main"]):
            self.assertEqual(self.run_helper(words, b"").returncode, 64, words)

    def test_documents(self):
        tokenizer = os.path.join(GOLDEN, "chats", "qwen3", "tokenizer.json")
        with open(os.path.join(GOLDEN, "chats", "qwen3", "rows.jsonl"), "rb") as f:
            rows = f.read().splitlines()
        whole = b"".join(len(row).to_bytes(8, "little") + (i + 1).to_bytes(8, "little") + row for i, row in enumerate(rows))
        self.assertEqual(self.run_helper(["ids", tokenizer, "text"], whole).returncode, 0)
        rng = random.Random(5)
        for number in range(30):
            data = bytearray(whole)
            for _ in range(rng.randrange(1, 4)):
                data[rng.randrange(len(data))] = rng.choice(b"\x00\x01\x7f\xff[]{}\"0:,n")
            if number % 3 == 0:
                del data[rng.randrange(len(data)):]
            self.expect_orderly(self.run_helper(["ids", tokenizer, "text"], bytes(data)))
        for row in (b"null", b"[]", b"7", b'"x"', b"{}", b'{"messages": {}}', b'{"messages": [[]]}', b'{"messages": [{"role": 1}]}', b'{"prompt": {}}',
                    b'{"messages": [{"role": "user"}], "tools": 7}', b"[" * 100000):
            result = self.run_helper(["ids", tokenizer, "text"], len(row).to_bytes(8, "little") + (9).to_bytes(8, "little") + row)
            self.assertEqual(result.returncode, 65, (row[:40], result.stderr))
            self.assertTrue(result.stderr.startswith(b"row 9: "), result.stderr)

    def test_packed(self):
        rng = random.Random(6)
        for words, whole in ((["unzstd"], zstd(bytes(rng.randrange(256) for _ in range(3000)))), (["rows", "text"], parquet({"text": TEXTS[:50]}))):
            for number in range(30):
                data = bytearray(whole)
                for _ in range(rng.randrange(1, 4)):
                    data[rng.randrange(len(data))] = rng.randrange(256)
                if number % 3 == 0:
                    del data[rng.randrange(len(data)):]
                self.expect_orderly(self.run_helper(words, bytes(data)))


if __name__ == "__main__":
    QPIPE = os.path.abspath(sys.argv[1])
    try:
        import jinja2  # noqa: F401
        import pyarrow  # noqa: F401
        import tokenizers  # noqa: F401
        import zstandard  # noqa: F401
    except ImportError as error:
        print(f"left out: {error}; run scripts/install-dependencies")
        sys.exit(77)
    os.environ.setdefault("QPIPE_PYTHON", sys.executable)
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]])
