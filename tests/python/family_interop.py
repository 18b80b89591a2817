#!/usr/bin/env python3
"""Every variant of the oracles: quantized by qpipe with GPTQ, AWQ and NF4, read back by qpipe, and read by the peers.

    PEERS/bin/python tests/python/family_interop.py QPIPE SHARED [VARIANT...] [--part 1/4] [--methods gptq,awq,nf4]

For each variant, `qpipe eval` of the original against the reference's logits; then, for each method, `qpipe eval` of the
quantized folder against
  - the weights that the peer's own unpacking gives, run in float32 by the reference implementation (the sharp comparison), and
  - the folder as the peer loads it, where VARIANTS says that one does (the loose one; the peers compute in half precision).
The reference implementation is transformers. It lacks deci, nemotron-nas, internlm2 and baichuan, which are Llama with rows put
in order, repeated, or left out, and bailing_moe, which is GLM-4.5 under other names: see AS_ANOTHER. Where it wants experts in
stacks, they are put together again: see stacked. VARIANTS is the list of what qpipe must read: one that it refuses is a failure."""
import argparse
import copy
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

import interop
from awq_interop import autoawq_packing_utils
from interop import Answer, relative_error
from variants import VARIANTS

import bitsandbytes.functional
import torch
import transformers
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from safetensors.torch import load_file, save_file

FLOAT16 = 1e-2  # as in the other interop tests: half precision leaves 2e-3 to 3e-3
ORIGINAL = 1e-4  # qpipe's float32 against the reference's


by_rows = bitsandbytes.functional.dequantize_4bit


def dequantize_4bit(weight, state, *more, **named):
    """As CUDA's kernels read it: blocks lie in the flattened weight, also across rows. That for CPUs begins a block with each row."""
    flat = copy.copy(state)
    flat.shape = torch.Size((state.shape.numel(),))
    return by_rows(weight.reshape(-1, 1), flat, *more, **named).reshape(state.shape)


bitsandbytes.functional.dequantize_4bit = dequantize_4bit  # transformers takes it from there


def tensors_of(folder):
    names = sorted(n for n in os.listdir(folder) if n.startswith("model") and n.endswith(".safetensors"))
    return {name: tensor for file in names for name, tensor in load_file(os.path.join(folder, file)).items()}


def predicts_more_tokens(name, config):
    """Whether a tensor is of a layer behind the decoder's, which no decoder runs."""
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    return layer is not None and int(layer.group(1)) >= config["num_hidden_layers"]


def config_of(folder):
    with open(os.path.join(folder, "config.json")) as f:
        return json.load(f)


# The weights that each format's bytes stand for: module -> float32 [out, in]. Parts of quantized linears leave `tensors`.


def packed(tensors, config):
    for module in [n.removesuffix(".weight_packed") for n in tensors if n.endswith(".weight_packed")]:
        codes, scale, shape = (tensors.pop(f"{module}.weight_{p}") for p in ("packed", "scale", "shape"))
        rows, columns = shape.tolist()
        code = unpack_from_int32(codes, 4, torch.Size((rows, columns))).float()
        zero = tensors.pop(f"{module}.weight_zero_point", None)
        if zero is not None:
            zero = unpack_from_int32(zero, 4, torch.Size((rows, scale.shape[1])), packed_dim=0).float()
            code -= zero.repeat_interleave(columns // scale.shape[1], 1)
        yield module, code * scale.float().repeat_interleave(columns // scale.shape[1], 1)


def awq(tensors, config):
    packing = autoawq_packing_utils()
    group = config["quantization_config"]["group_size"]
    for module in [n.removesuffix(".qweight") for n in tensors if n.endswith(".qweight")]:
        code, zero, scale = (tensors.pop(f"{module}.{part}") for part in ("qweight", "qzeros", "scales"))
        code, zero = packing.reverse_awq_order(*packing.unpack_awq(code, zero, 4), 4)
        code, zero = code & 15, zero & 15
        scale = scale.float().repeat_interleave(group, 0)
        yield module, ((code - zero.repeat_interleave(group, 0)).float() * scale).T.contiguous()


def gptq(tensors, config):
    """By GPTQModel's own linear, one at a time."""
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    for module in [n.removesuffix(".qweight") for n in tensors if n.endswith(".qweight")]:
        parts = {p: tensors.pop(f"{module}.{p}") for p in ("qweight", "qzeros", "scales", "g_idx")}
        rows, columns = parts["scales"].shape[1], parts["qweight"].shape[0] * 8
        linear = TorchLinear(
            bits=4, group_size=32, sym=True, desc_act=False, in_features=columns, out_features=rows, bias=False
        )
        parts["scales"] = parts["scales"].float()  # products as wide as those of the float32 run
        parts["qzeros"] = parts["qzeros"] + 0x11111111  # a symmetric grid: 7 as format v1 stores it, 8 in GPTQModel's memory
        for part, value in parts.items():
            setattr(linear, part, value)
        linear.post_init()
        yield module, linear.dequantize_weight().float().T.contiguous()


def bitsandbytes_4bit(tensors, config):
    for name in [n.removesuffix(".absmax") for n in tensors if n.endswith(".weight.absmax")]:
        state = {k[len(name) + 1 :]: tensors.pop(k) for k in list(tensors) if k.startswith(name + ".")}
        state = bitsandbytes.functional.QuantState.from_dict(state, device=torch.device("cpu"))
        weight = bitsandbytes.functional.dequantize_4bit(tensors.pop(name), state)
        yield name.removesuffix(".weight"), weight.float()


UNPACK = {"compressed-tensors": packed, "awq": awq, "gptq": gptq, "bitsandbytes": bitsandbytes_4bit}


def dequantized(folder, transposed):
    """A folder's tensors in float32, as its original stores them, and how many of them were quantized."""
    tensors, config = tensors_of(folder), config_of(folder)
    weights = dict(UNPACK[config["quantization_config"]["quant_method"]](tensors, config))
    for module, weight in weights.items():
        tensors[f"{module}.weight"] = weight.T.contiguous() if transposed else weight
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}, len(weights)


# Families that transformers lacks, as Llama or another: each takes the configuration and the tensors, and gives that one's
# configuration, its tensors, and {(layer, "self_attn" or "mlp"): weight of the one linear in its place}.


def llama_config(config, **more):
    keys = ("vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads rms_norm_eps "
            "max_position_embeddings rope_theta rope_scaling tie_word_embeddings bos_token_id eos_token_id pad_token_id").split()  # fmt: skip
    return {k: config[k] for k in keys if config.get(k) is not None} | {"model_type": "llama"} | more


def repeat_kv(weight, config, head_dim):
    """One kv head for every head."""
    heads = config["num_attention_heads"]
    weight = weight.view(-1, head_dim, weight.shape[1])
    return weight.repeat_interleave(heads // weight.shape[0], 0).flatten(0, 1)


def deci(config, tensors):
    head_dim, heads = config["hidden_size"] // config["num_attention_heads"], config["num_attention_heads"]
    for name in tensors:
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            tensors[name] = repeat_kv(tensors[name], config, head_dim)
    return llama_config(config, num_key_value_heads=heads), tensors, {}


def nemotron_nas(config, tensors):
    """Blocks without attention or MLP have zeros there, narrow MLPs are filled up with zeros."""
    _, tensors, _ = deci(config, tensors)
    hidden, heads, linears = config["hidden_size"], config["num_attention_heads"], {}
    width = max(t.shape[0] for n, t in tensors.items() if n.endswith("gate_proj.weight"))
    for layer in range(config["num_hidden_layers"]):
        base = f"model.layers.{layer}"
        for part in ("self_attn", "mlp"):
            if (weight := tensors.pop(f"{base}.{part}.linear.weight", None)) is not None:
                linears[layer, part] = weight
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors.setdefault(f"{base}.self_attn.{name}.weight", torch.zeros(hidden, hidden))
        for name, axis in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
            shape = [width, hidden] if axis == 0 else [hidden, width]
            full, stored = torch.zeros(shape), tensors.get(f"{base}.mlp.{name}.weight")
            if stored is not None:
                full.narrow(axis, 0, stored.shape[axis]).copy_(stored)
            tensors[f"{base}.mlp.{name}.weight"] = full
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors.setdefault(f"{base}.{name}.weight", torch.ones(hidden))
    return llama_config(config, num_key_value_heads=heads, intermediate_size=width), tensors, linears


def internlm2(config, tensors):
    """wqkv has, for each kv head, its q heads, k and v. Dynamic NTK begins beyond max_position_embeddings."""
    hidden, heads, groups = (config[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    names = {
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w3": "mlp.up_proj",
        "feed_forward.w2": "mlp.down_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "model.tok_embeddings": "model.embed_tokens",
        "output.weight": "lm_head.weight",
    }
    found = {}
    for name, tensor in tensors.items():
        if "wqkv" in name:
            rows = tensor.view(groups, heads // groups + 2, hidden // heads, hidden)
            base = name.replace("attention.wqkv.weight", "self_attn.")
            parts = {"q": rows[:, :-2], "k": rows[:, -2], "v": rows[:, -1]}
            found |= {f"{base}{k}_proj.weight": v.reshape(-1, hidden) for k, v in parts.items()}
            continue
        for old, new in names.items():
            name = name.replace(old, new)
        found[name] = tensor
    return llama_config(config) | {"rope_scaling": None}, found, {}


def baichuan(config, tensors):
    for name in [n for n in tensors if "W_pack" in n]:
        for part, rows in zip("qkv", tensors.pop(name).chunk(3)):
            tensors[name.replace("W_pack", part + "_proj")] = rows.contiguous()
    return llama_config(config, num_key_value_heads=config["num_attention_heads"]), tensors, {}


def bailing(config, tensors):
    """query_key_value holds q, k and v."""
    names = {
        "model.word_embeddings": "model.embed_tokens",
        "attention.dense": "self_attn.o_proj",
        "attention.query_layernorm": "self_attn.q_norm",
        "attention.key_layernorm": "self_attn.k_norm",
        "gate.expert_bias": "gate.e_score_correction_bias",
    }
    q, kv = (config[k] * config["head_dim"] for k in ("num_attention_heads", "num_key_value_heads"))
    found = {}
    for name, tensor in tensors.items():
        if "query_key_value" in name:
            base = name.replace("attention.query_key_value.weight", "self_attn.")
            found |= {f"{base}{k}_proj.weight": v for k, v in zip("qkv", tensor.split([q, kv, kv]))}
            continue
        for old, new in names.items():
            name = name.replace(old, new)
        found[name] = tensor
    counts = {"n_routed_experts": config["num_experts"], "n_shared_experts": config["num_shared_experts"]}
    return config | counts | {"model_type": "glm4_moe", "attention_bias": False}, found, {}


def llama4(config, tensors):
    """Its class stops without images."""
    text = config["text_config"] | {"architectures": ["Llama4ForCausalLM"]}
    begin = "language_model."
    return text, {n.removeprefix(begin): t for n, t in tensors.items() if n.startswith(begin)}, {}


AS_ANOTHER = {
    "deci": deci,
    "nemotron-nas": nemotron_nas,
    "internlm2": internlm2,
    "baichuan": baichuan,
    "bailing_moe": bailing,
    "llama4": llama4,
}

STACKS = (
    (".experts.gate_up_proj", ".experts", ("gate_proj", "up_proj"), ".weight"),
    (".experts.down_proj", ".experts", ("down_proj",), ".weight"),
    (".experts.gate_up_proj_bias", ".experts", ("gate_proj", "up_proj"), ".bias"),
    (".experts.down_proj_bias", ".experts", ("down_proj",), ".bias"),
    (".input_linear.weight", ".experts", ("gate_proj", "up_proj"), ".weight"),
    (".output_linear.weight", ".experts", ("down_proj",), ".weight"),
    (".moe.gate_proj.weight", ".moe.experts", ("gate_proj",), ".weight"),
    (".moe.up_proj.weight", ".moe.experts", ("up_proj",), ".weight"),
    (".moe.down_proj.weight", ".moe.experts", ("down_proj",), ".weight"),
)
INPUT_FIRST = ("gpt_oss", "llama4", "llama4_text", "qwen3_vl_moe")


def stacked(folder, tensors, family):
    """Experts as their original has them, where that is in stacks."""
    for name, original in tensors_of(folder).items():
        for end, experts, parts, kind in STACKS:
            base = name.removesuffix(end) + experts
            if name in tensors or not name.endswith(end) or f"{base}.0.{parts[0]}{kind}" not in tensors:
                continue
            each = []
            for expert in range(len(original)):
                rows = [tensors.pop(f"{base}.{expert}.{part}{kind}") for part in parts]
                each.append(torch.stack(rows, 1).flatten(0, 1) if family == "gpt_oss" and len(rows) == 2 else torch.cat(rows))
            stack = torch.stack(each)
            tensors[name] = stack.transpose(1, 2) if family in INPUT_FIRST and kind == ".weight" else stack
    return tensors


class OneLinear(torch.nn.Module):
    """In the place of an attention, which gives a pair, or of an MLP."""

    def __init__(self, weight, pair):
        super().__init__()
        self.weight, self.pair = weight, pair

    def forward(self, hidden_states, **_):
        y = hidden_states @ self.weight.T
        return (y, None) if self.pair else y


def architecture(config):
    """The class that reads a folder: vision-language models have one of their own."""
    name = config["architectures"][0]
    vision = name.endswith("ForConditionalGeneration")
    return getattr(transformers, name) if vision else transformers.AutoModelForCausalLM


def float32_logits(folder, variant, tensors, input_ids, work):
    """The reference implementation with these tensors under the folder's names."""
    config, linears = config_of(folder), {}
    config.pop("quantization_config", None)
    family, loader = config["model_type"], None
    if family in AS_ANOTHER:
        config, tensors, linears = AS_ANOTHER[family](config, dict(tensors))
        loader = transformers.AutoModelForCausalLM
    loader = loader or architecture(config)
    source = os.path.join(work, "float32")
    os.makedirs(source, exist_ok=True)
    for section in (config, config.get("text_config", {})):
        section.pop("torch_dtype", None)
        section.pop("dtype", None)
    with open(os.path.join(source, "config.json"), "w") as f:
        json.dump(config, f)
    save_file({n: t.contiguous() for n, t in tensors.items()}, os.path.join(source, "model.safetensors"), {"format": "pt"})
    model, info = loader.from_pretrained(
        source, dtype=torch.float32, attn_implementation=variant.attention, output_loading_info=True
    )
    gone = {f"model.layers.{layer}.{part}." for layer, part in linears}
    missing = [n for n in info["missing_keys"] if not n.startswith(tuple(gone) or "\0")]
    unexpected = [n for n in info["unexpected_keys"] if not predicts_more_tokens(n, config)]
    if missing or unexpected or info["mismatched_keys"]:
        raise RuntimeError(f"missing {missing}, unexpected {unexpected}, {info['mismatched_keys']}")
    for (layer, part), weight in linears.items():
        setattr(model.model.layers[layer], part, OneLinear(weight, part == "self_attn"))
    return interop.logits_of(model.eval(), input_ids)


# The folder as a peer loads it


def as_transformers_loads(folder, **more):
    config = transformers.AutoConfig.from_pretrained(folder)
    if config.quantization_config["quant_method"] == "awq":
        config.quantization_config["backend"] = "torch_awq"  # the default one is compiled at first, for minutes
    return architecture(config_of(folder)).from_pretrained(folder, config=config, device_map="cpu", **more).eval()


def compressed_tensors_linear(module):
    return hasattr(module, "quantization_scheme")


def gptqmodel_linear(module):
    return any("qweight" == name for name, _ in module.named_buffers(recurse=False))


def bitsandbytes_linear(module):
    return isinstance(module, bitsandbytes.nn.Linear4bit)


LOADERS = {
    "ct": ("transformers with compressed-tensors", compressed_tensors_linear),
    "awq": ("transformers with GPTQModel's AWQ", gptqmodel_linear),
    "bnb": ("transformers with bitsandbytes", bitsandbytes_linear),
}


def loaded(folder, loader, input_ids):
    """Logits of the folder as a peer loads it, and how many quantized linears the peer found."""
    if loader.startswith("gptqmodel"):
        from gptqmodel import BACKEND, GPTQModel

        backend, kind = (BACKEND.TORCH_AWQ, "AwqTorchLinear") if loader.endswith("awq") else (BACKEND.TORCH, "TorchLinear")
        model = GPTQModel.load(folder, device="cpu", backend=backend, dtype=torch.float16).model
        linears = sum(type(module).__name__ == kind for module in model.modules())
        return linears, [Answer(f"GPTQModel, {linears} linears", interop.logits_of(model, input_ids), FLOAT16)]
    who, linear = LOADERS[loader]
    model = as_transformers_loads(folder, **({"dtype": torch.float32} if loader == "bnb" else {}))
    linears = [module for module in model.modules() if linear(module)]
    who += f", {len(linears)} linears"
    if loader != "bnb":
        return len(linears), [Answer(who, interop.logits_of(model, input_ids), FLOAT16)]
    # Its product on the CPU misreads blocks that span rows, its own as well: those only dequantized (see dequantize_4bit).
    whole_blocks = all(module.in_features % 64 == 0 for module in linears)
    float32 = model.dequantize().float()
    logits = interop.logits_of(float32, input_ids)
    answers = [Answer(f"{who}, dequantized", logits, interop.FLOAT32)]
    if whole_blocks:
        bound = interop.bfloat16_bound(float32, input_ids, logits)
        answers.append(Answer(who, interop.logits_of(as_transformers_loads(folder), input_ids), bound))
    return len(linears), answers


def methods_of(variant):
    """name -> (settings of qpipe, the loader or None)"""
    loaders = variant.loaders.split()
    gptq_format = "gptq" if "gptqmodel" in loaders or variant.transposed else "compressed-tensors"
    group = "quantize.group_size=32"
    methods = {
        "gptq": ([group, f"output.format={gptq_format}"], ("ct", "gptqmodel")),
        "awq": (["quantize.method=awq", group], ("awq", "gptqmodel-awq")),
        "nf4": (["quantize.method=bnb-nf4"], ("bnb",)),
    }
    return {
        name: (settings + variant.options, next((loader for loader in able if loader in loaders), None))
        for name, (settings, able) in methods.items()
    }


def median_error(ours, theirs):
    """Half precision sends a token here and there to other experts; most go to the same."""
    return ((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).median().item()


def compare(ours, answers, mixture):
    """The figures; throws where one is beyond its bound."""
    figures, beyond = [], False
    for answer in answers:
        error_of = median_error if mixture and answer.bound == FLOAT16 else relative_error
        error = error_of(ours, answer.logits)
        figures.append(f"{error:.1e} from {answer.peer} (bound {answer.bound:.1e})")
        beyond |= not error < answer.bound
    if beyond:
        raise RuntimeError(", ".join(figures))
    return ", ".join(figures)


def check_original(qpipe, folder, reference, work):
    """Whether qpipe reads it, and to what logits."""
    output = os.path.join(work, "original.safetensors")
    seqlen = str(reference["input_ids"].shape[1])
    command = [qpipe, "eval", "--model", folder, "--data", os.path.join(folder, "reference.safetensors"), "--seqlen", seqlen]
    run = subprocess.run(
        [*command, "--backend", "cpu", "--logits", output], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if run.returncode != 0:
        last = (run.stdout.strip().splitlines() or [""])[-1]
        raise RuntimeError(f"qpipe does not read it: exit {run.returncode}: {last}")
    return compare(load_file(output)["logits"], [Answer("the reference", reference["logits"], ORIGINAL)], mixture=False)


def check(qpipe, model, variant, method, reference, work):
    settings, loader = methods_of(variant)[method]
    folder = os.path.join(work, f"{os.path.basename(model.folder)}-{method}")
    interop.quantize(qpipe, model, settings, folder)
    ids = reference["input_ids"]
    ours = interop.qpipe_logits(qpipe, folder, model.reference, ids.shape[1])
    tensors, count = dequantized(folder, variant.transposed)
    if count == 0:
        raise RuntimeError("nothing in the folder is quantized")
    tensors = stacked(model.folder, tensors, config_of(folder)["model_type"])
    logits = float32_logits(folder, variant, tensors, ids, work)
    answers = [Answer(f"{count} unpacked linears in float32", logits, interop.FLOAT32)]
    if loader:
        linears, of_loader = loaded(folder, loader, ids)
        answers += of_loader
        if linears != count:
            raise RuntimeError(f"the peer found {linears} quantized linears of {count}")
    figures = compare(ours, answers, variant.mixture)
    return f"{relative_error(ours, reference['logits']):.1e} from the original, {figures}"


def with_changes(folder, variant, work):
    """The folder, with the variant's rope_scaling in its config.json."""
    if not variant.rope_scaling:
        return folder
    changed = shutil.copytree(folder, os.path.join(work, os.path.basename(folder)))
    config = config_of(folder)
    config["rope_scaling"] |= variant.rope_scaling
    os.remove(os.path.join(changed, "config.json"))  # which may be read-only
    with open(os.path.join(changed, "config.json"), "w") as f:
        json.dump(config, f)
    return changed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("qpipe")
    parser.add_argument("shared")
    parser.add_argument("variants", nargs="*", metavar="VARIANT")
    parser.add_argument("--part", default="1/1", help="every n-th variant, from the k-th: k/n")
    parser.add_argument("--methods", default="gptq,awq,nf4")
    args = parser.parse_args()
    models = os.path.join(args.shared, "oracles", "models")
    if not os.path.isdir(models):
        print("no oracles: skipped")
        return 77
    calibration = os.path.join(args.shared, "oracles", "calib_tiny.safetensors")
    part, parts = (int(n) for n in args.part.split("/"))
    names = args.variants or list(VARIANTS)[part - 1 :: parts]
    failures = []

    def tell(kind, what, figures):
        line = f"{kind:7} {what}: {figures}"
        print(line, flush=True)
        if kind == "FAILED":
            failures.append(line)

    for name in names:
        variant, begin = VARIANTS[name], time.time()
        with tempfile.TemporaryDirectory() as work:
            folder = with_changes(os.path.join(models, name), variant, work)
            model = interop.Model(folder, calibration, os.path.join(folder, "reference.safetensors"))
            reference = load_file(model.reference)
            try:
                tell("ok", name, check_original(args.qpipe, folder, reference, work))
            except Exception as error:
                tell("FAILED", name, error)
                continue
            for method in [m for m in methods_of(variant) if m in args.methods.split(",")]:
                try:
                    tell("ok", f"{name} {method}", check(args.qpipe, model, variant, method, reference, work))
                except Exception as error:
                    tell("FAILED", f"{name} {method}", f"{type(error).__name__}: {error}")
        print(f"{name}: {time.time() - begin:.0f} s", flush=True)
    print(f"{len(names)} variants, {len(failures)} failures", *failures, sep="\n")
    return 1 if failures or not names else 0


if __name__ == "__main__":
    sys.exit(main())
