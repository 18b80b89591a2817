#!/usr/bin/env python3
"""`cmake --install` into a new prefix: install_test.py CMAKE BUILD. What it needs is there, and the program works from there, in another folder, on a
model of the test's own, with token ids that its program for HDF5 reads."""
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

from processes import environment
from tiny_model import make_model

CMAKE, BUILD = "", ""
GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden")


class Install(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.prefix = os.path.join(cls.temporary.name, "opt")
        subprocess.run([CMAKE, "--install", BUILD, "--prefix", cls.prefix], check=True, stdout=subprocess.DEVNULL)
        cls.elsewhere = os.path.join(cls.temporary.name, "elsewhere")
        os.mkdir(cls.elsewhere)
        cls.model = os.path.join(cls.temporary.name, "model")
        make_model(cls.model)

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def run_installed(self, *words):
        program = os.path.join(self.prefix, "bin", "qpipe")
        return subprocess.run([program, *words], cwd=self.elsewhere, env=environment(), capture_output=True, text=True, timeout=300)

    def test_files(self):
        for name in (
            "bin/qpipe",
            "libexec/qpipe/qpipe_hdf5",
            "share/qpipe/helper/__main__.py",
            "share/qpipe/helper/hub.py",
            "share/qpipe/data/emma.txt.gz",
            "share/qpipe/data/code.txt.gz",
            "share/qpipe/data/chats.jsonl",
            "share/qpipe/configs/gptq-4bit.toml",
            "share/doc/qpipe/LICENSE",
            "share/doc/qpipe/THIRD_PARTY.md",
            "share/doc/qpipe/README.md",
            "share/doc/qpipe/docs/families.md",
            "share/doc/qpipe/docs/install.md",
            "share/bash-completion/completions/qpipe",
            "share/zsh/site-functions/_qpipe",
            "share/man/man1/qpipe.1",
        ):
            self.assertTrue(os.path.isfile(os.path.join(self.prefix, name)), name)

    def test_version(self):
        result = self.run_installed("--version")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("qpipe", result.stdout)

    def quantize(self, data):
        config = os.path.join(self.elsewhere, "run.toml")
        with open(config, "w") as f:
            f.write(f'[model]\npath = "{self.model}"\n[output]\npath = "out"\noverwrite = true\n[calibration]\ndata = "{data}"\ndataset = "calib/chunked"\nsamples = 5\nseqlen = 8\n')
        return self.run_installed(config, "--set", "quantize.group_size=32", "--set", "parallel.backend=cpu")

    def test_hdf5(self):
        """By the program of the prefix: with another in its place the run fails."""
        data = os.path.join(GOLDEN, "tokens_h5py.h5")
        result = self.quantize(data)
        self.assertEqual(result.returncode, 0, result.stderr)
        helper = os.path.join(self.prefix, "libexec", "qpipe", "qpipe_hdf5")
        os.rename(helper, helper + ".away")
        shutil.copy("/bin/false", helper)
        try:
            self.assertNotEqual(self.quantize(data).returncode, 0)
        finally:
            os.replace(helper + ".away", helper)


if __name__ == "__main__":
    CMAKE, BUILD = sys.argv[1:3]
    unittest.main(argv=sys.argv[:1])
