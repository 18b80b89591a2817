#!/usr/bin/env python3
"""Each method on a tiny model, with one rank: whole_runs.py QPIPE. The run ends with 0, `qpipe verify` finds no fault in what it wrote. Under a
sanitizer it is the test of what the whole program's threads do (the store, the lock, layers read ahead)."""
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

from kill_test import GROUP, SETTINGS
from processes import environment
from tiny_model import make_model, make_tokens, write_safetensors

QPIPE = ""


def tensors_in(folder):
    """name: (type, shape, bytes)."""
    tensors = {}
    for path in glob.glob(os.path.join(folder, "*.safetensors")):
        with open(path, "rb") as f:
            header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
            body = f.read()
        for name, entry in header.items():
            if name != "__metadata__":
                tensors[name] = (entry["dtype"], tuple(entry["shape"]), body[slice(*entry["data_offsets"])])
    return tensors


def write_tensors(folder, tensors):
    """In place of all shards."""
    for path in glob.glob(os.path.join(folder, "*.safetensors*")):
        os.remove(path)
    write_safetensors(os.path.join(folder, "model.safetensors"), tensors)


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
        """What it said."""
        words = [QPIPE, os.path.join(self.folder, "run.toml"), *[word for s in settings for word in ("--set", s)]]
        result = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=600)
        self.assertEqual(result.returncode, 0, result.stderr)
        verified = subprocess.run([QPIPE, "verify", self.output], env=environment(), capture_output=True, text=True, timeout=600)
        self.assertEqual((verified.returncode, verified.stderr), (0, ""), verified.stdout)
        shards = [name for name in os.listdir(self.output) if name.endswith(".safetensors")]
        self.assertGreater(len(shards), 1)
        return result.stderr

    def test_methods(self):
        for name, settings in {**SETTINGS, **MORE}.items():
            with self.subTest(name):
                self.run_once(settings)
                shutil.rmtree(self.output)

    def test_a_source_in_the_format_is_copied(self):
        """Codes and scales are the source's, but where an override or another format says otherwise. Scales in bfloat16 widen, and NaN is found."""
        for method in ("fp8", "fp8-block", "nvfp4", "mxfp4"):
            with self.subTest(method):
                settings = [f"quantize.method={method}"]
                self.run_once(settings)
                source = os.path.join(self.folder, "source")
                os.rename(self.output, source)
                first = tensors_in(source)
                settings.append(f"model.path={source}")
                self.assertIn("21 of 21 linears are copied", self.run_once(settings))
                self.assertEqual(tensors_in(self.output), first)
                shutil.rmtree(self.output)

                said = self.run_once(settings + ['quantize.overrides=[{match="layers.0", skip=true}]'])
                self.assertIn("14 of 14 linears are copied", said)
                again = tensors_in(self.output)
                for name, tensor in again.items():
                    if "layers.0" not in name:
                        self.assertEqual(tensor, first[name], name)
                self.assertIn(again["model.layers.0.mlp.up_proj.weight"][0], ("F16", "BF16"))
                shutil.rmtree(self.output)

                other = "fp8" if method != "fp8" else "fp8-block"
                self.assertIn("quantized anew", self.run_once([f"quantize.method={other}", f"model.path={source}"]))
                shutil.rmtree(self.output)

                if method == "fp8-block":
                    for name, (dtype, shape, data) in first.items():
                        if name.endswith("weight_scale_inv"):
                            first[name] = ("BF16", shape, b"".join(data[i + 2 : i + 4] for i in range(0, len(data), 4)))
                    write_tensors(source, first)
                    self.assertIn("21 of 21 linears are copied", self.run_once(settings))
                    again = tensors_in(self.output)
                    for name, (dtype, shape, data) in first.items():
                        if dtype == "BF16" and name.endswith("weight_scale_inv"):
                            wide = b"".join(b"\0\0" + data[i : i + 2] for i in range(0, len(data), 2))
                            self.assertEqual(again[name], ("F32", shape, wide))
                        else:
                            self.assertEqual(again[name], first[name])
                    shutil.rmtree(self.output)
                    name = "model.layers.1.mlp.up_proj.weight"
                    first[name] = (*first[name][:2], b"\x7f" + first[name][2][1:])
                    write_tensors(source, first)
                    words = [QPIPE, os.path.join(self.folder, "run.toml"), *[word for s in settings for word in ("--set", s)]]
                    result = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=600)
                    self.assertEqual(result.returncode, 65, result.stderr)
                    self.assertIn(name, result.stderr)
                    shutil.rmtree(self.output, ignore_errors=True)
                    shutil.rmtree(self.output + ".run", ignore_errors=True)
                shutil.rmtree(source)


if __name__ == "__main__":
    QPIPE = sys.argv[1]
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]])
