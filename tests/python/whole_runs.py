#!/usr/bin/env python3
"""Each method on a tiny model, with one rank: whole_runs.py QPIPE. The run ends with 0, `qpipe verify` finds no fault in what it wrote. Under a
sanitizer it is the test of what the whole program's threads do (the store, the lock, layers read ahead)."""
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

from kill_test import GROUP, SETTINGS
from processes import environment
from tiny_model import make_model, make_tokens

QPIPE = ""
MORE = {
    "awq-quantized": ["quantize.method=awq", GROUP, "quantize.propagate=quantized", "awq.rounding=gptq"],
    "compressed-tensors": [GROUP, "output.format=compressed-tensors"],
    "bnb-int8": ["quantize.method=bnb-int8"],
    "fp8": ["quantize.method=fp8"],
}


class WholeRuns(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.addCleanup(self.temporary.cleanup)
        self.folder = self.temporary.name
        self.output = os.path.join(self.folder, "out")
        make_model(os.path.join(self.folder, "model"), layers=3, shards=2)
        make_tokens(os.path.join(self.folder, "tokens.safetensors"))
        with open(os.path.join(self.folder, "run.toml"), "w") as f:
            f.write(f'[model]\npath = "{self.folder}/model"\n[calibration]\ndata = "{self.folder}/tokens.safetensors"\nsamples = 24\nseqlen = 48\n'
                    f'[memory]\nmicro_batch = 200\n[output]\npath = "{self.output}"\nmax_shard_size = "15KB"\n[parallel]\nbackend = "cpu"\n'
                    f'[evaluate]\ndata = "{self.folder}/tokens.safetensors"\nseqlen = 48\n')

    def run_once(self, settings):
        words = [QPIPE, os.path.join(self.folder, "run.toml"), *[word for s in settings for word in ("--set", s)]]
        result = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=600)
        self.assertEqual(result.returncode, 0, result.stderr)
        verified = subprocess.run([QPIPE, "verify", self.output], env=environment(), capture_output=True, text=True, timeout=600)
        self.assertEqual((verified.returncode, verified.stderr), (0, ""), verified.stdout)
        shards = [name for name in os.listdir(self.output) if name.endswith(".safetensors")]
        self.assertGreater(len(shards), 1)
        shutil.rmtree(self.output)

    def test_methods(self):
        for name, settings in {**SETTINGS, **MORE}.items():
            with self.subTest(name):
                self.run_once(settings)


if __name__ == "__main__":
    QPIPE = sys.argv[1]
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]])
