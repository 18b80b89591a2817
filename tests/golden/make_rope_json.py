"""Adds cases with a "rule" to rope.json: rotary frequencies from transformers 5.24's configuration
classes and functions. Run with an environment that has it: python make_rope_json.py"""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.hunyuan_v1_dense.modeling_hunyuan_v1_dense import (
    HunYuanDenseV1RotaryEmbedding,
)

from transformers.models.phimoe.modeling_phimoe import PhimoeRotaryEmbedding

path = Path(__file__).parent / "rope.json"
cases = [case for case in json.loads(path.read_text()) if "rule" not in case]
sizes = dict(
    num_attention_heads=4,
    num_key_value_heads=2,
    num_hidden_layers=6,
    intermediate_size=64,
    vocab_size=64,
)


def numbers(tensor):
    return [float("%.9g" % x) for x in tensor.tolist()]


def default(theta, width):
    return 1.0 / (theta ** (torch.arange(0, width, 2, dtype=torch.float) / width))


def keep(name, head_dim, config, rule, amplitude, frequencies, **more):
    cases.append(
        dict(
            name=name,
            head_dim=head_dim,
            config=config,
            rule=rule,
            amplitude=float(amplitude),
            inverse_frequencies=numbers(frequencies),
            **more,
        )
    )


def case(name, family, head_dim, config, rule=None):
    rule = rule or {}
    layer_type = rule.get("layer_type")
    keys = dict(sizes, hidden_size=4 * head_dim, **copy.deepcopy(config))
    if family != "phi3":
        keys["head_dim"] = head_dim
    made = AutoConfig.for_model(family, **keys)
    parameters = made.rope_parameters[layer_type] if layer_type else made.rope_parameters
    kind, more = parameters["rope_type"], {}
    if family == "hunyuan_v1_dense":
        found, amplitude = HunYuanDenseV1RotaryEmbedding.compute_ntk_alpha_rope_parameters(made)
    elif kind == "default":
        found, amplitude = default(parameters["rope_theta"], head_dim), 1.0
    else:
        found, amplitude = ROPE_INIT_FUNCTIONS[kind](made, None, layer_type=layer_type)
    if kind == "longrope":
        length = parameters["original_max_position_embeddings"]
        longer = ROPE_INIT_FUNCTIONS[kind](made, None, seq_len=length + 1)[0]
        more = dict(longest=length, longer_frequencies=numbers(longer), longer_amplitude=amplitude)
    if family == "phimoe":  # its amplitudes are those of its own module: the cosine of position 0
        rotary = PhimoeRotaryEmbedding(made)
        at = [rotary(torch.zeros(1), torch.tensor([[0, last]]))[0] for last in (length - 1, length)]
        amplitude, more["longer_amplitude"] = (cosines[0, 0, 0].item() for cosines in at)
    keep(name, head_dim, config, rule, amplitude, found, **more)


def proportional(name, head_dim, rule, **parameters):
    nested = dict(partial_rotary_factor=0.25, rope_theta=1e6, rope_type="proportional")
    nested.update(parameters)
    config = {
        "max_position_embeddings": 131072,
        "rope_parameters": {
            "full_attention": nested,
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
    }
    layer = SimpleNamespace(
        rope_parameters=config["rope_parameters"],
        head_dim=head_dim,
        standardize_rope_params=lambda: None,
    )
    layer.per_layer_config = {"full_attention": layer}
    found, amplitude = ROPE_INIT_FUNCTIONS["proportional"](layer, None, layer_type="full_attention")
    keep(name, head_dim, config, rule, amplitude, found)


short = [round(1 + i * 0.03, 3) for i in range(48)]
long = [round(1 + i * i * 0.02, 3) for i in range(48)]


def phi(positions, kind, count, top=None, **more):
    scaling = dict(type=kind, short_factor=short[:count], long_factor=long[:count], **more)
    return dict(max_position_embeddings=positions, rope_scaling=scaling, **(top or {}))


original = {"original_max_position_embeddings": 4096, "rope_theta": 10000.0}
from_class = {"original_positions": 4096}
case("longrope", "phi3", 96, phi(131072, "longrope", 48, original), from_class)
inside = {"original_max_position_embeddings": 4096}
case("longrope-su", "phi3", 96, phi(8192, "su", 48, {"rope_theta": 5e5}, **inside), from_class)
partial = dict(original, partial_rotary_factor=0.75)
stretched = phi(131072, "longrope", 24, partial, attention_factor=1.25)
case("longrope-partial", "phi3", 64, stretched, from_class)
case("longrope-no-stretch", "phi3", 32, phi(4096, "longrope", 16), from_class)
inside = {"factor": 8.0, "original_max_position_embeddings": 8192}
case("longrope-factor", "llama", 32, phi(131072, "longrope", 16, **inside))

mscales = dict(inside, short_mscale=1.1, long_mscale=1.3)
case("phimoe", "phimoe", 32, phi(131072, "longrope", 16, **mscales), {"theta": 1e6})
llama4 = {"factor": 16.0, "high_freq_factor": 1.0, "low_freq_factor": 1.0, "rope_type": "llama3"}
llama4["original_max_position_embeddings"] = 8192
scout = {"max_position_embeddings": 10485760, "rope_theta": 500000.0, "rope_scaling": llama4}
case("llama4", "llama4_text", 128, scout)

alpha = {"alpha": 1000.0, "factor": 1.0, "type": "dynamic"}
hunyuan = {"max_position_embeddings": 32768, "rope_theta": 10000.0, "rope_scaling": alpha}
case("hunyuan-alpha", "hunyuan_v1_dense", 128, hunyuan)
mrope = {"type": "mrope", "mrope_section": [16, 24, 24]}
qwen = {"max_position_embeddings": 32768, "rope_theta": 1e6, "rope_scaling": mrope}
case("mrope", "qwen2_5_vl_text", 128, qwen)

full = {"layer_type": "full_attention", "theta": 1e6}
sliding = {"layer_type": "sliding_attention", "theta": 1e4, "scaled": False}
sliding["theta_key"] = "rope_local_base_freq"
linear = {"factor": 8.0, "rope_type": "linear"}
sparse = {"max_position_embeddings": 131072, "rope_scaling": linear}
stated = dict(sparse, rope_theta=2e6, rope_local_base_freq=20000.0)
nested = {
    "max_position_embeddings": 131072,
    "rope_parameters": {
        "full_attention": dict(linear, rope_theta=1e6),
        "sliding_attention": {"rope_type": "default", "rope_theta": 30000.0},
    },
}
for form, config in {"sparse": sparse, "stated": stated, "nested": nested}.items():
    case("gemma3-full-" + form, "gemma3_text", 64, config, full)
    case("gemma3-sliding-" + form, "gemma3_text", 64, config, sliding)
proportional("gemma4-full", 512, full)
proportional("gemma4-full-factor", 64, full, partial_rotary_factor=0.5, factor=4.0)

yarn = {"beta_fast": 32.0, "beta_slow": 1.0, "rope_type": "yarn"}
olmo = dict(yarn, attention_factor=1.2, factor=8.0, original_max_position_embeddings=8192)
config = {"max_position_embeddings": 65536, "rope_theta": 500000, "rope_scaling": olmo}
case("olmo3-full", "olmo3", 128, config, {"layer_type": "full_attention", "theta": 5e5})
rule = {"layer_type": "sliding_attention", "theta": 5e5, "scaled": False}
case("olmo3-sliding", "olmo3", 128, config, rule)
ministral = dict(yarn, factor=16.0, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.1)
ministral.update(original_max_position_embeddings=16384, rope_theta=1e6)
config = {"max_position_embeddings": 262144, "rope_parameters": ministral}
case("ministral3", "ministral3", 128, config, {"theta": 1e6})

lines = ",\n".join("  " + json.dumps(one) for one in cases)
path.write_text("[\n" + lines + "\n]\n")
