#!/usr/bin/env python3
"""Quantizes decoder layers of mixtures of experts, with random weights: seconds a layer by phase, beside their floor.

    python3 tests/bench/experts.py --qpipe build/release/qpipe [--shape qwen3-30b-a3b|deepseek-v3] [--method gptq] [--layers 4] [--samples 128] [--seqlen 2048] [--repeat 1]
                                   [--work DIR] [--launcher "mpirun -np 2"] [--set k=v ...]

qwen3-30b-a3b: hidden 2048, 128 experts of 768, 8 for each token, 32 heads of 128, 4 key and value heads. deepseek-v3: the experts of DeepSeek-V3, 256 of
7168 x 2048, 8 for each token, and a shared one, sigmoid router, in the layout of GLM-4.5 with its plain attention (64 heads, 8 key and value heads): 22.5 GB a layer;
`--layers 1 --set memory.gpu=22GiB` is one of them on a card of 24 GB. Random tokens meet random experts, so that all of them are reached alike. `--model-only` stops
when the model is there; tests/bench/peer.py quantizes the same files. Needs torch."""
import argparse
import json
import os

import llama7b

VOCAB = 32000
SHAPES = {
    "qwen3-30b-a3b": dict(hidden=2048, ffn=768, experts=128, top=8, shared=0, heads=32, kv_heads=4, head_dim=128),
    "deepseek-v3": dict(hidden=7168, ffn=2048, experts=256, top=8, shared=1, heads=64, kv_heads=8, head_dim=128),
}


def model_config(shape, layers):
    s = SHAPES[shape]
    config = dict(vocab_size=VOCAB, hidden_size=s["hidden"], moe_intermediate_size=s["ffn"], intermediate_size=3 * s["ffn"], num_hidden_layers=layers,
                  num_attention_heads=s["heads"], num_key_value_heads=s["kv_heads"], head_dim=s["head_dim"], num_experts_per_tok=s["top"],
                  max_position_embeddings=4096, rms_norm_eps=1e-6, rope_theta=1e6, hidden_act="silu", norm_topk_prob=True, attention_bias=False,
                  tie_word_embeddings=False, torch_dtype="bfloat16")
    if s["shared"] == 0:
        return dict(config, architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", num_experts=s["experts"], decoder_sparse_step=1, mlp_only_layers=[])
    return dict(config, architectures=["Glm4MoeForCausalLM"], model_type="glm4_moe", n_routed_experts=s["experts"], n_shared_experts=s["shared"], n_group=1,
                topk_group=1, routed_scaling_factor=2.5, first_k_dense_replace=0, partial_rotary_factor=1.0, use_qk_norm=False)


def layer_tensors(shape, layer, weight, vector):
    """(name, tensor) one after the other, so that a layer need not fit in memory."""
    s, p = SHAPES[shape], f"model.layers.{layer}."
    q, kv, hidden = s["heads"] * s["head_dim"], s["kv_heads"] * s["head_dim"], s["hidden"]
    for name, rows, cols in (("q", q, hidden), ("k", kv, hidden), ("v", kv, hidden), ("o", hidden, q)):
        yield p + f"self_attn.{name}_proj.weight", weight(rows, cols)
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield p + norm + ".weight", vector(hidden)
    if s["shared"] == 0:
        for norm in ("q_norm", "k_norm"):
            yield p + f"self_attn.{norm}.weight", vector(s["head_dim"])
    else:
        yield p + "mlp.gate.e_score_correction_bias", vector(s["experts"]).float() * 0.0
    yield p + "mlp.gate.weight", weight(s["experts"], hidden)
    experts = [f"mlp.experts.{e}." for e in range(s["experts"])] + ["mlp.shared_experts."] * s["shared"]
    for expert in experts:
        for name, rows, cols in (("gate", s["ffn"], hidden), ("up", s["ffn"], hidden), ("down", hidden, s["ffn"])):
            yield p + expert + f"{name}_proj.weight", weight(rows, cols)


def make_model(folder, shape, layers):
    import torch
    from safetensors.torch import save_file

    os.makedirs(folder, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device=device).manual_seed(1)
    weight = lambda rows, cols: (torch.randn(rows, cols, generator=generator, device=device) / cols**0.5).to(torch.bfloat16).cpu()
    vector = lambda size: torch.ones(size, dtype=torch.bfloat16)
    index, pending, files = {}, {}, 0

    def flush():
        nonlocal pending, files
        name = f"model-{files:05d}.safetensors"
        save_file(pending, os.path.join(folder, name), metadata={"format": "pt"})
        index.update(dict.fromkeys(pending, name))
        pending, files = {}, files + 1

    for layer in range(layers):
        for name, tensor in layer_tensors(shape, layer, weight, vector):
            pending[name] = tensor
            if sum(t.numel() * t.element_size() for t in pending.values()) > 3 << 30:
                flush()
    hidden = SHAPES[shape]["hidden"]
    pending.update({"model.embed_tokens.weight": weight(VOCAB, hidden) * hidden**0.5 * 0.02, "lm_head.weight": weight(VOCAB, hidden), "model.norm.weight": vector(hidden)})
    flush()
    with open(os.path.join(folder, "model.safetensors.index.json"), "w") as f:
        json.dump({"metadata": {}, "weight_map": index}, f)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(model_config(shape, layers), f)


def phase_flops(shape, method, layers, tokens, seqlen):
    s = SHAPES[shape]
    q, kv, hidden, ffn = s["heads"] * s["head_dim"], s["kv_heads"] * s["head_dim"], s["hidden"], s["ffn"]
    met = s["top"] + s["shared"]  # experts of a token
    linears = 2 * hidden * q + 2 * hidden * kv + hidden * s["experts"] + 3 * met * hidden * ffn
    flops = {"forward": layers * (2.0 * tokens * linears + 2.0 * tokens * seqlen * q),  # attention: q·k and p·v over half of the square
             "hessian": layers * 1.0 * tokens * (hidden**2 + q**2 + met * (hidden**2 + ffn**2))}  # half by symmetry
    if method == "gptq":  # d³/3 a factor, rows·d² a sweep, each product in three parts (split precision)
        all_experts = s["experts"] + s["shared"]
        factors = hidden**3 + q**3 + all_experts * (hidden**3 + ffn**3)
        sweeps = hidden**2 * (q + 2 * kv) + q**2 * hidden + all_experts * (2 * ffn * hidden**2 + hidden * ffn**2)
        flops["solve"] = layers * (1.0 * factors + 3.0 * sweeps)
    return flops


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    llama7b.add_arguments(parser, SHAPES, "qwen3-30b-a3b", 4)
    parser.add_argument("--model-only", action="store_true")
    args = parser.parse_args()

    model = os.path.join(args.work, f"{args.shape}-{args.layers}")
    if not os.path.exists(os.path.join(model, "config.json")):
        make_model(model, args.shape, args.layers)
    tokens = llama7b.tokens_in(args.work, args.samples, args.seqlen)
    if args.model_only:
        return
    output, config = os.path.join(args.work, "out"), os.path.join(args.work, "experts.toml")
    llama7b.write_config(config, model, tokens, output, args.method, args.samples, args.seqlen)
    command = args.launcher.split() + args.qpipe.split() + [config] + [w for s in args.set for w in ("--set", s)]
    flops = phase_flops(args.shape, args.method, args.layers, args.samples * args.seqlen, args.seqlen) if args.method in ("gptq", "awq") else {}
    for run in range(args.repeat):
        report, wall = llama7b.timed_run(command, output)
        print(f"\nrun {run + 1}: ", end="")
        llama7b.print_phases(report, wall, flops)
        work = sum(seconds for phase, seconds in report["seconds"].items() if phase in ("forward", "hessian", "search", "solve"))
        print(f"  a layer  {work / args.layers:8.3f} s  (forward, hessian, search and solve)")


if __name__ == "__main__":
    main()
