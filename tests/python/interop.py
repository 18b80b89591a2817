"""What the interop tests share: quantize a model with qpipe, let a peer's own loader read the folder, compare the logits.

    PEERS/bin/python tests/python/FORMAT_interop.py QPIPE GOLDEN SHARED [SETTING...]                   tiny random models
    PEERS/bin/python tests/python/FORMAT_interop.py QPIPE GOLDEN SHARED [SETTING...] --model FOLDER    SmolLM2 (scripts/fetch_smollm2.py)

`qpipe eval --logits` computes in float32 on the CPU with the weights that the folder's bytes stand for. A packing fault shows as an error
near 1; each comparison's bound says what the peer's arithmetic leaves. With --model, the few tokens come from the books of data/, the
original's logits from transformers in float32, and without the folder the exit code is 77 (skipped)."""
import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TORCHDYNAMO_DISABLE"] = "1"  # GPTQModel compiles its dequantization, a minute for each model

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402

FIRST_MODEL = "llama-mha"  # gets every setting
FLOAT32 = 5e-5  # leaves up to 5e-6 after SmolLM2's thirty layers
BOOKS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "data")


@dataclass
class Setting:
    options: list  # of qpipe, as "section.key=value"
    config: dict = field(default_factory=dict)  # what quantization_config must hold; nested tables only name what is looked at
    other_models: bool = False  # tried on the other models, too
    smollm2: bool = False  # and on SmolLM2


@dataclass
class Model:
    folder: str
    calibration: str  # token ids `calib` [samples, seqlen]
    reference: str  # `input_ids` and the original's `logits` [samples, seqlen, vocab]


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


def quantize(qpipe, model, options, output):
    config = output + ".toml"
    samples, seqlen = load_file(model.calibration)["calib"].shape
    with open(config, "w") as f:
        f.write(f"""[model]
path = "{model.folder}"
[calibration]
data = "{model.calibration}"
dataset = "calib"
samples = {samples}
seqlen = {seqlen}
[parallel]
backend = "cpu"
[output]
path = "{output}"
[run]
progress = "none"
""")
    quiet([qpipe, config] + [word for option in options for word in ("--set", option)])


def qpipe_logits(qpipe, folder, tokens, seqlen):
    """[samples, seqlen, vocab]"""
    output = folder + ".logits.safetensors"
    quiet([qpipe, "eval", "--model", folder, "--data", tokens, "--seqlen", str(seqlen), "--backend", "cpu", "--logits", output])
    return load_file(output)["logits"]


def logits_of(model, input_ids):
    with torch.no_grad():
        return model(input_ids=input_ids).logits.float()


def float32_model(folder, tensors):
    """The folder's architecture, unquantized, with these tensors."""
    with open(os.path.join(folder, "config.json")) as f:
        config = json.load(f)
    del config["quantization_config"]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32).eval()
    missing, unexpected = model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=False)
    if unexpected or set(missing) - set(model._tied_weights_keys or {}):
        raise RuntimeError(f"missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model


def relative_error(value, reference):
    return ((value - reference).norm() / reference.norm()).item()


def bfloat16_bound(model, input_ids, logits):
    """Twice what bfloat16 does to a model whose float32 run gave these logits; the model is bfloat16 afterwards."""
    return 2 * relative_error(logits_of(model.bfloat16(), input_ids), logits)


def differences(found, expected, path=""):
    """What of `expected` is not in `found`."""
    if not isinstance(expected, dict) or not isinstance(found, dict):
        return [] if found == expected else [f"{path} = {found}, expected {expected}"]
    return [d for key in expected for d in differences(found.get(key), expected[key], f"{path}.{key}" if path else key)]


def check(qpipe, model, name, setting, answers, work):
    """One line of figures; throws when something is wrong."""
    folder = os.path.join(work, f"{os.path.basename(model.folder)}-{name}")
    quantize(qpipe, model, setting.options, folder)
    with open(os.path.join(folder, "config.json")) as f:
        config = json.load(f)["quantization_config"]
    configs = {"config.json": config}
    if os.path.exists(os.path.join(folder, "quantize_config.json")):
        with open(os.path.join(folder, "quantize_config.json")) as f:
            configs["quantize_config.json"] = json.load(f)
    for file, found in configs.items():
        if wrong := differences(found, setting.config):
            raise RuntimeError(f"{file}: {'; '.join(wrong)}")
    reference = load_file(model.reference)
    ours = qpipe_logits(qpipe, folder, model.reference, reference["input_ids"].shape[1])
    figures, beyond = [f"{relative_error(ours, reference['logits']):.1e} from the original"], False
    for answer in answers(folder, name, reference["input_ids"]):
        error = relative_error(ours, answer.logits)
        figures.append(f"{error:.1e} from {answer.peer} (bound {answer.bound:.1e})")
        beyond |= not error < answer.bound
    if beyond:
        raise RuntimeError(", ".join(figures))
    return ", ".join(figures)


def tiny(folder, golden):
    return Model(folder, os.path.join(golden, "calib_tiny.safetensors"), os.path.join(folder, "reference.safetensors"))


def windows(folder, book, samples, seqlen):
    """Token ids [samples, seqlen] from inside of a book. Each window begins with the model's first token: without it, a token in the middle
    of the first few becomes the attention's resting place, which rounding decides (in bfloat16 the original is then 35 % off there)."""
    with open(os.path.join(folder, "config.json")) as f:
        first = json.load(f)["bos_token_id"]
    with gzip.open(os.path.join(BOOKS, book), "rt", encoding="utf-8") as f:
        text = f.read()[20000 : 20000 + 16 * samples * seqlen]
    ids = Tokenizer.from_file(os.path.join(folder, "tokenizer.json")).encode(text, add_special_tokens=False).ids
    ids = torch.tensor(ids[: samples * (seqlen - 1)]).reshape(samples, seqlen - 1)
    return torch.cat([torch.full((samples, 1), first), ids], 1)


def smollm2(folder, work):
    """Few tokens: what is compared is the format. Tells how far the original itself is from its float32 run when it runs in bfloat16."""
    model = Model(folder, os.path.join(work, "calib.safetensors"), os.path.join(work, "reference.safetensors"))
    input_ids = windows(folder, "persuasion.txt.gz", 2, 64)
    float32, bfloat16 = (
        logits_of(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), input_ids) for dtype in (torch.float32, torch.bfloat16)
    )
    save_file({"calib": windows(folder, "emma.txt.gz", 4, 32)}, model.calibration)
    save_file({"input_ids": input_ids, "logits": float32}, model.reference)
    return model, f"the original in bfloat16 is {relative_error(bfloat16, float32):.1e} from its float32 run"


def main(settings, other_models, answers):
    """answers(folder, name, input_ids) gives the peer's Answers. Returns the exit code."""
    parser = argparse.ArgumentParser()
    for argument in ("qpipe", "golden", "shared"):
        parser.add_argument(argument)
    parser.add_argument("names", nargs="*", metavar="SETTING")
    parser.add_argument("--model", help="folder of SmolLM2, in place of the tiny models")
    arguments = parser.parse_args()
    if arguments.model and not os.path.exists(os.path.join(arguments.model, "model.safetensors")):
        print(f"{arguments.model}: no model there; scripts/fetch_smollm2.py makes it")
        return 77
    chosen = {name: settings[name] for name in arguments.names or settings}
    results, failures = [], 0
    with tempfile.TemporaryDirectory() as work:
        if arguments.model:
            model, note = smollm2(arguments.model, work)
            results.append(note)
            cases = [(model, name) for name in chosen if settings[name].smollm2]
        else:
            cases = [(tiny(os.path.join(arguments.golden, "models", FIRST_MODEL), arguments.golden), name) for name in chosen]
            for other in other_models:
                folder = os.path.join(arguments.shared, "oracles", "models", other)
                if os.path.isdir(folder):
                    cases += [(tiny(folder, arguments.golden), name) for name in chosen if settings[name].other_models]
        for model, name in cases:
            what = f"{os.path.basename(os.path.normpath(model.folder))} {name}"
            try:
                results.append(f"ok      {what}: {check(arguments.qpipe, model, name, settings[name], answers, work)}")
            except Exception as error:  # each case is told
                failures += 1
                results.append(f"FAILED  {what}: {error}")
    print("\n".join(["", *results, f"{len(cases)} cases, {failures} failures"]))
    return 1 if failures or not cases else 0
