"""The variants of architectures among the oracles, all of which qpipe must read, and what serves each. Needs no packages."""
from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass
class Variant:
    """loaders: who loads the packed folder as it is. GPTQ: ct (transformers with compressed-tensors) or gptqmodel (in the format gptq);
    AWQ: awq (transformers) or gptqmodel-awq; NF4: bnb (transformers). pipeline/plan/family_loaders.cpp tells users who does not."""

    loaders: str = "ct awq bnb"
    transposed: bool = False  # the checkpoint stores [in, out], a quantized one [out, in]
    attention: str = "eager"
    mixture: bool = False  # of experts
    rope_scaling: dict = field(default_factory=dict)  # what the reference computes in place of what config.json says
    config: dict = field(default_factory=dict)  # keys of config.json with other values, for qpipe, peers and the reference
    options: list = field(default_factory=list)


NONE = Variant("")  # no loader, but the peer's unpacking and the reference's float32
# transformers leaves Falcon's linears out of bitsandbytes and asks packed ones for their weight.
FALCON = Variant("gptqmodel gptqmodel-awq")
# transformers expects AutoAWQ's scale of the activation in these, which qpipe does not need, and makes one up. GPTQModel gives NaN
# for gpt_neox.
SCALED_ACTIVATION = Variant("ct gptqmodel-awq bnb")

# transformers holds experts as stacks, which neither compressed-tensors nor bitsandbytes reads packed.
EXPERTS = Variant("gptqmodel gptqmodel-awq", mixture=True)
UNLOADED_EXPERTS = Variant("", mixture=True)  # GPTQModel neither


def skip(match):
    """Integer codes need sizes that are multiples of 32."""
    return [f"quantize.overrides=[{{match = '{match}', skip = true}}]"]


# More tokens than the sequences have, so that the indexer chooses all: which of those with equal scores the reference takes is left to chance.
ALL_TOKENS = {"index_topk": 64}
LATENTS = skip(r"q_a_proj|q_b_proj|kv_a_proj")

VARIANTS = {
    "llama": Variant(),
    "llama-mha": Variant(),
    "llama-mha-tied-bias": Variant(),
    "llama3-rope": Variant(),
    "llama-linear-rope": Variant(),
    "llama-yarn": Variant(),
    "mistral": Variant(),
    "mistral-window": Variant(),
    "qwen2": Variant(),
    "qwen3": Variant(),
    "qwen2-moe": EXPERTS,
    "qwen3-moe": EXPERTS,
    "qwen3-next": EXPERTS,
    "qwen3_5": Variant(),
    "qwen3_5-moe": UNLOADED_EXPERTS,  # GPTQModel asks for an image processor, which the oracle lacks
    "qwen3_5-moe-per-expert": EXPERTS,
    "kimi-linear": replace(UNLOADED_EXPERTS, options=skip(r"kv_a_proj")),
    "mixtral": UNLOADED_EXPERTS,
    # transformers keeps the short factors for long sequences, which the family's authors do not.
    "phimoe": replace(UNLOADED_EXPERTS, rope_scaling={"long_factor": [1.0, 1.0, 1.1, 1.2, 1.5, 2.0, 2.5, 3.0]}),
    "minimax-m2": UNLOADED_EXPERTS,
    "olmoe": EXPERTS,
    "granitemoe": UNLOADED_EXPERTS,
    "glm4-moe": UNLOADED_EXPERTS,
    "dots1": EXPERTS,
    "deepseek-v2": replace(EXPERTS, options=LATENTS),
    "deepseek-v2-lite": replace(EXPERTS, options=LATENTS),
    "deepseek-v2-groups": replace(EXPERTS, options=LATENTS),
    "deepseek-v3": replace(EXPERTS, options=LATENTS),
    "deepseek-v3-yarn": replace(EXPERTS, options=LATENTS),
    "deepseek-v3-no-q-lora": replace(EXPERTS, options=LATENTS),
    "deepseek-v32": replace(UNLOADED_EXPERTS, options=LATENTS, config=ALL_TOKENS),
    "glm-moe-dsa": replace(UNLOADED_EXPERTS, options=LATENTS, config=ALL_TOKENS),
    "kimi-k25": replace(UNLOADED_EXPERTS, options=LATENTS),
    "glm4-moe-lite": replace(UNLOADED_EXPERTS, options=LATENTS),
    "mistral4": replace(UNLOADED_EXPERTS, options=LATENTS),
    "solar-open": EXPERTS,
    "exaone-moe": UNLOADED_EXPERTS,
    "bailing-moe-v2": UNLOADED_EXPERTS,
    "ernie4_5-moe": UNLOADED_EXPERTS,
    "hunyuan-moe": replace(EXPERTS, options=skip(r"mlp\.")),
    "llama4-text": UNLOADED_EXPERTS,
    "llama4": UNLOADED_EXPERTS,
    "gemma4-moe": replace(UNLOADED_EXPERTS, options=skip(r"experts")),
    "gpt-oss": UNLOADED_EXPERTS,
    "afmoe": UNLOADED_EXPERTS,
    "mimo-v2-flash": replace(UNLOADED_EXPERTS, options=skip(r"k_proj")),
    "step3p5": UNLOADED_EXPERTS,
    "gemma": Variant(),
    "gemma2": Variant(),
    "gemma3": Variant(),
    "phi3": Variant(),
    "phi": Variant(),
    "falcon-7b-style": FALCON,
    "falcon-40b-style": FALCON,
    "falcon-11b-style": FALCON,
    "falcon-rw-alibi": Variant("gptqmodel gptqmodel-awq", attention="sdpa"),  # eager adds ALiBi twice
    "opt": Variant(),
    "opt-350m-style": Variant(),
    "gpt-neox": Variant("ct bnb"),
    "gpt2": Variant("gptqmodel gptqmodel-awq bnb", transposed=True),
    "gptj": SCALED_ACTIVATION,
    "gpt-bigcode": Variant("gptqmodel gptqmodel-awq bnb"),
    "bloom": SCALED_ACTIVATION,
    "mpt": SCALED_ACTIVATION,
    "starcoder2": SCALED_ACTIVATION,
    "stablelm": Variant(),
    "stablelm-2": Variant(),
    "olmo": Variant(),
    "olmo2": Variant(),
    "olmo3": Variant(),
    "smollm3": Variant(),
    "arcee": Variant(),
    "apertus": Variant(),
    "seed-oss": Variant(),
    "nemotron": Variant(),
    "exaone": Variant(),
    "exaone4": Variant(),
    "mistral3": Variant(),
    "mistral3-ministral3": Variant(),
    "internlm2": NONE,
    "baichuan-7b": NONE,
    "deci": Variant("", options=skip(r"layers\.0\.self_attn\.[kv]_proj")),
    "nemotron-nas": Variant("", options=skip(r"layers\.0\.self_attn\.[kv]_proj")),
    "hunyuan-dense": Variant(),
    "ernie4_5": Variant(),
    "glm": Variant(),
    "glm4": Variant(),
    "qwen2_5-vl": Variant(),
    "qwen3-vl": Variant(),
    "gemma3-mm": Variant(),
    "gemma3-mm-v5": Variant(),
    "gemma4-text": Variant(),
    "gemma4-small": Variant(options=skip(r"per_layer|layers\.0\.self_attn\.[kv]_proj")),
    "phi3-longrope": Variant(),
    "phi3-longrope-short": Variant(),
    "cohere": Variant(),
    "cohere-qk-norm": Variant(),
    "cohere2": Variant(),
    "granite": Variant(),
    "granitemoehybrid-dense": Variant(),
    # transformers initializes the weight of out_proj, which is packed.
    "mamba2": Variant("bnb", options=skip(r"in_proj")),
    "falcon-h1": Variant(options=skip(r"in_proj")),
    "lfm2": Variant(),
    # AWQ's factors are in experts, too, which are then stored one by one; transformers looks for stacks.
    "granitemoehybrid": Variant("ct bnb", mixture=True, options=skip(r"in_proj|shared_mlp\.output_linear|experts")),
    # With compressed-tensors transformers finds no experts that are not packed.
    "nemotron-h": Variant("awq bnb", mixture=True, options=skip(r"in_proj|experts")),
    "jamba": Variant("awq bnb", mixture=True, options=skip(r"x_proj|feed_forward")),
    "lfm2-moe": UNLOADED_EXPERTS,
}
