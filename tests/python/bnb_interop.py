#!/usr/bin/env python3
"""transformers with bitsandbytes loads what qpipe writes: bnb_interop.py QPIPE GOLDEN SHARED, run by the Python that has the peers.

Two answers: the loaded model's weights dequantized by bitsandbytes in a float32 model, and the loaded model as it is, whose CPU kernels work
in bfloat16 whatever the compute type (the original llama-mha and SmolLM2 are 1.6e-2 and 2.2e-2 from their own float32 runs in bfloat16).
Falcon is not among the models: transformers 5.24 leaves its linears (a subclass of torch.nn.Linear) out of bitsandbytes altogether."""
import sys

import interop
from interop import Answer, Setting

import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from transformers import AutoModelForCausalLM

# Blocks of 128 for down_proj alone, whose rows are 128 wide: on the CPU bitsandbytes misreads blocks that span rows, its own as well.
BLOCK128 = ["bnb.block_size=128", "quantize.overrides=[{match = '(q|k|v|o|gate|up)_proj', skip = true}]"]
SETTINGS = {
    "nf4": Setting(["quantize.method=bnb-nf4"], {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, other_models=True, smollm2=True),
    "nf4-double": Setting(
        ["quantize.method=bnb-nf4", "bnb.double_quant=true"], {"bnb_4bit_use_double_quant": True}, other_models=True
    ),
    "nf4-bfloat16-storage": Setting(["quantize.method=bnb-nf4", "bnb.storage=bfloat16"], {"bnb_4bit_quant_storage": "bfloat16"}),
    "nf4-double-block128-float32-storage": Setting(
        ["quantize.method=bnb-nf4", *BLOCK128, "bnb.double_quant=true", "bnb.storage=float32"],
        {"bnb_4bit_quant_storage": "float32"},
    ),
    "nf4-block128": Setting(["quantize.method=bnb-nf4", *BLOCK128]),
    "nf4-compute-float32": Setting(
        ["quantize.method=bnb-nf4", "bnb.compute_dtype=float32"], {"bnb_4bit_compute_dtype": "float32"}
    ),
    "fp4": Setting(["quantize.method=bnb-fp4"], {"bnb_4bit_quant_type": "fp4"}, smollm2=True),
    "int8": Setting(["quantize.method=bnb-int8"], {"load_in_8bit": True}, other_models=True, smollm2=True),
    "nf4-skip": Setting(
        ["quantize.method=bnb-nf4", "quantize.overrides=[{match = 'layers.1.mlp.down_proj', skip = true}]"],
        {"llm_int8_skip_modules": ["model.layers.1.mlp.down_proj", "lm_head"]},
    ),
}
OTHER_MODELS = ["qwen2", "qwen3"]

def int8_inputs(linears):
    """LLM.int8 rounds a linear's inputs to steps of max/127: an error of max/(127 sqrt(12)) per value, which is 0.9 % of the input when max is 4
    times its root mean square, as of 64 to 128 normal values. Four of a layer's seven linears follow one another: 3.2e-2 for 21 linears,
    9.9e-2 for 210; half as much again for bfloat16 and longer tails."""
    return 1.5 * 0.009 * (4 / 7 * linears) ** 0.5


def load(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    linears = sum(isinstance(module, (Linear4bit, Linear8bitLt)) for module in model.modules())
    if linears == 0:
        raise RuntimeError("bitsandbytes found no quantized linear in the folder")
    return model, linears


def answers(folder, name, input_ids):
    # A model of its own: the first forward pass on the CPU repacks the codes in place, and dequantize() would misread them.
    model, linears = load(folder)
    model = model.dequantize().float()
    logits = interop.logits_of(model, input_ids)
    yield Answer(f"bitsandbytes' weights ({linears} linears) in float32", logits, interop.FLOAT32)
    bound = int8_inputs(linears) if name == "int8" else interop.bfloat16_bound(model, input_ids, logits)
    yield Answer("transformers as loaded", interop.logits_of(load(folder)[0], input_ids), bound)


if __name__ == "__main__":
    sys.exit(interop.main(SETTINGS, OTHER_MODELS, answers))
