#!/usr/bin/env python3
"""Checkpoints as they are found in the field, and damaged ones, in whole runs: inputs_test.py QPIPE MPIEXEC.
Models are made here, tiny and random, without any package."""
import array
import glob
import hashlib
import json
import math
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../python"))
from processes import environment

QPIPE = ""
MPIEXEC = ""
HIDDEN, FFN, VOCAB, LAYERS = 64, 96, 96, 3
METHODS = ("gptq", "awq", "rtn", "bnb-nf4", "bnb-fp4", "bnb-int8", "fp8", "nvfp4", "mxfp4")


def save(path, tensors):
    """tensors: name → (shape, array of floats); stored as F32."""
    header, data = {}, b""
    for name, (shape, values) in tensors.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + 4 * len(values)]}
        data += values.tobytes()
    text = json.dumps(header).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


def header_of(path):
    with open(path, "rb") as f:
        return json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))


def sha256(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


class Inputs(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.path = self.folder.name
        os.mkdir(self.path + "/model")
        self.config = dict(architectures=["Qwen2ForCausalLM"], model_type="qwen2", hidden_size=HIDDEN, intermediate_size=FFN, num_hidden_layers=LAYERS,
                           num_attention_heads=4, num_key_value_heads=2, vocab_size=VOCAB, max_position_embeddings=64, rms_norm_eps=1e-6,
                           hidden_act="silu", tie_word_embeddings=False, torch_dtype="float32")
        rng = random.Random(5)
        self.tensors = {}

        def put(name, *shape, scale=1.0, mean=0.0):
            self.tensors[name] = (list(shape), array.array("f", (rng.gauss(mean, scale) for _ in range(math.prod(shape)))))
        put("model.embed_tokens.weight", VOCAB, HIDDEN)
        for layer in range(LAYERS):
            p = f"model.layers.{layer}."
            for norm in ("input_layernorm", "post_attention_layernorm"):
                put(f"{p}{norm}.weight", HIDDEN, scale=0.1, mean=1.0)
            for name, out in (("q", 64), ("k", 32), ("v", 32)):
                put(f"{p}self_attn.{name}_proj.weight", out, HIDDEN, scale=0.15)
                put(f"{p}self_attn.{name}_proj.bias", out, scale=0.1)
            put(f"{p}self_attn.o_proj.weight", HIDDEN, 64, scale=0.15)
            for name in ("gate", "up"):
                put(f"{p}mlp.{name}_proj.weight", FFN, HIDDEN, scale=0.15)
            put(f"{p}mlp.down_proj.weight", HIDDEN, FFN, scale=0.12)
        put("model.norm.weight", HIDDEN, scale=0.1, mean=1.0)
        put("lm_head.weight", VOCAB, HIDDEN, scale=0.15)
        ids = array.array("i", (rng.randrange(VOCAB) for _ in range(8 * 32)))
        text = json.dumps({"input_ids": {"dtype": "I32", "shape": [8, 32], "data_offsets": [0, 1024]}}).encode()
        with open(self.path + "/tokens.safetensors", "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text + ids.tobytes())
        with open(self.path + "/run.toml", "w") as f:
            f.write('[model]\npath = "model"\n[calibration]\ndata = "tokens.safetensors"\nsamples = 8\nseqlen = 32\n'
                    '[quantize]\nmethod = "gptq"\nbits = 4\ngroup_size = 32\n[output]\npath = "out"\n[run]\nprogress = "plain"\n')

    def tearDown(self):
        self.folder.cleanup()

    def write_model(self):
        with open(self.path + "/model/config.json", "w") as f:
            json.dump(self.config, f)
        save(self.path + "/model/model.safetensors", self.tensors)

    def run_qpipe(self, *arguments, ranks=0):
        command = [QPIPE, *arguments]
        if ranks:
            command = [MPIEXEC, "--oversubscribe", "--bind-to", "none", "-np", str(ranks), *command]
        return subprocess.run(command, env=environment(), cwd=self.path, capture_output=True, text=True, timeout=240)

    def quantize(self, *sets, code=0, ranks=0):
        arguments = [a for s in sets for a in ("--set", s)]
        result = self.run_qpipe("run.toml", *arguments, ranks=ranks)
        self.assertEqual(result.returncode, code, result.stderr)
        return result.stderr

    def faults(self, stderr):
        return [line for line in stderr.splitlines() if "error:" in line]

    def expect_fault(self, stderr, *parts):
        lines = self.faults(stderr)
        self.assertEqual(len(lines), 1, stderr)
        for part in parts:
            self.assertIn(part, lines[0])

    def output_config(self, folder="out"):
        with open(f"{self.path}/{folder}/config.json") as f:
            return json.load(f)

    # --- damage

    def test_a_weight_that_is_no_number(self):
        name = "model.layers.1.mlp.down_proj.weight"
        for value in (math.nan, -math.inf):
            self.tensors[name][1][3 * FFN + 5] = value
            self.write_model()
            for method in METHODS if value != value else ("awq", "fp8"):
                stderr = self.quantize("quantize.method=" + method, f"output.path={method}{value}", code=65)
                self.expect_fault(stderr, name, "[3, 5]", "not finite")
        self.expect_fault(self.quantize("output.path=two", code=65, ranks=2), name, "[3, 5]")
        self.expect_fault(self.quantize("output.path=cast", "quantize.method=bnb-nf4", code=65, ranks=2), name, "[3, 5]")

    def test_what_is_copied_and_no_number(self):
        for name in ("model.layers.2.input_layernorm.weight", "model.layers.0.self_attn.q_proj.bias", "model.embed_tokens.weight", "lm_head.weight"):
            before = self.tensors[name][1][7]
            self.tensors[name][1][7] = math.inf
            self.write_model()
            for method in ("gptq", "awq", "rtn", "fp8"):
                stderr = self.quantize("quantize.method=" + method, "output.path=out-" + method, code=65)
                self.expect_fault(stderr, name, "not finite")
                if method != "fp8":  # a cast copies beside its work
                    self.assertNotIn("[1/", stderr)
            self.tensors[name][1][7] = before

    def test_a_damaged_scale(self):
        """Of a quantized source."""
        self.write_model()
        self.quantize("quantize.method=rtn")
        path = glob.glob(self.path + "/out/*.safetensors")[0]
        header = header_of(path)
        name = "model.layers.1.mlp.up_proj.scales"
        with open(path, "r+b") as f:
            size = struct.unpack("<Q", f.read(8))[0]
            f.seek(8 + size + header[name]["data_offsets"][0])
            f.write(b"\x00\x7e")
        result = self.run_qpipe("eval", "--model", "out", "--data", "tokens.safetensors", "--seqlen", "32")
        self.assertEqual(result.returncode, 65)
        self.expect_fault(result.stderr, name, "[0, 0]", "not finite")

    # --- float16

    def test_a_bias_beyond_float16(self):
        name = "model.layers.2.self_attn.k_proj.bias"
        self.tensors[name][1][2] = 1e5
        self.write_model()
        for method in ("gptq", "awq", "rtn"):
            stderr = self.quantize("quantize.method=" + method, code=65)
            self.expect_fault(stderr, name, "100000", 'output.dtype = "bfloat16"')
            self.assertNotIn("[1/", stderr)
        # The advice is not refused for what the run before it left.
        self.quantize("output.dtype=bfloat16")
        self.assertEqual(self.output_config()["torch_dtype"], "bfloat16")
        self.expect_fault(self.quantize("output.path=fp8", "quantize.method=fp8", "output.dtype=float16", code=65), name)
        self.quantize("output.path=fp8", "quantize.method=fp8")
        self.expect_fault(self.quantize("output.path=ct", "output.format=compressed-tensors", code=65), name, 'output.format = "gptq"')

    def make_activations_large(self, layer):
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        shape, values = self.tensors[name]
        self.tensors[name] = (shape, array.array("f", (1e5 * x for x in values)))
        self.write_model()
        self.tensors[name] = (shape, values)

    def test_activations_beyond_float16_are_answered_by_bfloat16(self):
        for layer in (0, LAYERS - 1):  # nobody reads the last one's output
            self.make_activations_large(layer)
            for method in ("gptq", "awq"):
                out = f"out-{method}-{layer}"
                stderr = self.quantize("quantize.method=" + method, "output.path=" + out)
                self.assertIn(f"activations of layer {layer} reach", stderr)
                self.assertIn("begins again with bfloat16", stderr)
                self.assertEqual(self.output_config(out)["torch_dtype"], "bfloat16")
                # As if it had been asked for.
                stderr = self.quantize("quantize.method=" + method, "output.path=asked", "output.overwrite=true", "output.dtype=bfloat16")
                self.assertNotIn("activations", stderr)
                for name in ("model.safetensors", "config.json"):
                    self.assertEqual(sha256(f"{self.path}/{out}/{name}"), sha256(f"{self.path}/asked/{name}"))
                with open(f"{self.path}/{out}.report.json") as f:
                    report = json.load(f)
                self.assertEqual(report["dtype"], "bfloat16")
                self.assertEqual(len(report["largest_activations"]), LAYERS)
                self.assertGreater(report["largest_activations"][layer], 65504)
                self.assertEqual(len(report["modules"]), 7 * LAYERS)

    def test_the_answer_is_the_same_on_all_ranks(self):
        self.make_activations_large(1)
        self.quantize()
        for ranks, sets in ((2, ()), (3, ()), (2, ("parallel.teams=2",))):
            out = f"out-{ranks}-{len(sets)}"
            self.assertIn("begins again with bfloat16", self.quantize("output.path=" + out, *sets, ranks=ranks))
            self.assertEqual(sha256(f"{self.path}/{out}/model.safetensors"), sha256(self.path + "/out/model.safetensors"))

    def test_the_answer_outlives_a_stop(self):
        self.make_activations_large(0)
        self.quantize("output.path=whole")
        process = subprocess.Popen([QPIPE, "run.toml"], env=environment(), cwd=self.path, stderr=subprocess.PIPE, text=True)
        begun_again = False
        for line in process.stderr:
            begun_again = begun_again or "begins again" in line
            if begun_again and line.startswith("[1/"):
                process.send_signal(signal.SIGUSR1)
        process.stderr.close()
        self.assertEqual(process.wait(), 75)
        stderr = self.quantize()
        self.assertIn("finished by an earlier run", stderr)
        self.assertNotIn("begins again", stderr)
        for name in ("model.safetensors", "config.json"):
            self.assertEqual(sha256(f"{self.path}/out/{name}"), sha256(f"{self.path}/whole/{name}"))

    def test_activations_beyond_float16_where_it_was_asked_for(self):
        self.make_activations_large(1)
        for sets in (["output.dtype=float16"], ["output.format=compressed-tensors"]):
            stderr = self.quantize("output.overwrite=true", *sets)
            warnings = [line for line in stderr.splitlines() if "warning: activations" in line]
            self.assertIn("layer 1", warnings[0])
            self.assertIn("bfloat16", warnings[0])
            self.assertEqual(self.output_config()["torch_dtype"], "float16")

    def test_a_sound_model_stays_float16(self):
        self.write_model()
        stderr = self.quantize()
        self.assertNotIn("float16", stderr.replace("bfloat16", "float16"))
        self.assertEqual(self.output_config()["torch_dtype"], "float16")

    # --- what transformers loads

    def logits(self, out):
        result = self.run_qpipe("eval", "--model", "model", "--data", "tokens.safetensors", "--seqlen", "32", "--logits", out)
        self.assertEqual(result.returncode, 0, result.stderr)
        return sha256(os.path.join(self.path, out))

    def test_names_places_and_nulls(self):
        self.config["tie_word_embeddings"] = True
        whole = dict(self.tensors)
        embedding = self.tensors["model.embed_tokens.weight"]
        del self.tensors["lm_head.weight"]
        self.write_model()
        want = self.logits("want.safetensors")

        self.tensors["lm_head.weight"] = embedding  # both, equal
        self.write_model()
        self.assertEqual(self.logits("both.safetensors"), want)
        del self.tensors["model.embed_tokens.weight"]  # the head alone
        self.write_model()
        self.assertEqual(self.logits("head.safetensors"), want)
        self.quantize()
        names = header_of(self.path + "/out/model.safetensors")
        self.assertIn("model.embed_tokens.weight", names)
        self.assertNotIn("lm_head.weight", names)
        self.assertEqual(self.run_qpipe("verify", "out", "--original", "model").returncode, 0)

        self.tensors = {name.removeprefix("model."): t for name, t in whole.items() if name != "lm_head.weight"}
        self.write_model()
        self.assertEqual(self.logits("base.safetensors"), want)
        self.config.update(quantization_config=None, rope_scaling=None, head_dim=None, max_position_embeddings=None, sliding_window=None)
        self.write_model()
        self.assertEqual(self.logits("null.safetensors"), want)
        self.quantize("output.path=null")
        self.assertEqual(self.run_qpipe("verify", "null").returncode, 0)

    def test_a_head_that_is_not_the_embedding(self):
        self.write_model()
        want = self.logits("want.safetensors")
        self.config["tie_word_embeddings"] = True
        self.write_model()
        self.assertEqual(self.logits("both.safetensors"), want)
        self.assertIn("'lm_head.weight' differs", self.quantize())
        self.assertIs(self.output_config()["tie_word_embeddings"], False)
        self.assertIn("lm_head.weight", header_of(self.path + "/out/model.safetensors"))

    def test_an_adapter(self):
        self.write_model()
        with open(self.path + "/model/adapter_config.json", "w") as f:
            f.write('{"peft_type": "LORA"}')
        self.expect_fault(self.quantize(code=65), "adapter", "merge")

    def test_samples_beyond_the_context(self):
        self.write_model()
        self.assertNotIn("max_position_embeddings", self.quantize())
        self.config["max_position_embeddings"] = 16
        self.write_model()
        self.assertIn("max_position_embeddings = 16", self.quantize("output.path=short"))

    # --- hostile

    def test_many_tensors(self):
        """Time that grows with their number alone; it was a minute and a half for 40 000."""
        for i in range(60000):
            self.tensors[f"extra.{i}.weight"] = ([0], array.array("f"))
        self.write_model()
        begin = time.time()
        self.quantize("quantize.method=rtn")
        self.assertEqual(self.run_qpipe("verify", "out", "--original", "model").returncode, 0)
        self.assertLess(time.time() - begin, 100)
        self.assertEqual(len(header_of(self.path + "/out/model.safetensors")) > 60000, True)

    def test_a_name_that_cannot_be_shown(self):
        self.tensors["\x1b[2J\nqpipe: error: forged"] = ([1], array.array("f", [0]))
        self.write_model()
        stderr = self.quantize(code=65)
        self.assertEqual(len(stderr.splitlines()), 1, stderr)
        self.assertNotIn("\x1b", stderr)

    def test_patterns_of_a_checkpoint(self):
        self.write_model()
        self.quantize("quantize.method=rtn")
        config = self.output_config()
        for pattern, code in (("(" * 40000 + ")" * 40000, 0), ("(" * 40000, 65), ("(([a-z._0-9]+)+)+!", 0), ("+:(?!.*visual).*", 0), ("-:.*nothing", 0), ("(?<=a)b", 65)):
            config["quantization_config"]["dynamic"] = {pattern: {}}
            for name, value in (("config.json", config), ("quantize_config.json", config["quantization_config"])):
                with open(f"{self.path}/out/{name}", "w") as f:
                    json.dump(value, f)
            begin = time.time()
            result = self.run_qpipe("verify", "out")
            self.assertLess(time.time() - begin, 20)
            self.assertEqual(result.returncode, code, result.stderr)
            self.assertEqual("is no regular expression" in result.stderr, code == 65, result.stderr)
        self.expect_fault(self.quantize('quantize.overrides=[{match="(a)\\\\1", skip=true}]', code=78), "no regular expression")

    def test_sizes(self):
        self.write_model()
        for key, value in (("vocab_size", 10**18), ("num_hidden_layers", 10**9), ("hidden_size", 2**53 + 1), ("intermediate_size", -1)):
            config = dict(self.config)
            config[key] = value
            with open(self.path + "/model/config.json", "w") as f:
                json.dump(config, f)
            self.expect_fault(self.quantize(code=65), key)


if __name__ == "__main__":
    QPIPE = os.path.abspath(sys.argv[1])
    MPIEXEC = sys.argv[2] if len(sys.argv) > 2 else "mpirun"
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
