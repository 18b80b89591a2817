#!/usr/bin/env python3
"""GPTQ or AWQ by a peer, llm-compressor, on the weights and tokens that qpipe is measured on: time, memory, and perplexity.

    python3 tests/bench/peer.py MODEL TOKENS [--method awq|gptq] [--site FOLDER] [--group-size 64] [--symmetric] [--batch 16] [--samples 0]
                                [--dtype float32|bfloat16] [--save FOLDER] [--ignore "re:.*mlp.gate$"]

MODEL is a Hugging Face folder; TOKENS a safetensors file with token ids `calib` (or `input_ids`) and perhaps `eval` [windows, length]. The peer
quantizes the linears of the decoder layers to 4 bits on all calibration windows. With `eval` its fake-quantized model is evaluated in memory, each
window alone: exp of the mean loss; of the original and of rounding to nearest by the same peer as well. Without, only the time counts, as in
tests/bench/llama7b.py, whose model and tokens serve:

    python3 tests/bench/peer.py /tmp/qpipe-bench/llama7b-8 /tmp/qpipe-bench/tokens-128x2048.safetensors --method gptq --symmetric --group-size 128 \\
                                --batch 1 --dtype bfloat16 --save /tmp/qpipe-bench/peer-out

Needs torch and transformers; --site is a folder with what else is missing, for example
    pip install --no-deps --target FOLDER llmcompressor==0.14.0.1 compressed-tensors==0.19.0 loguru
`datasets`, which the peer imports but does not need for token ids, is replaced by a stand-in where it is not installed."""
import argparse
import importlib.machinery
import importlib.util
import sys
import time
import types


def stand_in_for(name):
    """A module from which any name can be imported: an empty class."""
    if importlib.util.find_spec(name) is not None:
        return
    for module_name in (name, name + ".formatting", name + ".formatting.formatting"):
        module = types.ModuleType(module_name)
        module.__spec__ = importlib.machinery.ModuleSpec(module_name, None)
        module.__path__ = []
        module.__version__ = "0"
        module.__getattr__ = lambda key: type(key, (), {}) if not key.startswith("__") else (_ for _ in ()).throw(AttributeError(key))
        sys.modules[module_name] = module


def perplexity(model, windows):
    import torch

    loss, count = 0.0, 0
    with torch.no_grad():
        for window in windows:
            ids = window[None].to(model.device)
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].double()
            loss += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            count += ids.shape[1] - 1
    return float(torch.exp(torch.tensor(loss / count, dtype=torch.float64)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("tokens")
    parser.add_argument("--method", choices=("awq", "gptq"), default="awq")
    parser.add_argument("--site", help="folder with llmcompressor and what it needs")
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--symmetric", action="store_true")
    parser.add_argument("--batch", type=int, default=16, help="calibration windows at once")
    parser.add_argument("--samples", type=int, default=0, help="calibration windows; 0: all")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--ignore", nargs="*", default=[], help="modules beside lm_head that stay: routers")
    parser.add_argument("--save", help="folder for the packed checkpoint")
    args = parser.parse_args()
    if args.site:
        sys.path.append(args.site)
    stand_in_for("datasets")

    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor import __version__, oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = False
    if device == "cpu":
        torch.Tensor.pin_memory = lambda self, *args, **kwargs: self  # the peer pins memory, GPU or not
    tokens = {name: ids.long() for name, ids in load_file(args.tokens).items()}
    calibration = tokens["calib" if "calib" in tokens else "input_ids"][: args.samples or None]
    weights = QuantizationArgs(num_bits=4, type="int", symmetric=args.symmetric, strategy="group", group_size=args.group_size)
    scheme = {"config_groups": {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}, "ignore": ["lm_head", *args.ignore]}
    recipes = {"rtn": lambda: [QuantizationModifier(**scheme)],
               "awq": lambda: [AWQModifier(), QuantizationModifier(**scheme)],
               "gptq": lambda: [GPTQModifier(**scheme, actorder=None)]}

    def load():
        return AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype)).to(device).eval()

    def quantized(method):
        """The model, and the seconds and peak GPU memory (GiB) that it took."""
        model = load()
        batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in calibration.split(args.batch)]
        loader = torch.utils.data.DataLoader(batches, batch_size=None)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.time()
        oneshot(model=model, dataset=loader, recipe=recipes[method](), num_calibration_samples=len(calibration))
        seconds = time.time() - start
        return model, seconds, torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0

    kind = "symmetric" if args.symmetric else "asymmetric"
    text = f"llm-compressor {__version__} on {device}, {args.method}, 4 bit {kind}, group {args.group_size}, {len(calibration)} x {calibration.shape[1]} tokens"
    if "eval" in tokens:
        print(f"{text}: original {perplexity(load(), tokens['eval']):.3f}", flush=True)
        print(f"{text}: RTN {perplexity(quantized('rtn')[0].to(device), tokens['eval']):.3f}", flush=True)
    model, seconds, memory = quantized(args.method)
    print(f"{text}: {seconds:.1f} s, {memory:.1f} GiB", flush=True)
    if "eval" in tokens:
        print(f"{text}: {args.method} {perplexity(model.to(device), tokens['eval']):.3f}", flush=True)
    if args.save:
        start = time.time()
        model.save_pretrained(args.save, save_compressed=True)
        print(f"{text}: saved in {time.time() - start:.1f} s")


if __name__ == "__main__":
    main()
