#!/usr/bin/env python3
"""AWQ by a peer, llm-compressor, on the model and tokens that qpipe's AWQ is judged on, and the perplexity of what it makes.

    python3 tests/bench/peer_awq.py MODEL TOKENS [--site FOLDER] [--group-size 64] [--symmetric] [--batch 16] [--samples 0]

MODEL is a Hugging Face folder, TOKENS a safetensors file with token ids `calib` and `eval` [windows, length]. The peer scales and quantizes the
linears of the decoder layers to 4 bits on all windows of `calib`; its fake-quantized model is evaluated in memory, in float32, each window of `eval`
alone: exp of the mean loss. Prints one line: the perplexities of the original, of rounding to nearest by the same peer, and of its AWQ.

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
    parser.add_argument("--site", help="folder with llmcompressor and what it needs")
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--symmetric", action="store_true")
    parser.add_argument("--batch", type=int, default=16, help="calibration windows at once")
    parser.add_argument("--samples", type=int, default=0, help="calibration windows; 0: all")
    args = parser.parse_args()
    if args.site:
        sys.path.append(args.site)
    stand_in_for("datasets")

    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor import __version__, oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = False
    if device == "cpu":
        torch.Tensor.pin_memory = lambda self, *args, **kwargs: self  # the peer pins memory, GPU or not
    tokens = {name: ids.long() for name, ids in load_file(args.tokens).items()}
    calibration = tokens["calib"][: args.samples or None]

    def load():
        return AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).to(device).eval()

    def quantized(*transforms):
        model = load()
        weights = QuantizationArgs(num_bits=4, type="int", symmetric=args.symmetric, strategy="group", group_size=args.group_size)
        scheme = QuantizationScheme(targets=["Linear"], weights=weights)
        rounding = QuantizationModifier(config_groups={"group_0": scheme}, ignore=["lm_head"])
        batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in calibration.split(args.batch)]
        loader = torch.utils.data.DataLoader(batches, batch_size=None)
        oneshot(model=model, dataset=loader, recipe=[*transforms, rounding], num_calibration_samples=len(calibration))
        return perplexity(model.to(device), tokens["eval"])

    original = perplexity(load(), tokens["eval"])
    rtn = quantized()
    start = time.time()
    awq = quantized(AWQModifier())
    seconds = time.time() - start
    kind = "symmetric" if args.symmetric else "asymmetric"
    print(f"llm-compressor {__version__} on {device}, 4 bit {kind}, group {args.group_size}, {len(calibration)} x {calibration.shape[1]} tokens: "
          f"original {original:.3f}, RTN {rtn:.3f}, AWQ {awq:.3f} ({seconds:.0f} s)")


if __name__ == "__main__":
    main()
