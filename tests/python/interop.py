"""What the interop tests share: quantize tiny models with qpipe, let a peer's own loader read the folder, compare the logits.

`qpipe eval --logits` computes in float32 on the CPU with the weights that the folder's bytes stand for. A packing fault shows as an error
near 1; each comparison's bound says what the peer's arithmetic leaves."""
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

FIRST_MODEL = "llama-mha"  # gets every setting


@dataclass
class Setting:
    options: list  # of qpipe, as "section.key=value"
    config: dict = field(default_factory=dict)  # what quantization_config must hold; nested tables only name what is looked at
    other_models: bool = False  # tried on the other models, too


@dataclass
class Answer:
    """Logits that a peer computes from the folder, and how far qpipe's may be: |qpipe - peer| / |peer|."""
    peer: str
    logits: torch.Tensor
    bound: float


def quiet(command):
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if run.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit {run.returncode}\n{run.stdout}")


def quantize(qpipe, model, calibration, options, output):
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
    quiet([qpipe, config] + [word for option in options for word in ("--set", option)])


def qpipe_logits(qpipe, folder, tokens):
    """[samples, seqlen, vocab]"""
    output = folder + ".logits.safetensors"
    quiet([qpipe, "eval", "--model", folder, "--data", tokens, "--seqlen", "40", "--backend", "cpu", "--logits", output])
    return load_file(output)["logits"]


def logits_of(model, input_ids):
    with torch.no_grad():
        return model(input_ids=input_ids).logits.float()


def relative_error(value, reference):
    return ((value - reference).norm() / reference.norm()).item()


def differences(found, expected, path=""):
    """What of `expected` is not in `found`."""
    if not isinstance(expected, dict) or not isinstance(found, dict):
        return [] if found == expected else [f"{path} = {found}, expected {expected}"]
    return [d for key in expected for d in differences(found.get(key), expected[key], f"{path}.{key}" if path else key)]


def check(qpipe, model, calibration, name, setting, answers, work):
    """One line of figures; throws when something is wrong."""
    folder = os.path.join(work, f"{os.path.basename(model)}-{name}")
    quantize(qpipe, model, calibration, setting.options, folder)
    with open(os.path.join(folder, "config.json")) as f:
        config = json.load(f)["quantization_config"]
    configs = {"config.json": config}
    if os.path.exists(os.path.join(folder, "quantize_config.json")):
        with open(os.path.join(folder, "quantize_config.json")) as f:
            configs["quantize_config.json"] = json.load(f)
    for file, found in configs.items():
        if wrong := differences(found, setting.config):
            raise RuntimeError(f"{file}: {'; '.join(wrong)}")
    tokens = os.path.join(model, "reference.safetensors")
    reference = load_file(tokens)
    ours = qpipe_logits(qpipe, folder, tokens)
    figures, beyond = [f"{relative_error(ours, reference['logits']):.1e} from the original"], False
    for answer in answers(folder, name, reference["input_ids"]):
        error = relative_error(ours, answer.logits)
        figures.append(f"{error:.1e} from {answer.peer} (bound {answer.bound:.0e})")
        beyond |= not error < answer.bound
    if beyond:
        raise RuntimeError(", ".join(figures))
    return ", ".join(figures)


def main(settings, other_models, answers):
    """QPIPE GOLDEN SHARED [NAME...] on the command line; answers(folder, name, input_ids) gives the peer's Answers. Returns the exit code."""
    qpipe, golden, shared = sys.argv[1:4]
    chosen = sys.argv[4:] or list(settings)
    cases = [(os.path.join(golden, "models", FIRST_MODEL), name) for name in chosen]
    for model in other_models:
        folder = os.path.join(shared, "oracles", "models", model)
        if os.path.isdir(folder):
            cases += [(folder, name) for name in chosen if settings[name].other_models]
    calibration = os.path.join(golden, "calib_tiny.safetensors")
    results, failures = [], 0
    with tempfile.TemporaryDirectory() as work:
        for model, name in cases:
            what = f"{os.path.basename(model)} {name}"
            try:
                results.append(f"ok      {what}: {check(qpipe, model, calibration, name, settings[name], answers, work)}")
            except Exception as error:  # each case is told
                failures += 1
                results.append(f"FAILED  {what}: {error}")
    print("\n".join(["", *results, f"{len(cases)} cases, {failures} failures"]))
    return 1 if failures else 0
