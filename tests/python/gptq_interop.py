#!/usr/bin/env python3
"""GPTQModel loads what qpipe writes and computes the same: gptq_interop.py QPIPE GOLDEN SHARED, run by the Python that has the peers.

Each tiny model is quantized with several settings; the logits of GPTQModel (float16, its plain torch kernel, on the CPU) are compared with those
of `qpipe eval --logits` (float32 on the CPU). A packing fault shows as an error near 1; float16 over three layers gives 2e-3."""
import json
import os
import subprocess
import sys
import tempfile

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402
from gptqmodel import BACKEND, GPTQModel  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

BOUND = 1e-2
# name: options, words that must be in the written quantization_config
SETTINGS = {
    "sym4-g32": (["bits=4", "group_size=32"], {"checkpoint_format": "gptq", "bits": 4, "sym": True}),
    "sym8-channel": (["bits=8", "group_size=-1"], {"checkpoint_format": "gptq", "bits": 8}),
    "asym4-g32": (["bits=4", "group_size=32", "symmetric=false"], {"checkpoint_format": "gptq_v2", "sym": False}),
    "sym3-g32": (["bits=3", "group_size=32"], {"bits": 3}),
    "asym3-g64-mse": (["bits=3", "group_size=64", "symmetric=false", "mse=2.4"], {"checkpoint_format": "gptq_v2", "bits": 3}),
    "sym2-g32": (["bits=2", "group_size=32"], {"bits": 2}),
    "desc-act": (["bits=4", "group_size=32", "desc_act=true"], {"desc_act": True}),
    "static-groups": (["bits=4", "group_size=32", "desc_act=true", "static_groups=true"], {"desc_act": False}),
    "group-aware": (["bits=4", "group_size=32", "act_group_aware=true"], {"desc_act": False}),
    "rtn": (["method=rtn", "bits=4", "group_size=32"], {"bits": 4}),
}
EVERY_SETTING = "llama-mha"
OTHER_MODELS = ["llama", "llama-mha-tied-bias", "mistral", "qwen2", "qwen3", "falcon-7b-style", "falcon-40b-style"]  # each with these:
OTHER_SETTINGS = ["sym4-g32", "asym4-g32"]


def quiet(command):
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if run.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit {run.returncode}\n{run.stdout}")


def quantize(qpipe, model, calibration, settings, output):
    config = output + ".toml"
    with open(config, "w") as f:
        f.write(f"""[model]
path = "{model}"
[calibration]
data = "{calibration}"
dataset = "calib"
samples = 64
seqlen = 48
[parallel]
backend = "cpu"
[output]
path = "{output}"
[run]
progress = "none"
""")
    quiet([qpipe, config] + [word for s in settings for word in ("--set", "quantize." + s)])


def qpipe_logits(qpipe, folder, tokens):
    """[samples, seqlen, vocab]"""
    output = folder + ".logits.safetensors"
    quiet([qpipe, "eval", "--model", folder, "--data", tokens, "--seqlen", "40", "--backend", "cpu", "--logits", output])
    return load_file(output)["logits"]


def peer_logits(folder, input_ids):
    model = GPTQModel.load(folder, device="cpu", backend=BACKEND.TORCH, dtype=torch.float16)
    linears = [name for name, module in model.model.named_modules() if type(module).__name__ == "TorchLinear"]
    if not linears:
        raise RuntimeError("GPTQModel found no quantized linear in the folder")
    with torch.no_grad():
        return model.model(input_ids=input_ids).logits.float(), len(linears)


def relative_error(value, reference):
    return ((value - reference).norm() / reference.norm()).item()


def check(qpipe, model, calibration, name, work):
    """One line of figures; throws when something is wrong."""
    settings, expected = SETTINGS[name]
    output = os.path.join(work, f"{os.path.basename(model)}-{name}")
    quantize(qpipe, model, calibration, settings, output)
    for file, key in (("config.json", "quantization_config"), ("quantize_config.json", None)):
        config = json.load(open(os.path.join(output, file)))
        config = config[key] if key else config
        wrong = {k: config.get(k) for k in expected if config.get(k) != expected[k]}
        if wrong:
            raise RuntimeError(f"{file} says {wrong}, expected {expected}")
    tokens = os.path.join(model, "reference.safetensors")
    reference = load_file(tokens)
    ours = qpipe_logits(qpipe, output, tokens)
    peers, linears = peer_logits(output, reference["input_ids"])
    error = relative_error(ours, peers)
    moved = relative_error(ours, reference["logits"])
    if not error < BOUND:
        raise RuntimeError(f"logits differ by {error:.1e} from GPTQModel's (bound {BOUND:.0e})")
    return f"{linears} linears, logits {error:.1e} from GPTQModel's, {moved:.1e} from the original's"


def main():
    qpipe, golden, shared = sys.argv[1:4]
    cases = [(os.path.join(golden, "models", EVERY_SETTING), name) for name in SETTINGS]
    for model in OTHER_MODELS:
        folder = os.path.join(shared, "oracles", "models", model)
        if os.path.isdir(folder):
            cases += [(folder, name) for name in OTHER_SETTINGS]
    calibration = os.path.join(golden, "calib_tiny.safetensors")
    results, failures = [], 0
    with tempfile.TemporaryDirectory() as work:
        for model, name in cases:
            what = f"{os.path.basename(model)} {name}"
            try:
                results.append(f"ok      {what}: {check(qpipe, model, calibration, name, work)}")
            except Exception as error:  # each case is told
                failures += 1
                results.append(f"FAILED  {what}: {error}")
    print("\n".join(["", *results, f"{len(cases)} cases, {failures} failures"]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
