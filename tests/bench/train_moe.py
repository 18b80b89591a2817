#!/usr/bin/env python3
"""Trains a small mixture of experts on plain text, so that its routing is real, and writes what tests/bench/perplexity.py reads.

    python3 tests/bench/train_moe.py --out models/moe-small [--steps 400] [--device cuda]
    python3 tests/bench/make_tokens.py models/moe-small models/moe-small.tokens.safetensors

The layout is Qwen3-MoE's (transformers writes it): 4 layers of 32 experts, 4 of them for each token, without a loss that balances them, as published
models have experts that few tokens reach. The tokenizer is a byte-level BPE of 2048 tokens. Both learn from the books that make_tokens.py calibrates on;
it evaluates on another. The result depends on the device and the libraries, as training does; the seed is fixed. Then

    python3 tests/bench/perplexity.py --model models/moe-small --tokens models/moe-small.tokens.safetensors --original --runs "GPTQ 4-bit (default)" ...

Needs torch, transformers and tokenizers."""
import argparse
import gzip
import math
import os
import pathlib
import time

import make_tokens
import tokenizers
import torch
import transformers

SEQLEN = 512


def make_tokenizer(texts, folder):
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=2048, special_tokens=["<|endoftext|>"])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    fast.save_pretrained(folder)
    return lambda text: torch.tensor(bpe.encode(text).ids, dtype=torch.int32)


def make_model(vocabulary, args):
    config = transformers.Qwen3MoeConfig(
        vocab_size=vocabulary, hidden_size=args.hidden, intermediate_size=2 * args.hidden, moe_intermediate_size=args.hidden // 2, num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 32, num_key_value_heads=args.hidden // 64, head_dim=32, num_experts=args.experts, num_experts_per_tok=args.top,
        norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[], max_position_embeddings=2048, rope_theta=10000.0, tie_word_embeddings=False,
        router_aux_loss_coef=0.0, output_router_logits=False)
    return transformers.Qwen3MoeForCausalLM(config)


def windows(ids, count, seed):
    begins = torch.randint(len(ids) - SEQLEN, (count,), generator=torch.Generator().manual_seed(seed))
    return torch.stack([ids[b:b + SEQLEN] for b in begins.tolist()])


def train(model, ids, args):
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, betas=(0.9, 0.95), weight_decay=0.1)
    warm = max(1, args.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warm) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / args.steps))))
    begin = time.time()
    for step in range(args.steps):
        batch = windows(ids, args.batch, step).long().to(args.device)
        with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.device == "cuda"):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0 or step + 1 == args.steps:
            print(f"step {step}: loss {loss.item():.3f}, {time.time() - begin:.0f} s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", default=make_tokens.BOOKS)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--top", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)

    texts = []
    for book in make_tokens.CALIBRATION[1]:
        with gzip.open(os.path.join(args.books, book + ".txt.gz"), "rt", encoding="utf-8") as f:
            texts.append(f.read())
    encode = make_tokenizer(texts, args.out)
    ids = torch.cat([encode(text) for text in texts])
    model = make_model(2048, args).to(args.device)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters, {len(ids)} tokens, on {args.device}")
    train(model, ids, args)

    model.to("cpu", torch.bfloat16).save_pretrained(args.out)


if __name__ == "__main__":
    main()
